"""Which trials take part in a comparison, and which numbers may be compared at all.

A trial takes part when it finished (`status` is ok) and every objective is a finite number. Numbers that can't be
compared share no front: measured with estimated energies, or joules and seconds of different machines. Asked to mix
them, the ratio to the dense model on the same machine is compared instead; of several cards of one class it is without
being asked. An energy that others' work contaminated is on no front at all. What must be equal is declared with each
column (columns.py). An optimiser is told what a front would take (CommonFront).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from greenprune.columns import COLUMNS, CONTAMINATED, Column, Direction, column, kinds_of
from greenprune.energy.machine import machine_class_of
from greenprune.errors import ConfigError, nearest
from greenprune.results import is_missing

if TYPE_CHECKING:
    import numpy as np
    from pandas import DataFrame

log = logging.getLogger("greenprune")


def finished(trials: DataFrame) -> DataFrame:
    """The rows of trials that ended well."""
    return trials[trials["status"] == "ok"] if "status" in trials.columns else trials


def comparable(trials: DataFrame, objectives: Mapping[str, Direction], mixed: bool = False) -> DataFrame:
    """The finished rows with a finite number for every one of `compared_objectives`, contaminated energies left out.

    Raises ConfigError as `pareto_front`.
    """
    if not objectives:
        raise ConfigError("objectives must name at least one metric, got none; e.g. accuracy:max")
    for name, direction in objectives.items():
        check_direction(name, direction)
    rows = finished(trials)
    if rows.empty:
        return rows
    for name in objectives:
        _check_numeric(rows, name)
    objectives = compared_objectives(trials, objectives, mixed)
    for name in objectives:
        _check_numeric(rows, name)
    rows = _uncontaminated(_measured(rows, objectives), objectives)
    if not mixed:
        _check_comparable(rows, objectives)
    return rows


def compared_objectives(
    trials: DataFrame, objectives: Mapping[str, Direction], mixed: bool = False
) -> dict[str, Direction]:
    """The objectives that a front is made of: as asked for, but where kinds or machines are `mixed` the ratio to the
    dense model on the same machine, and so it is of several cards of one class. Raises ConfigError for a number that
    has no such ratio, where trials are mixed.
    """
    rows = _clean(finished(trials), objectives)
    if rows.empty or not set(objectives) <= set(rows.columns):
        return dict(objectives)
    if not mixed:
        rows = _measured(rows, objectives)
    chosen: dict[str, Direction] = {}
    for name, direction in objectives.items():
        declared = column(name) or UNKNOWN
        apart = _told_apart(rows, declared) if declared.of is None else []
        if apart and (mixed or _are_cards(rows, declared, apart)):
            if declared.ratio is None:
                with_ratio = [known for known, entry in COLUMNS.items() if entry.ratio]
                raise ConfigError(
                    f"trials of several kinds or machines are compared by the ratio to the dense model, got {name}, "
                    f"which has none; use {nearest(name, with_ratio)}"
                )
            name = declared.ratio
        chosen[name] = direction
    return chosen


UNKNOWN = Column("a metric that no column declares")


def _told_apart(rows: DataFrame, declared: Column) -> list[str]:
    """Which of the columns that must be equal for this one aren't."""
    return [name for name in declared.must_agree if len(_distinct(rows, name)) > 1]


def _are_cards(rows: DataFrame, declared: Column, apart: list[str]) -> bool:
    """Whether nothing but the card differs, and a ratio compares these numbers all the same."""
    if apart != ["machine"] or declared.ratio not in rows:
        return False
    return _classes(rows) == 1


def _classes(rows: DataFrame) -> int:
    """How many classes of hardware these trials ran on."""
    return len({machine_class_of(row) for row in rows.to_dict("records")})


def _measured(rows: DataFrame, objectives: Iterable[str]) -> DataFrame:
    """The rows in which every objective is a finite number."""
    import numpy as np

    return rows[np.isfinite(values_of(rows, objectives)).all(axis=1)]


def _clean(rows: DataFrame, objectives: Iterable[str]) -> DataFrame:
    """Without the rows whose energy, if it is an objective, others' work contaminated."""
    for kind in kinds_of(objectives):
        if kind in rows.columns:
            rows = rows[rows[kind].fillna("") != CONTAMINATED]
    return rows


def _uncontaminated(rows: DataFrame, objectives: Mapping[str, Direction]) -> DataFrame:
    kept = _clean(rows, objectives)
    if kept.empty and not rows.empty:
        raise ConfigError(
            f"an energy on a front must be of this work alone, got {len(rows)} trials, all contaminated by other work "
            "on their nodes; stop that work and run the sweep again with --fresh (these energies are measured again, "
            "all else is reused, the old run is kept), or raise benchmark.energy.max_foreign_load"
        )
    return kept


# What must agree, in words; the first that doesn't is said.
RULES = {
    "kind": "be all measured or all estimated",
    "scope": "be of one scope",
    "engine": "be served by one engine",
    "concurrency": "have as many requests in flight",
    "machine": "come from one machine",
}


