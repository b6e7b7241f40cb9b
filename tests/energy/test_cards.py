"""Two cards of one class, by replayed NVML: the dense model is measured on each, and trials are compared by ratio."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from handmade_runs import ANGULAR, trial
from replayed_counters import FakeNvml, install_nvml

from greenprune.energy import ReplayMeter
from greenprune.experiment import parse_experiment
from greenprune.pareto import pareto_front
from greenprune.report.cards import card_to_card
from greenprune.report.run import read_run
from greenprune.report.sections.facts import gather_facts
from greenprune.results import to_frame, write_trials
from greenprune.trial import run_trial


def joules_on(card: str) -> Iterator[float]:
    """Endless: the second card takes a tenth more for everything."""
    while True:
        yield 1000.0 if card == "0" else 1100.0


@pytest.fixture
def on_card(tiny_experiment, tmp_path, monkeypatch):
    """Runs a point of the experiment on one of two cards."""
    experiment = parse_experiment(tiny_experiment)
    install_nvml(monkeypatch, FakeNvml(gpus=2))

    def run(card: str, number: int, point=None):
        meter = ReplayMeter(joules_on(card), seconds=iter(lambda: 1.0, None))
        monkeypatch.setattr("greenprune.energy.meter_for", lambda *args, **options: meter)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", card)
        config = experiment.trial(point or {}) if point else experiment.trial().dense()
        return run_trial(config, tmp_path / "runs", number=number)

    return run


def test_dense_is_measured_on_each_card_and_the_front_takes_ratios(on_card):
    one, other = ({"prune.method": "bi", "prune.block_size": layers, "heal.method": "none"} for layers in (1, 2))
    results = [on_card("0", 0), on_card("0", 1, one), on_card("1", 2, other)]
    keys = [{made["key"] for made in result.stages if made["stage"] == "energy"} for result in results]
    assert keys[0] < keys[1], "on one card the dense model is measured once"
    assert not keys[0] & keys[2], "another card's is its own"
    trials = to_frame(results)
    assert trials["machine"].nunique() == 2
    assert trials["machine_class"].nunique() == 1
    front = pareto_front(trials, {"held_ppl@16": "min", "energy_j_per_token": "min"})
    assert front["energy_ratio"].notna().all()
    assert len(card_to_card(trials)) == 1


H100 = {"machine_class": "h100", "energy_kind": "measured"}


def test_the_spread_of_a_class_by_hand(tmp_path):
    """Dense took 2.0 on the first card (1.0 / 0.5), 2.2 on the second; one class, one line."""
    found = [
        trial(0, 0.8, 2.0, machine="card-1", **H100),
        trial(1, 0.7, 1.0, ANGULAR, machine="card-1", **H100),
        trial(2, 0.7, 1.1, ANGULAR, machine="card-2", **(H100 | {"energy_ratio": 0.5})),
        trial(3, 0.7, 9.0, ANGULAR, machine="card-3", **(H100 | {"energy_kind": "contaminated"})),
        trial(4, 0.7, 9.0, ANGULAR, machine="other-1", **(H100 | {"machine_class": "a100"})),
    ]
    line = "the dense model took 2–2.2 J/token over 2 cards of one class, spread 9.5%"
    assert card_to_card(to_frame(found)) == [line]
    write_trials(tmp_path / "run", found)
    assert gather_facts(read_run(tmp_path / "run"))["facts"]["card to card"] == line


def test_a_run_on_one_card_has_no_spread(tmp_path):
    write_trials(tmp_path / "run", [trial(0, 0.8, 2.0, **H100), trial(1, 0.7, 1.0, ANGULAR, **H100)])
    assert "card to card" not in gather_facts(read_run(tmp_path / "run"))["facts"]
