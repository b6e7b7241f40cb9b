"""Break-even in the report is the trial's own figure, never one that the report worked out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from handmade_runs import ANGULAR, trial

from greenprune.report.run import read_run
from greenprune.report.sections.front import break_even, gather_front
from greenprune.results import write_trials

# Making took 3 Wh, and half of 100 Wh per 1,000 requests is saved: 60 requests, if all of it was metered alike.
KNOWN = {"prune_energy_wh": 2.0, "heal_energy_wh": 1.0, "energy_wh_per_1k_requests": 50.0, "energy_ratio": 0.5}


def test_break_even():
    row = {"heal_energy_wh": 3.0, "energy_wh_per_1k_requests": 50.0, "energy_ratio": 0.5}
    assert break_even(pd.Series(row)) == "–"  # not all of it was metered as the workload was: the trial says none
    assert break_even(pd.Series({**row, "energy_ratio": 1.1})) == "never"
    assert break_even(pd.Series({**row, "heal_energy_wh": None})) == "–"
    assert break_even(pd.Series({**row, "break_even_requests": 80.0})) == "80"
    assert break_even(pd.Series({**row, "break_even_requests": None})) == "–"  # not metered alike


def test_break_even_in_the_front_is_what_the_trials_say(tmp_path: Path):
    """A trial whose pruning was measured and whose workload is estimated says none, and so does the report."""
    unlike = KNOWN | {"prune_energy_kind": "measured", "heal_energy_kind": "estimated"}
    assert _in_the_front(tmp_path / "a", unlike) == "–", "no trial of the run has the column"
    assert _in_the_front(tmp_path / "b", unlike, break_even_of_the_dense=7.0) == "–", "another trial has it"
    alike = KNOWN | {"prune_energy_kind": "estimated", "heal_energy_kind": "estimated"}
    assert _in_the_front(tmp_path / "c", alike | {"break_even_requests": 1234.4}) == "1,234", "not the 60 of before"
    assert _in_the_front(tmp_path / "d", {"energy_wh_per_1k_requests": 50.0}) == "–", "nothing of it was metered"


def _in_the_front(folder: Path, metrics: dict[str, Any], break_even_of_the_dense: float | None = None) -> str:
    """The cell of the pruned trial of a run of two."""
    dense = trial(0, 0.8, 2.0, break_even_requests=break_even_of_the_dense)
    write_trials(folder, [dense, trial(1, 0.7, 1.0, ANGULAR, **metrics)])
    table = gather_front(read_run(folder))["table"]
    heads = [cell.text for cell in table.head]
    row = next(row for row in table.rows if row[heads.index("trial")].text == "angular 4")
    return row[heads.index("break-even")].text
