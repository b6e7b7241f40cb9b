"""Standard errors, intervals and floors of the numbers that a report shows."""

from __future__ import annotations

import pandas as pd
import pytest

from greenprune.report.uncertainty import error_bars, floor_of, stderr_of


def test_scores_of_several_tasks():
    scores = {"a_acc": 0.5, "a_stderr": 0.03, "a_floor": 0.5, "b_acc": 0.7, "b_stderr": 0.04, "b_floor": 0.25}
    rows = pd.DataFrame([scores | {"accuracy": 0.6}])
    assert floor_of(rows, "accuracy") == pytest.approx(0.375)
    assert floor_of(rows, "b_acc") == 0.25
    assert floor_of(rows, "energy_ratio") is None
    assert stderr_of(rows, "accuracy")[0] == pytest.approx(0.025)  # sqrt(0.03² + 0.04²) / 2
    assert stderr_of(rows, "c_acc") is None


def test_accuracy_has_no_floor_where_a_task_has_none():
    rows = pd.DataFrame({"accuracy": [0.5], "a_acc": [0.5], "a_floor": [0.5], "xsum_acc": [0.1]})
    assert floor_of(rows, "accuracy") is None
    assert floor_of(rows, "xsum_acc") is None
    assert floor_of(rows, "a_acc") == 0.5


def test_error_bars_are_standard_errors_of_scores_and_intervals_of_energies():
    rows = pd.DataFrame({
        "a_acc": [0.5, 0.7], "a_stderr": [0.03, None], "energy_j_per_token": [2.0, 4.0],
        "energy_ci95_ratio": [0.1, None], "energy_delay_product_js": [1.0, 2.0],
    })  # fmt: skip
    assert list(error_bars(rows, "a_acc")) == pytest.approx([0.03, 0.0])
    assert list(error_bars(rows, "energy_j_per_token")) == pytest.approx([0.2, 0.0])
    assert error_bars(rows, "energy_delay_product_js") is None
