"""Which trials are worth having: those that no other trial beats on every objective.

Everything here takes a table of trials (`load_trials`) and objectives such as
`{"accuracy": "max", "energy_j_per_token": "min"}`. Which trials take part, and whether their numbers may be compared
at all, is comparability.py's. Dominance and hypervolume come from moocore.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from greenprune.columns import Direction, column
from greenprune.comparability import check_direction, comparable, compared_objectives, finished, values_of
from greenprune.errors import ConfigError
from greenprune.results import CHANGING, is_missing

if TYPE_CHECKING:
    import numpy as np
    from pandas import DataFrame, Series


def pareto_front(trials: DataFrame, objectives: Mapping[str, Direction], mixed: bool = False) -> DataFrame:
    """The rows that no other row dominates, best in the first objective first; index kept.

    A row dominates another if it is at least as good in every objective and better in one; so rows with
    identical objectives are on the front together. Raises ConfigError for an unknown objective, where all
    energies are contaminated, and where energies or times can't be compared (several machines, or measured with
    estimated) unless `mixed`: then energies are compared by their ratio to the dense model (see
    `compared_objectives`).
    """
    rows = comparable(trials, objectives, mixed)
    objectives = compared_objectives(trials, objectives, mixed)
    if rows.empty:
        return rows
    import moocore

    maximise = [direction == "max" for direction in objectives.values()]
    kept = rows[moocore.is_nondominated(values_of(rows, objectives), maximise=maximise, keep_weakly=True)]
    return kept.sort_values(list(objectives), ascending=[not up for up in maximise], kind="stable")


def hypervolume(
    trials: DataFrame,
    objectives: Mapping[str, Direction],
    reference: Mapping[str, float] | Literal["dense"] | None = None,
    mixed: bool = False,
) -> float:
    """The volume between the front and a reference point: larger is better, 0.0 without finished trials.

    reference None: the worst value of each objective among the finished trials, in the objectives' own units.
    It moves when trials are added, so only compare fronts over the same trials.
    reference a mapping: that point, for comparing sweeps.
    reference "dense": every objective is divided by the dense trial's and the volume is taken from
    (0 of what is maximised, 1 of what is minimised). For accuracy against energy that is the area of retained
    accuracy × saved energy: 0 saves nothing, 1 would be the dense accuracy for no energy. A perplexity counts
    as quality retained (dense / trial). It has no unit and may be compared between sweeps and machines.

    Raises ConfigError as `pareto_front`, and for a reference without an objective or a dense trial.
    """
    import moocore
    import numpy as np

    rows = comparable(trials, objectives, mixed)
    objectives = compared_objectives(trials, objectives, mixed)
    if rows.empty:
        return 0.0
    values = values_of(rows, objectives)
    maximise = np.array([direction == "max" for direction in objectives.values()])
    if isinstance(reference, str):
        if reference != "dense":
            raise ConfigError(f"reference must be a point, 'dense' or None, got {reference!r}; use one of these")
        dense = dense_row(rows)
        base = np.array([float(dense[name]) for name in objectives])
        if not np.all(base > 0):
            raise ConfigError("reference 'dense' needs a dense trial whose objectives are above 0; give a point")
        inverted = np.array([_counts_inversely(name, direction) for name, direction in objectives.items()])
        values = np.where(inverted, base / values, values / base)
        maximise = maximise | inverted
        point = np.where(maximise, 0.0, 1.0)
    elif reference is None:
        point = np.where(maximise, values.min(axis=0), values.max(axis=0))
    else:
        if missing := [name for name in objectives if name not in reference]:
            raise ConfigError(f"reference must give every objective, got none for {', '.join(missing)}; add it")
        point = np.array([float(reference[name]) for name in objectives])
    return float(moocore.hypervolume(values, ref=point, maximise=maximise.tolist()))


def _counts_inversely(name: str, direction: Direction) -> bool:
    known = column(name)
    return known is not None and known.inverse and direction == "min"


def front_probability(
    trials: DataFrame,
    objectives: Mapping[str, Direction],
    errors: Mapping[str, np.ndarray | None],
    draws: int = 500,
    seed: int = 0,
) -> Series:
    """By index, the share of `draws` in which a trial is on the front when its objectives are drawn anew.

    errors: of each objective the standard error of every row of `comparable(trials, objectives)`, None for none;
    objectives are those that are compared. Normal, and independent between trials: scores on the same documents err
    together, so that the true share lies nearer to 0 or 1. Raises ConfigError as `pareto_front`.
    """
    import moocore
    import numpy as np
    import pandas as pd

    rows = comparable(trials, objectives)
    if rows.empty:
        return pd.Series(dtype="float64")
    values = values_of(rows, objectives)
    spread = np.zeros_like(values)
    for place, name in enumerate(objectives):
        if (error := errors[name]) is not None:
            spread[:, place] = error
    maximise = [direction == "max" for direction in objectives.values()]
    random = np.random.default_rng(seed)
    drawn = (values + spread * random.standard_normal(values.shape) for _ in range(draws))
    on_front = sum(moocore.is_nondominated(one, maximise=maximise, keep_weakly=True).astype(float) for one in drawn)
    return pd.Series(on_front / draws, index=rows.index)


def knee(front: DataFrame, objectives: Mapping[str, Direction]) -> Series | None:
    """The row of a front where giving up a little of one objective stops buying much of another.

    Each objective is scaled over the front to 0 (worst) … 1 (best); the knee is the row farthest from the
    line (plane) through the extremes, on the side of the ideal point, that is, with the largest sum. On a
    front that bends away from the ideal, and among one or two rows, that is an extreme: the best in the first
    objective. None for an empty front.
    """
    if front.empty:
        return None
    import numpy as np

    signs = np.array([1.0 if direction == "max" else -1.0 for direction in objectives.values()])
    good = values_of(front, objectives) * signs
    span = good.max(axis=0) - good.min(axis=0)
    scaled = (good - good.min(axis=0)) / np.where(span > 0, span, 1.0)
    totals = scaled.sum(axis=1)
    best = np.flatnonzero(np.isclose(totals, totals.max(), rtol=0, atol=1e-12))
    first = best[np.argmax(good[best, 0])]
    return front.iloc[int(first)]


def constrained_best(
    trials: DataFrame,
    objective: str,
    direction: Direction,
    constraints: Mapping[str, tuple[Literal["<=", ">="], float]],
    mixed: bool = False,
) -> Series | None:
    """The finished trial with the best objective among those that keep every constraint; None if none does.

    Most accurate under an energy budget: `constrained_best(trials, "accuracy", "max",
    {"energy_j_per_token": ("<=", 0.5)})`. Least energy above an accuracy: `constrained_best(trials,
    "energy_j_per_token", "min", {"accuracy": (">=", 0.6)})`. Limits are in the column's unit. Equally good
    trials: the one that keeps the constraints by more. Raises ConfigError as `pareto_front`.
    """
    signs: dict[str, Direction] = {}
    for name, (sign, _) in constraints.items():
        if sign not in ("<=", ">="):
            raise ConfigError(f"a constraint on {name} must be '<=' or '>=', got {sign!r}; use one of them")
        if name != objective:
            signs[name] = "min" if sign == "<=" else "max"
    order: dict[str, Direction] = {objective: direction, **signs}
    rows = comparable(trials, order, mixed)
    for name, (sign, limit) in constraints.items():
        if not rows.empty:
            rows = rows[rows[name] <= limit] if sign == "<=" else rows[rows[name] >= limit]
    if rows.empty:
        return None
    order = compared_objectives(trials, order, mixed)
    return rows.sort_values(list(order), ascending=[d == "min" for d in order.values()], kind="stable").iloc[0]


def parse_objectives(text: str) -> dict[str, Direction]:
    """`'accuracy:max,energy_j_per_token:min'` as a mapping. Raises ConfigError for anything else."""
    objectives: dict[str, Direction] = {}
    for part in text.split(","):
        name, colon, direction = (piece.strip() for piece in part.rpartition(":"))
        if not colon or not name:
            raise ConfigError(f"an objective must be name:max or name:min, got {part.strip()!r}; e.g. accuracy:max")
        if name in objectives:
            raise ConfigError(f"objectives must name each metric once, got {name} twice; remove one")
        check_direction(name, direction)
        objectives[name] = "max" if direction == "max" else "min"
    return objectives


def dense_row(trials: DataFrame) -> Series:
    """The dense model's row: neither pruned nor healed. Raises ConfigError where no such trial finished."""
    for _, row in finished(trials).iterrows():
        methods = [row.get(f"{key}.method") for key in CHANGING]
        if "none" in methods and all(is_missing(method) or method == "none" for method in methods):
            return row
    raise ConfigError(
        "a comparison with the dense model needs its finished trial (prune.method and heal.method none), "
        "got none; mend and resume the sweep"
    )
