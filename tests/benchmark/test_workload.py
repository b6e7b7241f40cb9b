"""The workload on a tiny model: windows alternate, and end when enough is known."""

from __future__ import annotations

import logging

import pytest
from workload_windows import QUICK, replayed

from greenprune.benchmark import windows, workload
from greenprune.benchmark.windows import PhaseWindow
from greenprune.benchmark.workload import measure_workload
from greenprune.energy import ReplayMeter


def test_windows_alternate_and_last_long_enough(engine, caplog):
    meter = ReplayMeter([0.1, 3.0, 5.0, 3.0, 5.0])
    with caplog.at_level(logging.INFO, logger="greenprune"):
        result = measure_workload(engine, QUICK, meter)
    assert [reading.name for reading in result.readings] == ["prefill 1", "decode 1", "prefill 2", "decode 2"]
    assert all(reading.seconds >= QUICK.min_seconds for reading in result.readings)
    assert result.figures.energy_window_s >= QUICK.min_seconds
    assert (result.figures.energy_kind, result.figures.energy_repeats) == ("measured", 2)
    assert result.figures.energy.energy_j_per_token > 0
    assert "energy: decode 2 of 2" in caplog.text
    assert result.first.idle.name == "idle"
    assert result.figures.idle_power_w == pytest.approx(0.1 / result.first.idle.seconds)
    assert result.figures.energy.energy_j_per_token_net < result.figures.energy.energy_j_per_token


def test_repeats_end_when_the_mean_is_known(engine, monkeypatch):
    monkeypatch.setattr(PhaseWindow, "joules_a_pass", property(lambda window: window.reading.energy_j))
    config = QUICK.model_copy(update={"repeats": 9, "target_half_width": 0.02})
    steady = ReplayMeter([1.0] + [100.0, 50.0] * 3)
    assert measure_workload(engine, config, steady).figures.energy_repeats == workload.FEWEST_REPEATS
    settling = ReplayMeter([1.0, *[100.0, 100.0], *[120.0, 120.0], *[110.0, 110.0] * 30])
    result = measure_workload(engine, config.model_copy(update={"repeats": 30, "target_half_width": 0.04}), settling)
    assert (result.figures.energy_repeats, result.figures.energy.energy_ci95_ratio) == (
        9,
        pytest.approx(0.035, abs=0.001),
    )
    wild = ReplayMeter([1.0] + [100.0, 50.0, 200.0, 90.0] * 5)
    assert measure_workload(engine, config, wild).figures.energy_repeats == 9


def test_a_disturbed_window_is_measured_again(engine, caplog):
    disturbed = replayed(900.0, contamination="other processes kept 60% of the node's cores busy")
    meter = ReplayMeter([replayed(1.0), disturbed, replayed(10.0), replayed(20.0), replayed(10.0), replayed(20.0)])
    with caplog.at_level(logging.INFO, logger="greenprune"):
        result = measure_workload(engine, QUICK, meter)
    assert (result.figures.energy_kind, len(result.discarded)) == ("measured", 1)
    assert [reading.energy_j for reading in result.readings] == [10.0, 20.0, 10.0, 20.0]
    assert result.figures.energy_note is None
    assert "prefill 1 of 2 is measured again: other processes kept 60%" in caplog.text


def test_what_stays_disturbed_is_kept_and_marked(engine):
    disturbed = replayed(10.0, contamination="PID 7 on GPU 0")
    expected = 1 + 4 + windows.MEASURED_AGAIN
    meter = ReplayMeter([disturbed] * expected)
    result = measure_workload(engine, QUICK, meter)
    assert result.figures.energy_kind == "contaminated"
    assert result.figures.energy_note == "contaminated in 4 of 4 windows: PID 7 on GPU 0"
    assert len(result.discarded) == windows.MEASURED_AGAIN
    assert result.figures.energy.energy_j_per_token > 0
    assert result.figures.energy.energy_j_per_token_net is None  # rest was disturbed too
    assert len(meter.readings) == expected