def _check_comparable(rows: DataFrame, objectives: Mapping[str, Direction]) -> None:
    declared = {name: column(name) or UNKNOWN for name in objectives}
    for role, rule in RULES.items():
        for tells in dict.fromkeys(getattr(entry, role) for entry in declared.values()):
            found = _distinct(rows, tells) if tells else []
            if len(found) > 1:
                bound = ", ".join(name for name, entry in declared.items() if getattr(entry, role) == tells)
                raise ConfigError(
                    f"{bound} must {rule} to share a front, got {', '.join(found)}{_of_one_class(rows, tells)}; keep "
                    f"one, e.g. trials[trials.{tells} == {found[-1]!r}], or compare by the ratio to the dense model on "
                    "the same machine: mixed=True (--mixed), or energy_ratio:min as objective"
                )


def _of_one_class(rows: DataFrame, tells: str) -> str:
    if tells != "machine" or _classes(rows) > 1:
        return ""
    return " (cards of one class, each a machine of its own)"


def _distinct(rows: DataFrame, name: str) -> list[str]:
    if name not in rows.columns:
        return []
    return sorted({"unknown" if is_missing(value) else str(value) for value in rows[name]})


def check_direction(name: str, direction: Any) -> None:
    if direction not in ("max", "min"):
        raise ConfigError(f"the direction of {name} must be max or min, got {direction!r}; e.g. {name}:max")


def _check_numeric(rows: DataFrame, name: str) -> None:
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    numbers = [c for c in rows.columns if is_numeric_dtype(rows[c]) and not is_bool_dtype(rows[c]) and "." not in c]
    if name not in rows.columns:
        known = " and no trial measured it" if column(name) else ""
        raise ConfigError(f"an objective must be a metric of the trials, got {name}{known}; {nearest(name, numbers)}")
    if not is_numeric_dtype(rows[name]) or is_bool_dtype(rows[name]):
        raise ConfigError(f"an objective must be a number, got {name}, which is text; {nearest(name, numbers)}")


def values_of(rows: DataFrame, objectives: Iterable[str]) -> np.ndarray:
    """Float array [rows, objectives]; missing is NaN."""
    import numpy as np

    columns = [rows[name].to_numpy(dtype="float64", na_value=float("nan")) for name in objectives]
    return np.column_stack(columns)


# --------------------------------------------------------------------------------------- what an optimiser is told


def reported(metrics: Mapping[str, Any], objectives: Iterable[str]) -> dict[str, Any]:
    """Of a trial's metrics, what `CommonFront` judges by: finite objectives, and what must agree or compares them."""
    told: dict[str, Any] = {}
    for name in objectives:
        declared = column(name) or UNKNOWN
        names = (name, *declared.must_agree, declared.ratio or "", "machine_class" if declared.machine else "")
        told |= {each: metrics[each] for each in names if metrics.get(each) is not None}
    return {name: value for name, value in told.items() if not isinstance(value, float) or math.isfinite(value)}


class CommonFront:
    """Decides which numbers an optimiser may be told: those that would share a front with the ones it knows.

    Nothing contaminated is told, and nothing whose kind, scope or machine isn't that of the first trial that counted.
    Another card of its class is told by the ratio to the dense model, in units of the first card: what that model
    would take there. `accept` gives the objectives of one trial that may be told.
    """

    def __init__(self, objectives: Iterable[str]) -> None:
        self.objectives = tuple(objectives)
        self.first: dict[str, Any] | None = None
        self._said: set[tuple[str, str]] = set()

    def accept(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        values = {name: self._value(name, metrics) for name in self.objectives}
        told = {name: value for name, value in values.items() if value is not None}
        if self.first is None and len(told) == len(self.objectives):
            self.first = reported(metrics, self.objectives)
        return told

    def _value(self, name: str, metrics: Mapping[str, Any]) -> float | None:
        value, declared = metrics.get(name), column(name) or UNKNOWN
        if not isinstance(value, int | float) or not math.isfinite(value):
            return None
        if declared.kind and metrics.get(declared.kind) == CONTAMINATED:
            return None
        first = metrics if self.first is None else self.first
        apart = [tells for tells in declared.must_agree if metrics.get(tells) != first.get(tells)]
        if not apart:
            return value
        if apart == ["machine"] and machine_class_of(metrics) == machine_class_of(first) and declared.ratio:
            ratio, of_first = metrics.get(declared.ratio), first.get(declared.ratio)
            if ratio and of_first:
                return float(ratio * first[name] / of_first)
        self._say(name, apart[0], metrics.get(apart[0]), first.get(apart[0]))
        return None

    def _say(self, name: str, tells: str, got: Any, known: Any) -> None:
        if (name, tells) not in self._said:
            self._said.add((name, tells))
            remedy = f"; search by {ratio}" if (ratio := (column(name) or UNKNOWN).ratio) else ""
            log.warning("the search isn't told of a %s whose %s is %s, not %s%s", name, tells, got, known, remedy)
