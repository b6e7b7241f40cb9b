"""Experiment trackers, told through Ray's own callbacks: a run of theirs for each trial, under our columns' names.

A configuration is a tracker's parameters, numbers its metrics (at the trial's number as step), text its tags.
They are told by a thread, so that a slow server keeps no trial waiting; one that fails loses its record, not the sweep.
Of a run that is gone on with they hear what ends from then on, and the front of all its trials.

    sweep: {track: [tensorboard, mlflow]}
"""

from __future__ import annotations

import logging
import math
import re
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from greenprune.config.track import TRACKERS, TrackerName
from greenprune.errors import SweepError
from greenprune.results import TrialResult
from greenprune.sweep.run_folder import RunFolder

log = logging.getLogger("greenprune")
FAILURES = 3  # in a row, after which a tracker is told no more


@dataclass(eq=False)
class TrackedTrial:
    """A trial as Ray's callbacks look at one. config: dotted keys; local_path: what it may write goes there."""

    name: str
    config: dict[str, Any]
    trial_id: str
    local_path: str
    experiment_dir_name: str

    @property
    def evaluated_params(self) -> dict[str, Any]:
        return self.config

    def init_local_path(self) -> None:
        Path(self.local_path).mkdir(parents=True, exist_ok=True)

    def __str__(self) -> str:
        return self.name


class Trackers:
    """Tells each tracker of a run's trials. Raises SweepError where one can't be opened."""

    def __init__(self, names: Sequence[TrackerName], run: RunFolder) -> None:
        self.run = run
        self.callbacks = {name: _opened(name, run) for name in names}
        self.failures = dict.fromkeys(self.callbacks, 0)
        self.trials: dict[tuple[str, str], TrackedTrial] = {}
        self.thread = ThreadPoolExecutor(1, "trackers")

    def started(self, result: TrialResult) -> None:
        """result: of a trial that begins, with its configuration."""
        for name in self.callbacks:
            self._tell(name, self._start, name, result)

    def ended(self, result: TrialResult) -> None:
        for name in self.callbacks:
            self._tell(name, self._end, name, result)

    def close(self, front: Collection[str] | None) -> None:
        """Wait for all that is to be told. front: the ids of the trials on it; None where there is none to name."""
        for name, callback in self.callbacks.items():
            if hasattr(callback, "tell_front"):
                self._tell(name, callback.tell_front, front)
            self._tell(name, callback.on_experiment_end, [])
        self.thread.shutdown(wait=True)

    def _start(self, name: TrackerName, result: TrialResult) -> TrackedTrial:
        folder = self.run.path / name / result.trial_id
        unique = f"{result.trial_id}-{uuid.uuid4().hex[:8]}"  # ours is the same wherever that configuration runs
        trial = TrackedTrial(result.trial_id, parameters(result), unique, str(folder), self.run.name)
        self.callbacks[name].log_trial_start(trial)
        self.trials[name, result.trial_id] = trial
        return trial

    def _end(self, name: TrackerName, result: TrialResult) -> None:
        trial = self.trials.pop((name, result.trial_id), None) or self._start(name, result)
        told = {"training_iteration": result.number, "config": tags(result), **metrics(result)}
        self.callbacks[name].log_trial_result(result.number, trial, told)
        self.callbacks[name].log_trial_end(trial, failed=result.status == "failed")
        if Path(trial.local_path).exists():
            self.run.storage.push(f"{self.run.name}/{name}/{result.trial_id}")

    def _tell(self, name: TrackerName, tell: Callable[..., Any], *what: Any) -> None:
        def told() -> None:
            if self.failures[name] >= FAILURES:
                return
            try:
                tell(*what)
                self.failures[name] = 0
            except Exception as problem:
                self.failures[name] += 1
                rest = "; it is told no more" if self.failures[name] == FAILURES else ""
                log.warning("%s isn't told: %s%s", name, without_passwords(problem), rest)

        self.thread.submit(told)


def _opened(name: TrackerName, run: RunFolder) -> Any:
    module, _, made = TRACKERS[name].callback.partition(":")
    try:
        callback = getattr(import_module(module), made)(run)
        callback.setup()
    except Exception as problem:
        raise SweepError(
            f"sweep.track needs trackers that can be opened, got {name}: {without_passwords(problem)}; "
            f"check where it keeps its runs ({TRACKERS[name].where}), or take it out"
        ) from None
    return callback


# -------------------------------------------------------------------------------------------------- what they are told


def parameters(result: TrialResult) -> dict[str, Any]:
    """A trial's configuration by dotted keys; null and lists as text."""
    row = TrialResult(result.trial_id, result.number, result.status, result.config).to_row()
    cells = {key: value for key, value in row.items() if "." in key}
    return {key: value if isinstance(value, int | float) else str(value) for key, value in cells.items()}


def metrics(result: TrialResult) -> dict[str, float]:
    """A trial's finite numbers, under the columns' names as trackers take them."""
    found: Mapping[str, Any] = result.metrics | {"seconds": result.seconds}
    numbers = {name: value for name, value in found.items() if isinstance(value, int | float)}
    return {tracked_name(name): float(value) for name, value in numbers.items() if math.isfinite(value)}


def tags(result: TrialResult) -> dict[str, str]:
    """A trial's text: its status, kinds, machines, why it failed."""
    found = {"status": result.status, "error": result.error, "started": result.started, **result.metrics}
    return {tracked_name(name): value for name, value in found.items() if isinstance(value, str)}


def tracked_name(column: str) -> str:
    """A column's name without what no tracker takes: `wikipedia_ppl@512` is `wikipedia_ppl_512`."""
    return re.sub(r"[^-/\w. ]", "_", column, flags=re.ASCII)


def without_passwords(problem: BaseException) -> str:
    """The first line of an error, without what a URL may hold of a user's name and password."""
    line = next(iter(str(problem).splitlines()), "") or type(problem).__name__
    return re.sub(r"://[^/@\s]+@", "://…@", line)
