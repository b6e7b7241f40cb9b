"""Which trials take part in a comparison, and which numbers may be compared at all.

A trial takes part when it finished (`status` is ok) and every objective is a finite number. Numbers that can't be
compared share no front: measured with estimated energies, or joules and seconds of different machines. Asked to mix
them, the ratio to the dense model on the same machine is compared instead. An energy that others' work contaminated
is on no front at all. What must be equal is declared with each column (columns.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from greenprune.columns import COLUMNS, Column, Direction, column, kinds_of
from greenprune.errors import ConfigError, nearest
from greenprune.results import is_missing

if TYPE_CHECKING:
    import numpy as np
    from pandas import DataFrame


def finished(trials: DataFrame) -> DataFrame:
    """The rows of trials that ended well."""
    return trials[trials["status"] == "ok"] if "status" in trials.columns else trials


def comparable(trials: DataFrame, objectives: Mapping[str, Direction], mixed: bool = False) -> DataFrame:
    """The finished rows with a finite number for every objective, contaminated energies left out.

    With `mixed`, every objective of `compared_objectives`. Raises ConfigError as `pareto_front`.
    """
    import numpy as np

    if not objectives:
        raise ConfigError("objectives must name at least one metric, got none; e.g. accuracy:max")
    for name, direction in objectives.items():
        check_direction(name, direction)
    rows = finished(trials)
    if rows.empty:
        return rows
    for name in objectives:
        _check_numeric(rows, name)
    if mixed:
        objectives = compared_objectives(trials, objectives, mixed)
        for name in objectives:
            _check_numeric(rows, name)
    rows = rows[np.isfinite(values_of(rows, objectives)).all(axis=1)]
    rows = _uncontaminated(rows, objectives)
    if not mixed:
        _check_comparable(rows, objectives)
    return rows


def compared_objectives(
    trials: DataFrame, objectives: Mapping[str, Direction], mixed: bool = False
) -> dict[str, Direction]:
    """The objectives that a front is made of: as asked for, but where kinds or machines are `mixed` the ratio to the
    dense model on the same machine. Raises ConfigError for a number that has no such ratio.
    """
    rows = finished(trials)
    if not mixed or rows.empty:
        return dict(objectives)
    rows = _clean(rows, objectives)
    chosen: dict[str, Direction] = {}
    for name, direction in objectives.items():
        declared = column(name) or UNKNOWN
        if declared.of is None and _told_apart(rows, declared):
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


def _clean(rows: DataFrame, objectives: Iterable[str]) -> DataFrame:
    """Without the rows whose energy, if it is an objective, others' work contaminated."""
    for kind in kinds_of(objectives):
        if kind in rows.columns:
            rows = rows[rows[kind].fillna("") != "contaminated"]
    return rows


def _uncontaminated(rows: DataFrame, objectives: Mapping[str, Direction]) -> DataFrame:
    kept = _clean(rows, objectives)
    if kept.empty and not rows.empty:
        raise ConfigError(
            f"an energy on a front must be of this work alone, got {len(rows)} trials, all contaminated by other work "
            "on their nodes; stop that work, move _stages/energy below the storage elsewhere and run the sweep with "
            "--fresh (the run is kept, all else is reused), or raise benchmark.energy.max_foreign_load"
        )
    return kept


# What must agree, in words; the first that doesn't is said.
RULES = {
    "kind": "be all measured or all estimated",
    "scope": "be of one scope",
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
                    f"{bound} must {rule} to share a front, got {', '.join(found)}; keep one, e.g. "
                    f"trials[trials.{tells} == {found[-1]!r}], or compare by the ratio to the dense model on the same "
                    "machine: mixed=True (--mixed), or energy_ratio:min as objective"
                )


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


def values_of(rows: DataFrame, objectives: Mapping[str, Direction]) -> np.ndarray:
    """Float array [rows, objectives]; missing is NaN."""
    import numpy as np

    columns = [rows[name].to_numpy(dtype="float64", na_value=float("nan")) for name in objectives]
    return np.column_stack(columns)
