"""Which trials are worth having: those that no other trial beats on every objective.

Everything here takes a table of trials (`load_trials`) and objectives such as
`{"accuracy": "max", "energy_j_per_token": "min"}`. A trial takes part when it finished (`status` is ok) and
every objective is a finite number. Numbers that can't be compared share no front: measured with estimated
energies, or joules and seconds of different machines. Asked to mix them, the ratio to the dense model on the same
machine is compared instead. An energy that others' work contaminated is on no front at all. Dominance and
hypervolume come from moocore.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from greenprune.errors import ConfigError, nearest
from greenprune.results import COLUMNS, is_missing

if TYPE_CHECKING:
    import numpy as np
    from pandas import DataFrame, Series

Direction = Literal["max", "min"]
DEFAULT_OBJECTIVES: dict[str, Direction] = {"accuracy": "max", "energy_j_per_token": "min"}


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
    kept = rows[moocore.is_nondominated(_values(rows, objectives), maximise=maximise, keep_weakly=True)]
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
    values = _values(rows, objectives)
    maximise = np.array([direction == "max" for direction in objectives.values()])
    if isinstance(reference, str):
        if reference != "dense":
            raise ConfigError(f"reference must be a point, 'dense' or None, got {reference!r}; use one of these")
        dense = dense_row(rows)
        base = np.array([float(dense[name]) for name in objectives])
        if not np.all(base > 0):
            raise ConfigError("reference 'dense' needs a dense trial whose objectives are above 0; give a point")
        inverted = np.array(["_ppl@" in name and direction == "min" for name, direction in objectives.items()])
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
    good = _values(front, objectives) * signs
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
        _check_direction(name, direction)
        objectives[name] = "max" if direction == "max" else "min"
    return objectives


def dense_row(trials: DataFrame) -> Series:
    """The dense model's row: neither pruned nor healed. Raises ConfigError where no such trial finished."""
    for _, row in finished(trials).iterrows():
        if row.get("prune.method") == "none" and row.get("heal.method", "none") == "none":
            return row
    raise ConfigError(
        "a comparison with the dense model needs its finished trial (prune.method and heal.method none), "
        "got none; mend and resume the sweep"
    )


# ------------------------------------------------------------------------------------- which rows take part


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
        _check_direction(name, direction)
    rows = finished(trials)
    if rows.empty:
        return rows
    for name in objectives:
        _check_numeric(rows, name)
    if mixed:
        objectives = compared_objectives(trials, objectives, mixed)
        for name in objectives:
            _check_numeric(rows, name)
    rows = rows[np.isfinite(_values(rows, objectives)).all(axis=1)]
    rows = _uncontaminated(rows, objectives)
    if not mixed:
        _check_comparable(rows, objectives)
    return rows


def compared_objectives(
    trials: DataFrame, objectives: Mapping[str, Direction], mixed: bool = False
) -> dict[str, Direction]:
    """The objectives that a front is made of: as asked for, but where kinds or machines are `mixed` each energy's
    ratio to the dense model on the same machine. Raises ConfigError for an energy that has no such ratio.
    """
    rows = finished(trials)
    if not mixed or rows.empty or not _mixture(rows, objectives):
        return dict(objectives)
    chosen: dict[str, Direction] = {}
    for name, direction in objectives.items():
        if needs_same_kind(name) and name not in RATIOS and name not in RATIOS.values():
            raise ConfigError(
                f"trials of several kinds or machines are compared by the ratio to the dense model, got {name}, which "
                f"has none; use {nearest(name, RATIOS)}"
            )
        chosen[RATIOS.get(name, name)] = direction
    return chosen


RATIOS = {
    "energy_j_per_token": "energy_ratio",
    "energy_wh_per_1k_requests": "energy_ratio",
    "energy_j_per_prefill_token": "energy_ratio_prefill",
    "energy_j_per_decode_token": "energy_ratio_decode",
}


def needs_same_kind(name: str) -> bool:
    """Whether a metric is an energy, whose kind (measured or estimated) must agree to be compared."""
    return name.startswith(("energy_", "co2e_", "average_power")) or name.endswith("_wh")


