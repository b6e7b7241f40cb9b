"""The report's tables: a list of columns, and one list of cells a trial, ready to be printed.

Texts only: what is missing prints as an en dash, a score says when it can't be told from guessing. Headings, formats
and what goes with a number are those of its declaration (columns.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from greenprune.columns import column, expanded, heading, shown
from greenprune.report.uncertainty import floor_of, stderr_of
from greenprune.results import is_missing

if TYPE_CHECKING:
    from pandas import DataFrame, Series

MISSING = "–"


@dataclass(frozen=True)
class Cell:
    """What is printed, its style in the page, and what the page says where one points at it."""

    text: str
    style: str = ""
    title: str = ""


@dataclass(frozen=True)
class PrintedColumn:
    """A column of a printed table: its heading, and the cell of a row."""

    head: Cell
    cell: Callable[[Series], Cell]


@dataclass(frozen=True)
class PrintedTable:
    head: list[Cell]
    rows: list[list[Cell]]


def trials_table(trials: DataFrame, names: Sequence[str], own: Mapping[str, PrintedColumn]) -> PrintedTable:
    """The columns of these names, patterns among them included.

    own: how some are printed that the table of trials doesn't hold, or that need more than their number. A name that is
    neither there nor declared gets no column.
    """
    kept = [name for name in expanded(names, trials.columns) if name in own or _is_printed(name, trials)]
    columns = [own.get(name) or _declared(name, trials) for name in kept]
    rows = [[each.cell(row) for each in columns] for _, row in trials.iterrows()]
    return PrintedTable([each.head for each in columns], rows)


def _is_printed(name: str, trials: DataFrame) -> bool:
    """Numbers always, so that the tables of runs are alike; texts where the trials have them."""
    known = column(name)
    return known is not None and (not known.text or name in trials.columns)


def _declared(name: str, trials: DataFrame) -> PrintedColumn:
    known = column(name)
    return _text(name) if known and known.text else _number(name, trials)


def meaning(name: str) -> str:
    """What a column holds, for the page to say."""
    known = column(name)
    return known.meaning if known else ""


def _text(name: str) -> PrintedColumn:
    def cell(row: Series) -> Cell:
        return Cell(MISSING if is_missing(row.get(name)) else str(row[name]), "text")

    return PrintedColumn(Cell(heading(name), "text", meaning(name)), cell)


def _number(name: str, trials: DataFrame) -> PrintedColumn:
    """A number, a score with ± its standard error; marked where it is less than two of them above the floor."""
    floor, errors = floor_of(trials, name), stderr_of(trials, name)
    known = "" if floor is None else f" (floor {floor:.2f})"

    def cell(row: Series) -> Cell:
        value, error = row.get(name), None if errors is None else errors[row.name]
        if is_missing(value):
            return Cell(MISSING)
        spread = 0.0 if error is None or is_missing(error) else float(error)
        text = shown(name, value) + (f" ± {shown(name, spread)}" if spread else "")
        if floor is not None and float(value) <= floor + 2 * spread:
            return Cell(text, "floor", "not told apart from a model without knowledge")
        return Cell(text)

    return PrintedColumn(Cell(heading(name) + known, title=meaning(name)), cell)


def label_column(labels: Mapping[Any, str]) -> PrintedColumn:
    """The trials' short names, by index; their ids where one points at them."""
    return PrintedColumn(
        Cell(heading("trial_id"), "text"),
        lambda row: Cell(labels[row.name], "text", str(row.get("trial_id", ""))),
    )
