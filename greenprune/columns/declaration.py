"""What the table of columns says of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Direction = Literal["max", "min"]
CONTAMINATED = "contaminated"  # the kind of joules that others' work is in: they take part in nothing
DEFAULT_OBJECTIVES: dict[str, Direction] = {"accuracy": "max", "energy_j_per_token": "min"}


@dataclass(frozen=True)
class Column:
    """What a column holds, and what may be done with it.

    title, phrase: its name in the heading of a table, and on an axis or in a sentence; None: its name itself.
    better: where an objective should push it; None: it is none. needs: the dotted configuration key without which no
    trial has it. kind, scope, engine, concurrency, machine: the columns that say how its joules were had, what they are
    of, what served, how many requests were in flight, and on which hardware the number was taken; two numbers are
    compared only where these are equal. ratio: the column that compares them all the same. of: of a ratio, the column
    that is divided by the dense model's on the same machine. stderr, ci95_ratio, floor: the columns of its standard
    error, of its relative 95 % interval, of the score without knowledge. inverse: against the dense model it counts as
    dense / trial. at_each: `name@8` is the same at 8 requests in flight. batches: only engines that measure prefill and
    decode apart give it. shown, scale: its format in a table, after division by scale.
    """

    meaning: str
    unit: str = ""
    title: str | None = None
    phrase: str | None = None
    better: Direction | None = None
    needs: str | None = None
    kind: str | None = None
    scope: str | None = None
    machine: str | None = None
    engine: str | None = None
    concurrency: str | None = None
    ratio: str | None = None
    of: str | None = None
    stderr: str | None = None
    ci95_ratio: str | None = None
    floor: str | None = None
    inverse: bool = False
    at_each: bool = False
    batches: bool = False
    text: bool = False
    shown: str = "{:.4g}"
    scale: float = 1.0

    @property
    def must_agree(self) -> tuple[str, ...]:
        """The columns that must be equal for two of its numbers to be compared."""
        told = (self.kind, self.scope, self.engine, self.concurrency, self.machine)
        return tuple(name for name in told if name)
