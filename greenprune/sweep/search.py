"""Which configurations are tried, in which order: the dense model, then a grid or what a sampler suggests.

One Ray searcher serves all: it gives every configuration its number and passes over one that was suggested before.
A search keeps a journal of what it suggested and what it was told. One that goes on asks its sampler the same
questions again and tells it the same answers, so that it decides as if nothing had happened.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ray.tune.search import Searcher

from greenprune.bos import with_bos
from greenprune.comparability import CommonFront
from greenprune.config import TrialConfig, most_points, points
from greenprune.errors import ConfigError
from greenprune.experiment import Experiment
from greenprune.results import TrialResult
from greenprune.sweep.run_folder import Event
from greenprune.sweep.sampler import Sampler, fixed_values

log = logging.getLogger("greenprune")
MOST_COUNTED = 1000  # points of a grid; of a larger one the number of trials is at most that of its points


def trial_configs_of_grid(experiment: Experiment) -> Iterator[TrialConfig]:
    """Every distinct trial of a grid, in order, made as it is asked for."""
    assert experiment.sweep is not None, "only a sweep has a grid"
    seen: set[str] = set()
    for point in points(experiment.sweep, fixed_values(experiment)):
        try:
            config = with_bos(experiment.trial(point))
        except ConfigError:  # a small grid has no such point (experiment.py), and a large one goes on without it
            continue
        if config.trial_id() not in seen:
            seen.add(config.trial_id())
            yield config


def most_trials(experiment: Experiment) -> int:
    """How many trials a sweep has at most; the dense model is one of them."""
    assert experiment.sweep is not None, "only a sweep has trials"
    if experiment.sweep.search != "grid":
        return 1 + (experiment.sweep.num_trials or 0)
    size = most_points(experiment.sweep, fixed_values(experiment))
    assert size is not None, "a grid can be listed"
    if size > MOST_COUNTED:
        return 1 + size
    dense = with_bos(experiment.trial()).dense().trial_id()
    return len({config.trial_id() for config in trial_configs_of_grid(experiment)} | {dense})


class SweepSearch(Searcher):
    """The dense model first, then distinct configurations until the grid or `num_trials` is used up.

    While `busy` no trial is suggested: to start its process beside an open energy window would disturb that. No more
    run at once than `width` says at that moment.
    `known` are the results of a run that is gone on with and `journal` its events, `record` is told new ones.
    Finished trials are not suggested; failed and unfinished ones come first; all keep their numbers.
    """

    def __init__(
        self,
        experiment: Experiment,
        busy: Callable[[], bool] = lambda: False,
        known: Sequence[TrialResult] = (),
        journal: Sequence[Event] = (),
        record: Callable[[Event], None] = lambda event: None,
        width: Callable[[], int] = lambda: sys.maxsize,
    ) -> None:
        super().__init__()
        assert experiment.sweep is not None, "a search needs a sweep"
        self.busy, self.record, self.width = busy, record, width
        self.experiment, self.sweep = experiment, experiment.sweep
        self.dense = with_bos(experiment.trial()).dense()
        self.front = CommonFront(self.sweep.objectives)
        self.sampler = None if self.sweep.search == "grid" else Sampler(experiment)
        self.grid = trial_configs_of_grid(experiment) if self.sampler is None else iter(())
        self.total = most_trials(experiment)
        self.numbers: dict[str, int] = {}  # greenprune's trial id -> its number
        self.running: dict[str, str] = {}  # Ray's trial id -> greenprune's
        self.waiting: list[TrialConfig] = []  # suggested once, not finished: they come first
        self._go_on(known, journal)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if len(self.running) >= self.width() or self.busy():
            return None  # Tune asks again
        config = self.waiting.pop(0) if self.waiting else self._next()
        if config is None:
            return Searcher.FINISHED
        ours = config.trial_id()
        self.record({"asked": ours})
        self.running[trial_id] = ours
        return {"number": self.numbers[ours], "trial_id": ours, "trial": config.model_dump(mode="json")}

    def _next(self) -> TrialConfig | None:
        """The next configuration that was never suggested; it is taken then, under the next number."""
        config: TrialConfig | None
        if self.dense.trial_id() not in self.numbers:
            config = self.dense
        elif self.sampler is None:
            config = next((config for config in self.grid if config.trial_id() not in self.numbers), None)
        elif len(self.numbers) >= self.total:
            return None
        else:
            config = self.sampler.next(self.numbers)
        if config is not None:
            self.numbers[config.trial_id()] = max(self.numbers.values(), default=-1) + 1
        return config

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Trials report once, at their end."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if (ours := self.running.pop(trial_id, None)) is None:
            return
        objectives = self.front.accept(result or {})
        complete = not error and len(objectives) == len(self.sweep.objectives)
        self._tell(ours, objectives if complete else None)

    def _tell(self, trial_id: str, objectives: Mapping[str, float] | None) -> None:
        self.record({"told": trial_id, "objectives": objectives})
        if self.sampler is not None:
            self.sampler.tell(trial_id, objectives)

    # ------------------------------------------------------------------------------------- going on with a run

    def _go_on(self, known: Sequence[TrialResult], journal: Sequence[Event]) -> None:
        """Decide again what was decided, and learn again what was learnt."""
        finished = {result.trial_id: result for result in known if result.status == "ok"}
        in_order = [event["told"] for event in journal if event.get("objectives")]
        for trial_id in (*in_order, *finished):  # what the first that counted was measured on is what all must share
            if trial_id in finished:
                self.front.accept(finished[trial_id].metrics)
        suggested: dict[str, TrialConfig] = {}
        told: set[str] = set()
        strange = False
        for event in [*journal, *self._events_of(known, journal)]:
            if ours := event.get("told"):
                told.add(ours)
                if self.sampler is not None:
                    self.sampler.tell(ours, event["objectives"])
            elif event["asked"] not in self.numbers and not strange:
                config = self._next()
                if config is None or event["asked"] not in (None, config.trial_id()):
                    strange = True
                    self._take_back(config)
                else:
                    suggested[config.trial_id()] = config
        if strange:
            log.warning("the search goes on from its results: this version would have tried other configurations")
        for result in known:
            if result.trial_id not in suggested and (config := self._former(result)):
                suggested[result.trial_id] = config
        for trial_id, config in suggested.items():
            if trial_id not in finished:
                self.waiting.append(config)
            elif trial_id not in told:  # it ended just before its search did
                self._tell(trial_id, self._objectives(finished[trial_id]))
        self.waiting.sort(key=lambda config: self.numbers[config.trial_id()])

    def _events_of(self, known: Sequence[TrialResult], journal: Sequence[Event]) -> Iterator[Event]:
        """What a search went through that left results only: one trial after the other, by their numbers."""
        noted = {event.get("asked") for event in journal}
        numbered = {result.number: result for result in known}
        for number in range(len(noted), max(numbered, default=-1) + 1):
            result = numbered.get(number)
            if result is None:
                yield {"asked": None}  # it was running
            elif result.trial_id not in noted:
                yield {"asked": result.trial_id}
                yield {"told": result.trial_id, "objectives": self._objectives(result)}

    def _objectives(self, result: TrialResult) -> dict[str, float] | None:
        found = self.front.accept(result.metrics) if result.status == "ok" else {}
        return found if len(found) == len(self.sweep.objectives) else None

    def _take_back(self, config: TrialConfig | None) -> None:
        if config is not None:
            del self.numbers[config.trial_id()]
            if self.sampler is not None:
                self.sampler.forget(config.trial_id())

    def _former(self, result: TrialResult) -> TrialConfig | None:
        """A result that the search didn't come to again: it is taken, and learnt. None where it has another id now."""
        self.numbers[result.trial_id] = result.number
        try:
            config = TrialConfig.model_validate(result.config)
        except ValueError:  # of another version
            return None
        if config.trial_id() != result.trial_id:
            return None
        objectives = self._objectives(result)
        if self.sampler is not None and objectives is not None:
            self.sampler.learn(config, objectives)
        return config

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a run is gone on with from its journal and its results, never from Tune's state."""

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles what it was given; nobody reads that
