"""Every column of the table of trials, declared once.

README's and `greenprune columns`' tables, the check of objectives, what may share a front, and the headings of the
report and the terminal are computed from COLUMNS. A name with `<task>`, `<text>`, … is a pattern: it stands for one
column a task, a text, …, and so do the names of other columns in its declaration.

    column("piqa_acc").floor        # "piqa_floor"
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import fields, replace
from typing import Any

from greenprune.columns.declaration import CONTAMINATED, DEFAULT_OBJECTIVES, Column, Direction
from greenprune.columns.table import COLUMNS, MAIN

__all__ = [
    "COLUMNS",
    "CONTAMINATED",
    "DEFAULT_OBJECTIVES",
    "MAIN",
    "Column",
    "Direction",
    "column",
    "expanded",
    "heading",
    "kinds_of",
    "markdown",
    "parts_of",
    "pattern_of",
    "phrase",
    "shown",
    "those_of",
]

# What a name that stands for many may be; other names are any text.
NAMES = {"stage": r"[a-z0-9]+", "section": r"\w+", "length": r"\d+", "n": r"\w+", "requests": r"\d+"}
NAMES["workload"] = "|".join(name for name, declared in COLUMNS.items() if declared.at_each)
AT_EACH = "<workload>@<requests>"
SAID = ("meaning", "unit", "title", "phrase", "shown")  # what a declaration says in words


@functools.lru_cache(maxsize=4096)
def column(name: str) -> Column | None:
    """The declaration of a column, by its name; of a pattern's with the names filled in. None for an unknown one."""
    if name in COLUMNS:
        return COLUMNS[name]
    pattern = pattern_of(name)
    if pattern == AT_EACH:
        parts = parts_of(name)
        return _at(COLUMNS[parts["workload"]], parts["requests"])
    return _filled_in(COLUMNS[pattern], parts_of(name)) if pattern else None


@functools.lru_cache(maxsize=4096)
def pattern_of(name: str) -> str | None:
    """The pattern that a name stands for, the first declared of several: `piqa_acc` for `<task>_acc`."""
    if name in COLUMNS:
        return None
    return next((known for known in COLUMNS if "<" in known and re.fullmatch(_expression(known), name)), None)


def parts_of(name: str) -> dict[str, str]:
    """What a name fills into its pattern: `piqa_acc` gives `{"task": "piqa"}`. Empty for a name of its own."""
    pattern = pattern_of(name)
    found = re.fullmatch(_expression(pattern), name) if pattern else None
    return found.groupdict() if found else {}


@functools.cache
def _expression(pattern: str) -> str:
    """`<task>_acc` as a regular expression with a group a name."""
    parts = re.split(r"<(\w+)>", pattern)
    return "".join(f"(?P<{part}>{NAMES.get(part, '.+')})" if i % 2 else re.escape(part) for i, part in enumerate(parts))


def _filled_in(declared: Column, names: dict[str, str]) -> Column:
    """The column with the names in its title and its meaning, and in those of other columns that it names."""

    def fill(text: str) -> str:
        return re.sub(r"<(\w+)>", lambda found: names.get(found[1], found[0]), text)

    texts = {item.name: getattr(declared, item.name) for item in fields(declared)}
    filled: dict[str, Any] = {name: fill(text) for name, text in texts.items() if isinstance(text, str)}
    return replace(declared, **filled)


def _at(declared: Column, requests: str) -> Column:
    """The declaration of a column with so many requests in flight: what it names is so too, where there is such."""
    named = {item.name: getattr(declared, item.name) for item in fields(declared)}
    others: dict[str, Any] = {
        name: f"{value}@{requests}"
        for name, value in named.items()
        if isinstance(value, str) and name not in SAID and value in COLUMNS and COLUMNS[value].at_each
    }
    title = None if declared.title is None else f"{declared.title} @{requests}"
    phrase = None if declared.phrase is None else f"{declared.phrase}, {requests} requests in flight"
    meaning = f"{declared.meaning}, with {requests} requests in flight"
    return replace(declared, meaning=meaning, title=title, phrase=phrase, at_each=False, **others)


def those_of(pattern: str, names: Iterable[Any]) -> list[str]:
    """Those of `names` that stand for `pattern`: `<task>_acc` has `piqa_acc`, `boolq_acc`, …"""
    return [str(name) for name in names if pattern_of(str(name)) == pattern]


def expanded(names: Iterable[str], present: Iterable[Any]) -> list[str]:
    """These names, each pattern among them replaced by those of `present` that stand for it."""
    present = list(present)
    return [one for name in names for one in (those_of(name, present) if "<" in name else [name])]


def kinds_of(names: Iterable[str]) -> list[str]:
    """The columns that say how the joules of these columns were had, each once."""
    return list(dict.fromkeys(found.kind for name in names if (found := column(name)) and found.kind))


def heading(name: str) -> str:
    """A column's name in the heading of a table."""
    found = column(name)
    return found.title if found and found.title else name.replace("_", " ")


def phrase(name: str) -> str:
    """A column's name on an axis or in a sentence."""
    found = column(name)
    return found.phrase if found and found.phrase else name.replace("_", " ")


def shown(name: str, value: float) -> str:
    """A number of a column as its table shows it."""
    found = column(name) or Column("")
    return found.shown.format(float(value) / found.scale)


def markdown(names: Iterable[str] = tuple(COLUMNS)) -> str:
    """The table of these columns, as Markdown."""
    rows = [f"| `{name}` | {COLUMNS[name].unit} | {COLUMNS[name].meaning} |" for name in names]
    return "\n".join(["| column | unit | meaning |", "|---|---|---|", *rows]) + "\n"
