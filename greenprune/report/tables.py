"""The report's tables: a list of columns, and one list of cells a trial, ready to be printed.

Texts only: what is missing prints as an en dash, a score says when it can't be told from guessing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from greenprune.energy.costs import break_even_requests
from greenprune.report.plots import floor_of, stderr_of
from greenprune.results import describe, is_missing

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
    columns.append(_plain(trials, "parameters_removed_ratio", "removed", "{:.1%}"))
    columns.append(_score(trials, "accuracy", "accuracy"))
    if against_dense:
        columns.append(
            (Cell("against dense", "text", AGAINST_DENSE), lambda row: _verdict(against_dense.get(row.name)))
        )
    if full:
        tasks = [c for c in trials.columns if c.endswith("_acc") and "." not in c]
        columns += [_score(trials, task, task.removesuffix("_acc")) for task in tasks]
    columns += [_plain(trials, c, c.replace("_ppl@", " ppl@")) for c in trials.columns if "_ppl@" in c]
    columns += [
        _plain(trials, "energy_j_per_token", "J/token"),
        _plain(trials, "energy_ratio", "÷ dense", "{:.3f}"),
    ]
    if full:
        columns += [
            _plain(trials, "energy_j_per_prefill_token", "J/token prefill"),
            _plain(trials, "energy_j_per_decode_token", "J/token decode"),
            _plain(trials, "decode_tokens_per_s", "decode tokens/s"),
            _plain(trials, "peak_memory_bytes", "peak MiB", "{:,.0f}", 2**20),
        ]
    else:
        columns += [_plain(trials, "energy_wh_per_1k_requests", "Wh/1k requests")]
        columns += [(Cell("break-even", title=BREAK_EVEN), lambda row: Cell(break_even(row)))]
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


BREAK_EVEN = "requests after which collecting, pruning and healing are paid back, against the dense model"


def break_even(row: Series) -> str:
    """Requests until making the model has paid for itself; "never" for one that saves nothing."""
    ratio, a_request = (
        None if is_missing(row.get(name)) else float(row[name])
        for name in ("energy_ratio", "energy_wh_per_1k_requests")
    )
    spent = [row.get(f"{stage}_energy_wh") for stage in ("collect", "prune", "heal")]
    known = [float(energy) for energy in spent if not is_missing(energy)]
    if not known or ratio is None or a_request is None:
        return MISSING
    if ratio >= 1:
        return "never"
    requests = row.get("break_even_requests", break_even_requests(sum(known), a_request, ratio))
    return MISSING if is_missing(requests) else f"{float(requests):,.0f}"


def _plain(
    trials: DataFrame, column: str, title: str, pattern: str = "{:.4g}", unit: float = 1.0
) -> tuple[Cell, Callable[[Series], Cell]]:
    def make(row: Series) -> Cell:
        value = row.get(column)
        return Cell(MISSING if is_missing(value) else number(float(value) / unit, pattern))

    return Cell(title, title=describe(column)[1]), make


def _score(trials: DataFrame, column: str, title: str) -> tuple[Cell, Callable[[Series], Cell]]:
    """A score ± its standard error; marked where it is less than two of them above the floor."""
    floor, errors = floor_of(trials, column), stderr_of(trials, column)
    known = "" if floor is None else f" (floor {floor:.2f})"

    def make(row: Series) -> Cell:
        value, error = row.get(column), None if errors is None else errors[row.name]
        if is_missing(value):
            return Cell(MISSING)
        spread = 0.0 if error is None or is_missing(error) else float(error)
        text = f"{float(value):.3f}" + (f" ± {spread:.3f}" if spread else "")
        if floor is not None and float(value) <= floor + 2 * spread:
            return Cell(text, "floor", "not told apart from a model without knowledge")
        return Cell(text)

    return Cell(title + known, title=describe(column)[1]), make


def _or_missing(value: Any) -> Any:
    return MISSING if is_missing(value) else value
