"""The report's tables: a list of columns, and one list of cells a trial, ready to be printed.

Texts only: what is missing prints as an en dash, a score says when it can't be told from guessing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from greenprune.columns import column, heading, shown, those_of
from greenprune.config import STAGES
from greenprune.report.plots import floor_of, stderr_of
from greenprune.results import is_missing

if TYPE_CHECKING:
    from pandas import DataFrame, Index, Series

    from greenprune.paired import Difference

MISSING = "–"


@dataclass(frozen=True)
class Cell:
    text: str
    style: str = ""
    title: str = ""


@dataclass(frozen=True)
class Table:
    head: list[Cell]
    rows: list[list[Cell]]


def meaning(name: str) -> str:
    known = column(name)
    return known.meaning if known else ""


def number(value: Any, pattern: str = "{:.4g}") -> str:
    return MISSING if is_missing(value) else pattern.format(float(value))


def trials_table(
    trials: DataFrame,
    names: Mapping[Any, str],
    on_front: Index | None = None,
    full: bool = True,
    against_dense: Mapping[Any, Difference] | None = None,
) -> Table:
    """Identity, size, scores with floors, perplexity, speed, energy; without `full` the essential ones.

    `names` gives each index its trial's label; `on_front` adds a column that marks those indices,
    `against_dense` one that says whether an index's accuracy can be told from the dense model's.
    """
    columns: list[tuple[Cell, Callable[[Series], Cell]]] = [
        (Cell("#"), lambda row: Cell(number(row.get("trial_number"), "{:.0f}"))),
        (Cell("trial", "text"), lambda row: Cell(names[row.name], "text", str(row.get("trial_id", "")))),
    ]
    if on_front is not None:
        columns.append((Cell("front"), lambda row: Cell("●" if row.name in on_front else "", "mark")))
    columns += [_plain("parameters_removed_ratio"), _score(trials, "accuracy")]
    if against_dense:
        columns.append(
            (Cell("against dense", "text", AGAINST_DENSE), lambda row: _verdict(against_dense.get(row.name)))
        )
    if full:
        columns += [_score(trials, name) for name in those_of("<task>_acc", trials)]
    columns += [_plain(name) for name in those_of("<text>_ppl@<length>", trials)]
    columns += [_plain("energy_j_per_token"), _plain("energy_ratio")]
    if full:
        columns += [_plain("energy_j_per_prefill_token"), _plain("energy_j_per_decode_token")]
        columns += [_plain("decode_tokens_per_s"), _plain("peak_memory_bytes")]
    else:
        columns.append(_plain("energy_wh_per_1k_requests"))
        columns.append(
            (
                Cell(heading("break_even_requests"), title=meaning("break_even_requests")),
                lambda row: Cell(break_even(row)),
            )
        )
    if "energy_kind" in trials:
        columns.append((Cell("kind", "text"), lambda row: Cell(str(_or_missing(row["energy_kind"])), "text")))
    rows = [[make(row) for _, make in columns] for _, row in trials.iterrows()]
    return Table([head for head, _ in columns], rows)


AGAINST_DENSE = "paired test of all tasks' answers to the same documents, at the 5 % level"


def _verdict(found: Difference | None) -> Cell:
    if found is None:
        return Cell(MISSING, "text")
    text = {"A better": "better", "B better": "worse"}.get(found.verdict, found.verdict)
    interval = "" if found.low is None else f", 95 % interval {found.low:+.3f} to {found.high:+.3f}"
    return Cell(text, "text", f"{found.difference:+.3f}{interval}, p = {found.p:.2g}, {found.documents} documents")


def break_even(row: Series) -> str:
    """Requests until making the model has paid for itself; "never" for one that saves nothing."""
    requests, ratio = row.get("break_even_requests"), row.get("energy_ratio")
    if not is_missing(requests):
        return shown("break_even_requests", float(requests))
    made = any(not is_missing(row.get(f"{name}_energy_wh")) for name in STAGES)
    return "never" if made and not is_missing(ratio) and float(ratio) >= 1 else MISSING


def _plain(name: str) -> tuple[Cell, Callable[[Series], Cell]]:
    def make(row: Series) -> Cell:
        value = row.get(name)
        return Cell(MISSING if is_missing(value) else shown(name, float(value)))

    return Cell(heading(name), title=meaning(name)), make


def _score(trials: DataFrame, name: str) -> tuple[Cell, Callable[[Series], Cell]]:
    """A score ± its standard error; marked where it is less than two of them above the floor."""
    floor, errors = floor_of(trials, name), stderr_of(trials, name)
    known = "" if floor is None else f" (floor {floor:.2f})"

    def make(row: Series) -> Cell:
        value, error = row.get(name), None if errors is None else errors[row.name]
        if is_missing(value):
            return Cell(MISSING)
        spread = 0.0 if error is None or is_missing(error) else float(error)
        text = f"{float(value):.3f}" + (f" ± {spread:.3f}" if spread else "")
        if floor is not None and float(value) <= floor + 2 * spread:
            return Cell(text, "floor", "not told apart from a model without knowledge")
        return Cell(text)

    return Cell(heading(name) + known, title=meaning(name)), make


def _or_missing(value: Any) -> Any:
    return MISSING if is_missing(value) else value
