"""A model and the dense one in pairs of windows."""

from __future__ import annotations

import json

import pytest
from tiny_causal import tiny
from workload_windows import QUICK, replayed

from greenprune.benchmark import energy_stage
from greenprune.benchmark.windows import PhaseWindow
from greenprune.benchmark.workload import Side, measure_workload
from greenprune.config import ModelConfig
from greenprune.energy import ReplayMeter
from greenprune.engines.transformers import TransformersEngine

PAIRED = QUICK.model_copy(update={"paired": True, "repeats": 3, "target_half_width": 0.0})
DRIFT = [1.0, 1.5, 2.0]  # both models' energies drift so


@pytest.fixture
def joules(monkeypatch):
    """A window's joules are those of one pass, as the tests give them."""
    monkeypatch.setattr(PhaseWindow, "joules_a_pass", property(lambda window: window.reading.energy_j))


def in_alternation(own: float, dense: float) -> list[float]:
    """Of each round prefill and decode, the dense model first in every other one."""
    found = []
    for number, drift in enumerate(DRIFT):
        both = [own * drift] * 2, [dense * drift] * 2
        found += [*both[1], *both[0]] if number % 2 == 0 else [*both[0], *both[1]]
    return found


def sides(keep: bool = True) -> tuple[Side, Side]:
    return Side(lambda: TransformersEngine(tiny()), keep), Side(lambda: TransformersEngine(tiny()), keep)


@pytest.mark.parametrize("keep", [True, False])
def test_drift_falls_on_both(joules, keep):
    own, dense = sides(keep)
    found = measure_workload(own, PAIRED, ReplayMeter([0.1, *in_alternation(8.0, 10.0)]), dense)
    ratios = found.first.ratios
    assert ratios["energy_ratio"] == ratios["energy_ratio_decode"] == pytest.approx(0.8)
    assert ratios["energy_ratio_ci95"] == pytest.approx(0.0, abs=1e-9)
    assert found.figures.energy.energy_ci95_ratio > 0.5
    assert [reading.name for reading in found.readings] == [f"{phase} {n}" for n in (1, 2, 3) for phase in NAMES]
    assert {reading.name.split()[0] for reading in found.first.dense} == {"prefill:dense", "decode:dense"}
    told = found.to_json()
    assert told["energy_ratio"] == ratios["energy_ratio"]
    assert len(told["dense_readings"]) == 6


NAMES = ("prefill", "decode")


def test_pairs_end_when_the_ratio_is_known(joules):
    own, dense = sides()
    config = PAIRED.model_copy(update={"repeats": 9, "target_half_width": 0.02})
    found = measure_workload(own, config, ReplayMeter([0.1, *in_alternation(8.0, 10.0)]), dense)
    assert found.figures.energy_repeats == 3


def test_auto_pairs_estimates_and_wide_intervals(joules):
    config = PAIRED.model_copy(update={"paired": "auto", "target_half_width": 0.02})
    own, dense = sides()
    estimated = ReplayMeter([0.1, *in_alternation(8.0, 10.0)], kind="estimated")
    assert measure_workload(own, config, estimated, dense).first.ratios["energy_ratio"] == pytest.approx(0.8)
    steady = ReplayMeter([0.1, *[8.0] * 6])
    assert measure_workload(own, config, steady, dense).first.ratios == {}
    wide = ReplayMeter([0.1, 8.0, 8.0, 16.0, 16.0, 8.0, 8.0, *in_alternation(8.0, 10.0)])
    assert measure_workload(own, config, wide, dense).first.ratios["energy_ratio"] == pytest.approx(0.8)


def test_a_pair_is_as_contaminated_as_its_worse_half(engine):
    disturbed = replayed(10.0, contamination="PID 7 on GPU 0")
    own, dense = sides()
    config = PAIRED.model_copy(update={"repeats": 1})
    readings = [replayed(1.0), *[disturbed] * 5, replayed(10.0), replayed(10.0)]
    assert measure_workload(own, config, ReplayMeter(readings), dense).figures.energy_kind == "contaminated"


def test_the_stage_measures_the_dense_model_too(checkpoint, tmp_path):
    energy_stage(tmp_path, checkpoint=checkpoint, config=PAIRED, dtype="float32", dense=ModelConfig(id=str(checkpoint)))
    found = json.loads((tmp_path / "energy.json").read_text())
    assert 0.2 < found["energy_ratio"] < 5, "one model beside itself, in windows of 20 ms"
    assert found["energy_ratio_ci95"] > 0
    assert len((tmp_path / "emissions.csv").read_text().splitlines()) == 1 + 2 * 3, "the dense model's are its own"
