"""Trials as tables in a terminal."""

from __future__ import annotations

from typing import Any

from rich.markup import escape
from rich.table import Table

# The columns that most readers look for; --csv and --json give all.
SHOWN = (
    "status",
    "parameters",
    "accuracy",
    "<task>_acc",
    "<text>_ppl@<length>",
    "energy_j_per_token",
    "energy_ratio",
    "energy_kind",
    "error",
)


def front_table(table: Any, objectives: dict[str, Any], mixed: bool = False) -> Table:
    """The front of these trials; its title says how its joules were had."""
    from greenprune.columns import kinds_of
    from greenprune.comparability import compared_objectives
    from greenprune.pareto import pareto_front

    front = pareto_front(table, objectives, mixed)
    objectives = compared_objectives(table, objectives, mixed)
    told = [name for name in kinds_of([*objectives, *SHOWN]) if name in front]
    kinds = ", ".join(sorted({kind for name in told for kind in front[name].dropna()}))
    title = f"Pareto front: {', '.join(f'{name} ({way})' for name, way in objectives.items())}"
    return table_of_trials(front, title + (f"; energies are {kinds}" if kinds else ""))


def table_of_trials(rows: Any, title: str) -> Table:
    """The trials with those of SHOWN that any of them has; the status where it isn't ok throughout."""
    from greenprune.columns import expanded, heading
    from greenprune.labels import label

    names = [name for name in expanded(SHOWN, rows.columns) if name in rows and rows[name].notna().any()]
    if "status" in names and set(rows["status"]) == {"ok"}:
        names.remove("status")
    identity = ("trial_number", "trial_id")
    heads = [*map(heading, identity), "what", *map(heading, names)]
    table = Table(*map(escape, heads), title=title)
    for _, row in rows.iterrows():
        cells = [_cell(name, row[name]) for name in names]
        table.add_row(*(_cell(name, row[name]) for name in identity), escape(label(row)), *cells)
    return table


def _cell(name: str, value: Any) -> str:
    """A value as its column is shown; what a trial says is text, never markup."""
    from greenprune.columns import shown
    from greenprune.results import is_missing

    if is_missing(value):
        return "-"
    return escape(value) if isinstance(value, str) else shown(name, value)
