"""How far a number of the table can be trusted: standard errors, 95 % intervals, scores without knowledge.

Which columns hold them is declared with the column (columns.py); only `accuracy`, the mean over tasks, is worked out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from greenprune.columns import column, those_of

NORMAL_95 = 1.96  # standard errors in half a 95 % interval

if TYPE_CHECKING:
    from pandas import DataFrame, Series


def numbers(rows: DataFrame, metric: str) -> Any:
    """A column as an array of floats; missing is NaN."""
    return rows[metric].to_numpy(dtype="float64", na_value=float("nan"))


def floor_of(rows: DataFrame, metric: str) -> float | None:
    """The score without knowledge that belongs to `accuracy` (mean over tasks) or to a task's score, else None."""
    scores = _scores(rows, metric)
    floors = [known.floor for name in scores if (known := column(name)) and known.floor]
    if not floors or len(floors) < len(scores) or not set(floors) <= set(rows.columns):
        return None
    return None if rows[floors].isna().all().any() else float(rows[floors].mean().mean())


def stderr_of(rows: DataFrame, metric: str) -> Series | None:
    """Standard errors of `accuracy` or of a task's score; None where none were measured.

    The mean over n independent tasks has the standard error sqrt(sum of squares) / n.
    """
    declared = [known.stderr for name in _scores(rows, metric) if (known := column(name)) and known.stderr]
    errors = [name for name in declared if name in rows]
    return (rows[errors].astype("float64") ** 2).sum(axis=1, skipna=False) ** 0.5 / len(errors) if errors else None


def _scores(rows: DataFrame, metric: str) -> list[str]:
    """The scores that a metric is the mean of."""
    return those_of("<task>_acc", rows.columns) if metric == "accuracy" else [metric]


def error_bars(rows: DataFrame, metric: str) -> Any:
    """Half-widths: one standard error of a score, the 95 % interval of an energy, None where neither was measured."""
    known = column(metric)
    if known and known.ci95_ratio and known.ci95_ratio in rows:
        return numbers(rows, metric) * numbers(rows.fillna({known.ci95_ratio: 0.0}), known.ci95_ratio)
    errors = stderr_of(rows, metric)
    return None if errors is None else errors.fillna(0.0).to_numpy()


def standard_errors(rows: DataFrame, metric: str) -> Any:
    """An array of a score's or an energy's standard errors, 0 where none was measured; None where none ever was."""
    bars = error_bars(rows, metric)
    known = column(metric)
    return bars if bars is None or not (known and known.ci95_ratio) else bars / NORMAL_95