def needs_same_machine(name: str) -> bool:
    """Whether a metric depends on the hardware it was taken on; ratios to the dense model are freed from that."""
    if name in RATIOS.values():
        return False
    times = ("_latency_s", "_tokens_per_s", "seconds")
    return needs_same_kind(name) or name.endswith(times) or name == "peak_memory_bytes"


def kind_column(name: str) -> str:
    """The column that says how an energy was had: tasks run elsewhere and otherwise than the workload."""
    return "tasks_energy_kind" if name.endswith(("_wh", "_wh_tasks")) else "energy_kind"


def _uncontaminated(rows: DataFrame, objectives: Mapping[str, Direction]) -> DataFrame:
    """Without the rows whose energy, if it is an objective, others' work contaminated."""
    kept = rows
    for column in {kind_column(name) for name in objectives if needs_same_kind(name)}:
        if column in kept.columns:
            kept = kept[kept[column].fillna("") != "contaminated"]
    if kept.empty and not rows.empty:
        raise ConfigError(
            f"an energy on a front must be of this work alone, got {len(rows)} trials, all contaminated by other work "
            "on their nodes; stop that work, delete _stages/energy below the storage and run the sweep again (all else "
            "is reused), or raise benchmark.energy.max_foreign_load"
        )
    return kept


def _mixture(rows: DataFrame, objectives: Mapping[str, Direction]) -> list[str]:
    """Which columns tell these rows apart though an objective needs them equal."""
    columns = {kind_column(name) for name in objectives if needs_same_kind(name)}
    if any(needs_same_kind(name) for name in objectives):
        columns.add("energy_scope")
    if any(needs_same_machine(name) for name in objectives):
        columns.add("machine")
    clean = rows
    for column in columns & {"energy_kind", "tasks_energy_kind"} & set(rows.columns):
        clean = clean[clean[column].fillna("") != "contaminated"]
    return sorted(column for column in columns if len(_distinct(clean, column)) > 1)


def _check_comparable(rows: DataFrame, objectives: Mapping[str, Direction]) -> None:
    mixture = _mixture(rows, objectives)
    energies = ", ".join(name for name in objectives if needs_same_kind(name))
    for column in ("energy_kind", "tasks_energy_kind", "energy_scope"):
        if column in mixture:
            found = _distinct(rows, column)
            rule = "of one scope" if column == "energy_scope" else "all measured or all estimated"
            raise ConfigError(
                f"{energies} must be {rule} to share a front, got {', '.join(found)}; keep one, e.g. "
                f"trials[trials.{column} == {found[-1]!r}], or pass mixed=True (--mixed) to compare by the ratio "
                "to the dense model"
            )
    if "machine" in mixture:
        bound = ", ".join(name for name in objectives if needs_same_machine(name))
        raise ConfigError(
            f"{bound} must come from one machine to share a front, got {', '.join(_distinct(rows, 'machine'))}; "
            "use energy_ratio:min (to the dense model on the same machine) as objective, keep one machine, "
            "e.g. trials[trials.machine == …], or pass mixed=True (--mixed), which takes that ratio"
        )


def _distinct(rows: DataFrame, column: str) -> list[str]:
    if column not in rows.columns:
        return []
    return sorted({"unknown" if is_missing(value) else str(value) for value in rows[column]})


def _check_direction(name: str, direction: Any) -> None:
    if direction not in ("max", "min"):
        raise ConfigError(f"the direction of {name} must be max or min, got {direction!r}; e.g. {name}:max")


def _check_numeric(rows: DataFrame, name: str) -> None:
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    numbers = [c for c in rows.columns if is_numeric_dtype(rows[c]) and not is_bool_dtype(rows[c]) and "." not in c]
    if name not in rows.columns:
        known = " and no trial measured it" if name in COLUMNS else ""
        raise ConfigError(f"an objective must be a metric of the trials, got {name}{known}; {nearest(name, numbers)}")
    if not is_numeric_dtype(rows[name]) or is_bool_dtype(rows[name]):
        raise ConfigError(f"an objective must be a number, got {name}, which is text; {nearest(name, numbers)}")


def _values(rows: DataFrame, objectives: Mapping[str, Direction]) -> np.ndarray:
    """Float array [rows, objectives]; missing is NaN."""
    import numpy as np

    columns = [rows[name].to_numpy(dtype="float64", na_value=float("nan")) for name in objectives]
    return np.column_stack(columns)
