"""What a search had found by when, and what it had taken until then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from greenprune.columns import Direction, column
from greenprune.energy.costs import search_cost
from greenprune.errors import ConfigError
from greenprune.pareto import hypervolume
from greenprune.results import CHANGING, TrialResult

if TYPE_CHECKING:
    from pandas import DataFrame

MOST_POINTS = 100


@dataclass(frozen=True)
class Progress:
    """After a trial: hours since the first began, kWh of all stages so far (None: not metered), trials that ended, and
    the front's hypervolume relative to the dense model.
    """

    hours: float
    kwh: float | None
    trials: int
    hypervolume: float


def search_progress(
    trials: DataFrame, results: Sequence[TrialResult], objectives: Mapping[str, Direction]
) -> list[Progress]:
    """In the order in which trials ended, at most MOST_POINTS of them; empty where no front can be measured."""
    dated = [result for result in results if result.started]
    ended = {result.trial_id: _began(result) + result.seconds for result in dated}
    ordered = sorted(dated, key=lambda result: ended[result.trial_id])
    if not ordered:
        return []
    begun = min(map(_began, ordered))
    place = {result.trial_id: rank for rank, result in enumerate(ordered)}
    ranks = trials["trial_id"].map(place)
    table = trials[_needed(trials, objectives)]
    step = max(1, len(ordered) // MOST_POINTS)
    points = []
    for count in sorted({*range(1, len(ordered) + 1, step), len(ordered)}):
        try:
            reached = hypervolume(table[ranks < count], objectives, "dense")
        except ConfigError:
            continue
        spent = search_cost(stage for result in ordered[:count] for stage in result.stages).energy_wh
        hours = (ended[ordered[count - 1].trial_id] - begun) / 3600
        points.append(Progress(hours, None if spent is None else spent / 1000, count, reached))
    return points


def _needed(trials: DataFrame, objectives: Mapping[str, Direction]) -> list[str]:
    """The columns that decide a hypervolume."""
    agree = [name for objective in objectives if (known := column(objective)) for name in known.must_agree]
    methods = [f"{key}.method" for key in CHANGING]
    wanted = dict.fromkeys(["status", *objectives, *agree, "machine_class", *methods])
    return [name for name in wanted if name in trials.columns]


def _began(result: TrialResult) -> float:
    return datetime.fromisoformat(result.started).timestamp()
