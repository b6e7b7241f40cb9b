"""Several runs on one page: each against its own dense model, never the joules of one against another's.

Only ratios to a run's own dense model stand beside each other, each with how its joules were had.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from greenprune.columns import CONTAMINATED, shown
from greenprune.comparability import finished
from greenprune.errors import ConfigError
from greenprune.pareto import dense_row, knee
from greenprune.report.drawing import svg
from greenprune.report.family_figure import family_figure
from greenprune.report.run import ReportedRun, distinct
from greenprune.report.tables import MISSING, Cell, PrintedTable
from greenprune.results import is_missing

if TYPE_CHECKING:
    from pandas import Series

_HEAD = ("run", "model", "parameters", "finished", "dense", "knee", "accuracy ÷ dense", "energy ÷ dense", "kind")


def gather_family(run: ReportedRun) -> dict[str, Any] | None:
    if not run.beside:
        return None
    from markupsafe import Markup

    runs = (run, *run.beside)
    picture, problem = None, None
    try:
        picture = Markup(svg(family_figure({one.path: one.trials for one in runs}, "accuracy")))
    except ConfigError as refusal:
        problem = str(refusal)
    head = [Cell(name, "text" if name in ("run", "model", "knee", "kind") else "") for name in _HEAD]
    return {"picture": picture, "problem": problem, "table": PrintedTable(head, [_row(one) for one in runs])}


def _row(run: ReportedRun) -> list[Cell]:
    """A run's dense model, and the knee of its front against it."""
    dense: Series | None = None
    with suppress(ConfigError):
        dense = dense_row(run.trials)
    best = None if run.front is None else knee(run.front, run.objectives)
    kind = None if best is None else best.get("energy_kind")
    clean = kind is not None and not is_missing(kind) and kind != CONTAMINATED
    return [
        Cell(run.name, "text", run.path),
        Cell(", ".join(distinct(run.trials, "model.id")) or MISSING, "text"),
        Cell(_number("parameters", dense)),
        Cell(f"{len(finished(run.trials))} of {len(run.trials)}"),
        Cell(_number("accuracy", dense)),
        Cell(MISSING if best is None else run.labels[best.name], "text"),
        Cell(_ratio("accuracy", best, dense)),
        Cell(_number("energy_ratio", best) if clean else MISSING),
        Cell(str(kind) if clean else MISSING, "text"),
    ]


def _number(name: str, row: Series | None) -> str:
    return MISSING if row is None or is_missing(row.get(name)) else shown(name, row[name])


def _ratio(name: str, row: Series | None, dense: Series | None) -> str:
    if row is None or dense is None or is_missing(row.get(name)) or is_missing(dense.get(name)) or not dense[name]:
        return MISSING
    return f"{row[name] / dense[name]:.1%}"
