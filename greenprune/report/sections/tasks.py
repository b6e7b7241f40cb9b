"""Accuracy by task of the dense model and of the front: every task, their mean, its ratio to the dense model's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from greenprune.columns import those_of
from greenprune.comparability import finished
from greenprune.errors import ConfigError
from greenprune.pareto import dense_row
from greenprune.report.run import ReportedRun
from greenprune.report.tables import MISSING, Cell, PrintedColumn, label_column, trials_table
from greenprune.results import is_missing

if TYPE_CHECKING:
    from pandas import Series

OF_TASKS = ("trial_id", "<task>_acc", "accuracy", "ratio", "<task>_wh", "energy_wh_tasks")


def gather_tasks(run: ReportedRun) -> dict[str, Any] | None:
    rows = finished(run.trials)
    if not those_of("<task>_acc", rows.columns) or rows["accuracy"].isna().all():
        return None
    try:
        dense: Series | None = dense_row(run.trials)
    except ConfigError:
        dense = None
    on_front = [] if run.front is None else list(run.front.index)
    chosen = dict.fromkeys([*([] if dense is None else [dense.name]), *on_front]) or rows.index
    own = {"trial_id": label_column(run.labels), "ratio": _ratio(dense)}
    return {"table": trials_table(rows.loc[list(chosen)], OF_TASKS, own)}


def _ratio(dense: Series | None) -> PrintedColumn:
    def cell(row: Series) -> Cell:
        if dense is None or is_missing(row["accuracy"]) or is_missing(dense["accuracy"]) or not dense["accuracy"]:
            return Cell(MISSING)
        return Cell(f"{row['accuracy'] / dense['accuracy']:.1%}")

    return PrintedColumn(Cell("ratio", title="mean over tasks / the dense model's"), cell)
