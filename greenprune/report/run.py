"""The run that a report is of: what its sections take from, read once."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from greenprune.columns import DEFAULT_OBJECTIVES, Direction
from greenprune.comparability import compared_objectives
from greenprune.errors import ConfigError
from greenprune.experiment import read_yaml
from greenprune.labels import labels
from greenprune.pareto import pareto_front
from greenprune.report.paired_tests import PairedTests
from greenprune.results import TrialResult, load_trials, locate_run, read_results
from greenprune.storage import Storage

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class ReportedRun:
    """A run with its front; objectives are those that it is made of.

    path: as the user named it. labels: each trial's short name, by the table's index. front: the trials on it, None
    where there can't be one, and then `problem` says why. beside: other runs on the same page.
    """

    path: str
    storage: Storage
    name: str
    trials: DataFrame
    labels: Mapping[Any, str]
    objectives: Mapping[str, Direction]
    front: DataFrame | None
    problem: str | None = None
    beside: tuple[ReportedRun, ...] = ()

    @property
    def folder(self) -> Path:
        return self.storage.local / self.name

    @functools.cached_property
    def results(self) -> Sequence[TrialResult]:
        """Every trial as it was written, by number."""
        self.pull("trials")
        return read_results(self.folder)

    @functools.cached_property
    def tests(self) -> PairedTests:
        return PairedTests(self.storage, self.results)

    def pull(self, file: str) -> bool:
        """Fetch a file or a folder of the run where it is kept elsewhere; whether it is here."""
        return self.storage.pull(f"{self.name}/{file}")


def read_run(
    path: str | Path, objectives: Mapping[str, Direction] | None = None, beside: Sequence[str | Path] = ()
) -> ReportedRun:
    """The run and its front; `objectives` default to the sweep's own.

    Raises ConfigError where there are no trials or the given objectives have no front.
    """
    storage, name = locate_run(path)
    trials = load_trials(path)
    chosen = objectives or _sweep_objectives(storage, name)
    front, problem = None, None
    try:
        front = pareto_front(trials, chosen)
        chosen = compared_objectives(trials, chosen)
    except ConfigError as refusal:
        if objectives:
            raise
        problem = str(refusal)
    names = dict(zip(trials.index, labels(trials), strict=True))
    others = tuple(map(read_run, beside))
    return ReportedRun(str(path), storage, name, trials, names, chosen, front, problem, others)


def _sweep_objectives(storage: Storage, name: str) -> Mapping[str, Direction]:
    if not storage.pull(f"{name}/config.yaml"):
        return DEFAULT_OBJECTIVES
    sweep = read_yaml(storage.local / name / "config.yaml").get("sweep") or {}
    return sweep.get("objectives") or DEFAULT_OBJECTIVES


def distinct(rows: DataFrame, name: str) -> list[str]:
    """The different values of a column, as text; none where there is no such column."""
    return [str(value) for value in rows[name].dropna().unique()] if name in rows else []
