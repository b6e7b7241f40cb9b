"""The front: drawn, and listed with what speaks for each of its trials."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from greenprune.columns import heading, shown, those_of
from greenprune.errors import ConfigError
from greenprune.paired import Difference
from greenprune.pareto import hypervolume, knee
from greenprune.report.drawing import svg
from greenprune.report.front_figure import front_figure
from greenprune.report.run import ReportedRun
from greenprune.report.tables import MISSING, Cell, PrintedColumn, label_column, meaning, trials_table
from greenprune.results import is_missing

if TYPE_CHECKING:
    from pandas import Series

OF_THE_FRONT = (
    "trial_number",
    "trial_id",
    "parameters_removed_ratio",
    "accuracy",
    "against dense",
    "<text>_ppl@<length>",
    "energy_j_per_token",
    "energy_ratio",
    "energy_wh_per_1k_requests",
    "break_even_requests",
    "energy_kind",
)
AGAINST_DENSE = "paired test of all tasks' answers to the same documents, at the 5 % level"


def gather_front(run: ReportedRun) -> dict[str, Any]:
    from markupsafe import Markup

    if run.front is None:
        return {"problem": run.problem}
    own = {"trial_id": label_column(run.labels), "break_even_requests": _break_even_column()}
    if differences := _differences(run):
        own["against dense"] = _against_dense_column(differences)
    best = knee(run.front, run.objectives)
    return {
        "problem": None,
        "objectives": list(run.objectives),
        "picture": Markup(svg(front_figure(run.trials, run.objectives))),  # matplotlib escapes its texts
        "table": trials_table(run.front, OF_THE_FRONT, own),
        "names": [run.labels[i] for i in run.front.index],
        "knee": None if best is None else run.labels[best.name],
        "hypervolume": hypervolume(run.trials, run.objectives),
        "hypervolume_dense": _hypervolume_from_dense(run),
    }


def _hypervolume_from_dense(run: ReportedRun) -> float | None:
    """None where no dense trial finished."""
    try:
        return hypervolume(run.trials, run.objectives, reference="dense")
    except ConfigError:
        return None


# ------------------------------------------------------------------------------------------ against the dense model


def _differences(run: ReportedRun) -> dict[Any, Difference]:
    """By index, how the front's trials differ from the dense model; without those whose answers aren't here."""
    assert run.front is not None, "differences are of a front's trials"
    found = {index: run.tests.against_dense(trial_id) for index, trial_id in run.front["trial_id"].items()}
    return {index: comparison.overall for index, comparison in found.items() if comparison}


def _against_dense_column(differences: Mapping[Any, Difference]) -> PrintedColumn:
    return PrintedColumn(Cell("against dense", "text", AGAINST_DENSE), lambda row: _verdict(differences.get(row.name)))


def _verdict(found: Difference | None) -> Cell:
    if found is None:
        return Cell(MISSING, "text")
    text = {"A better": "better", "B better": "worse"}.get(found.verdict, found.verdict)
    interval = "" if found.low is None else f", 95 % interval {found.low:+.3f} to {found.high:+.3f}"
    return Cell(text, "text", f"{found.difference:+.3f}{interval}, p = {found.p:.2g}, {found.documents} documents")


# ------------------------------------------------------------------------------------------------------ break-even


def _break_even_column() -> PrintedColumn:
    name = "break_even_requests"
    return PrintedColumn(Cell(heading(name), title=meaning(name)), lambda row: Cell(break_even(row)))


def break_even(row: Series) -> str:
    """The trial's own figure; where it has none, "never" for a model that was made and saves nothing.

    It isn't worked out here: only the trial knows whether all of the making was metered as the workload was.
    """
    requests, ratio = row.get("break_even_requests"), row.get("energy_ratio")
    if not is_missing(requests):
        return shown("break_even_requests", requests)
    made = any(not is_missing(row[name]) for name in those_of("<stage>_energy_wh", row.index))
    return "never" if made and not is_missing(ratio) and float(ratio) >= 1 else MISSING
