"""What a whole trial gives is what columns.py declares: no metric without a column, no column without a metric."""

from __future__ import annotations

import dataclasses

import pytest

from greenprune.columns import COLUMNS, column, pattern_of
from greenprune.energy import ReplayMeter
from greenprune.experiment import measured_objectives, parse_experiment
from greenprune.results import to_frame
from greenprune.trial import run_trial

GPU = {
    "index": 0,
    "name": "a GPU",
    "sm_clock_mhz": 1500.0,
    "power_cap_w": 300.0,
    "temperature_c": 60.0,
    "throttling": (),
}


class WithGpus(ReplayMeter):
    """Replays a GPU's joules, and its state beside them."""

    def window(self, name):
        return _with_state(super().window(name))


class _with_state:
    def __init__(self, inner):
        self.inner = inner

    def __enter__(self):
        self.window = self.inner.__enter__()
        return self.window

    def __exit__(self, *error):
        ended = self.inner.__exit__(*error)
        if error[0] is None:
            self.window.close(dataclasses.replace(self.window.reading, gpus=(GPU,)))
        return ended


@pytest.fixture
def full(tiny_experiment, tmp_path, monkeypatch):
    """A healed trial on two tasks, a text and an energy workload with a country; its GPU is replayed."""
    meter = WithGpus([5.0] * 100, co2e_g_per_kwh=50.0)
    monkeypatch.setattr("greenprune.energy.meter_for", lambda *args, **options: meter)
    tiny_experiment["benchmark"] |= {"tasks": ["piqa", "xsum"], "data": "assets", "limit": 2, "max_length": 128}
    tiny_experiment["benchmark"]["energy"] |= {"country": "FRA", "concurrency": [1, 2], "paired": True}
    tiny_experiment["heal"] |= {"steps": 1, "track_kl": True}
    experiment = parse_experiment(tiny_experiment)
    return experiment, run_trial(experiment.trial(), tmp_path / "runs")


def test_metrics_and_columns_are_the_same(full):
    experiment, result = full
    given = {"<section>.<key>", *to_frame([result]).columns}
    undeclared = [name for name in given if "." not in name and column(name) is None]
    assert undeclared == []
    missing = COLUMNS.keys() - given - set(map(pattern_of, given))
    assert missing <= {"break_even_requests", "energy_note", "perplexity_note"}, "a column that no trial gives"
    numbers = {name for name in result.metrics if not isinstance(result.metrics[name], str)}
    assert all(column(name).text != (name in numbers) for name in result.metrics)
    assert measured_objectives(experiment.benchmark).keys() <= result.metrics.keys()
