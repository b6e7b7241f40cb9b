"""Energies that others' work spoiled: measured again by whoever asks next, and in no ratio of anybody."""

from __future__ import annotations

import functools

import pytest

from greenprune.energy import meter
from greenprune.energy.neighbours import Neighbours
from greenprune.experiment import parse_experiment
from greenprune.metrics import _of_making, _ratios
from greenprune.store import Artifact
from greenprune.trial import run_trial


class ReplayedNode:
    """A node's CPU time, of which none is ours: it stands still, or others keep every core busy."""

    def __init__(self) -> None:
        self.others_work, self.seconds = False, 0.0

    def __call__(self) -> float:
        self.seconds += 1e6 if self.others_work else 0.0
        return self.seconds


@pytest.fixture
def node(monkeypatch) -> ReplayedNode:
    node = ReplayedNode()
    monkeypatch.setattr(meter, "Neighbours", functools.partial(Neighbours, own_s=lambda: 0.0, node_s=node))
    return node


@pytest.fixture
def experiment(tiny_experiment):
    tiny_experiment["benchmark"]["energy"]["max_foreign_load"] = 0.5
    return parse_experiment(tiny_experiment)


def energy_keys(result) -> list[str]:
    return [stage["key"] for stage in result.stages if stage["stage"] == "energy"]


def test_a_disturbed_dense_run_is_measured_again_by_the_next_trial(experiment, node, tmp_path):
    node.others_work = True
    dense = run_trial(experiment.trial().dense(), tmp_path)
    assert dense.metrics["energy_kind"] == "contaminated"
    node.others_work = False
    point = {"prune.method": "bi", "heal.method": "none"}
    pruned = run_trial(experiment.trial(point), tmp_path)
    assert pruned.metrics["energy_kind"] == "estimated"
    assert pruned.metrics["energy_ratio"] > 0
    assert energy_keys(pruned)[0] != energy_keys(dense)[0]
    kept = tmp_path / Artifact("energy", energy_keys(dense)[0]).folder
    assert (kept / "energy.json").exists(), "the disturbed one is set aside, not deleted"
    again = run_trial(experiment.trial(point), tmp_path)
    assert energy_keys(again) == energy_keys(pruned), "an undisturbed one is found"


def test_a_trial_s_own_disturbed_energy_is_measured_again_with_the_trial(experiment, node, tmp_path):
    node.others_work = True
    for _ in range(2):
        assert run_trial(experiment.trial().dense(), tmp_path).metrics["energy_kind"] == "contaminated"
    node.others_work = False
    mended = run_trial(experiment.trial().dense(), tmp_path)
    assert (mended.metrics["energy_kind"], mended.metrics["energy_ratio"]) == ("estimated", 1.0)
    assert len(list((tmp_path / "_stages" / "energy").glob("*/manifest.json"))) == 3


WORKLOAD = {"energy_j_per_token": 2.0, "energy_j_per_prefill_token": 1.0, "energy_kind": "measured"}


def test_a_ratio_needs_a_dense_run_of_its_own_kind():
    assert _ratios(WORKLOAD, WORKLOAD) == {"energy_ratio": 1.0, "energy_ratio_prefill": 1.0}
    for kind in ("contaminated", "estimated"):
        assert _ratios(WORKLOAD, WORKLOAD | {"energy_kind": kind}) == {}, kind
    assert _ratios(WORKLOAD | {"energy_scope": "device"}, WORKLOAD | {"energy_scope": "device+package"}) == {}


def test_disturbed_joules_are_never_paid_back():
    made = [Artifact("prune", "k", energy_j=7200.0, energy_kind="contaminated")]
    saved = {"energy_kind": "contaminated", "energy_wh_per_1k_requests": 50.0, "energy_ratio": 0.5}
    assert "break_even_requests" not in _of_making(made, saved)
