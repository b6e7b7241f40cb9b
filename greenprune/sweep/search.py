"""Which configurations are tried, in which order: the dense model, then a grid or what Optuna suggests.

One Ray searcher serves all: it gives every suggestion its number, resolves it to a whole trial, and passes
over a configuration that was suggested before.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import optuna
from ray import cloudpickle
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from greenprune.bos import decided
from greenprune.comparability import CommonFront
from greenprune.config import Dimension, SweepConfig, TrialConfig, flat, holds, in_order, points
from greenprune.errors import ConfigError
from greenprune.experiment import Experiment
from greenprune.results import TrialResult

DUPLICATES_IN_A_ROW = 200  # after so many the space counts as exhausted


class Space:
    """The search space as Optuna's define-by-run function, conditions respected."""

    def __init__(self, sweep: SweepConfig, base: Mapping[str, Any]) -> None:
        self.dimensions, self.base = sweep.space, base

    def __call__(self, trial: optuna.Trial) -> dict[str, Any]:
        point: dict[str, Any] = {}
        for key in in_order(self.dimensions):
            dimension = self.dimensions[key]
            if holds(dimension, point, self.base):
                point[key] = _suggest(trial, key, dimension)
        return point


def _suggest(trial: optuna.Trial, key: str, dimension: Dimension) -> Any:
    if dimension.choice is not None:
        # Optuna's categories must be scalars; ours may be lists, so they go as JSON
        return json.loads(trial.suggest_categorical(key, [json.dumps(value) for value in dimension.choice]))
    if dimension.int_:
        return trial.suggest_int(key, *dimension.int_, step=int(dimension.step or 1), log=dimension.log)
    assert dimension.float_, "a dimension is choice, int or float"
    return trial.suggest_float(key, *dimension.float_, step=dimension.step, log=dimension.log)


def _nsga2(sweep: SweepConfig) -> optuna.samplers.BaseSampler:
    population = min(50, max(4, (sweep.num_trials or 0) // 4))
    return optuna.samplers.NSGAIISampler(seed=sweep.seed, population_size=population)


def _tpe(sweep: SweepConfig) -> optuna.samplers.BaseSampler:
    startup = min(10, max(2, (sweep.num_trials or 0) // 3))
    return optuna.samplers.TPESampler(
        seed=sweep.seed, n_startup_trials=startup, multivariate=True, group=True, constant_liar=True
    )


def _gp(sweep: SweepConfig) -> optuna.samplers.BaseSampler:
    return optuna.samplers.GPSampler(seed=sweep.seed)


def _random(sweep: SweepConfig) -> optuna.samplers.BaseSampler:
    return optuna.samplers.RandomSampler(seed=sweep.seed)


SAMPLERS: dict[str, Callable[[SweepConfig], optuna.samplers.BaseSampler]] = {
    "random": _random,
    "tpe": _tpe,
    "nsga2": _nsga2,
    "gp": _gp,
}


def trial_configs_of_grid(experiment: Experiment) -> Iterator[TrialConfig]:
    """Every distinct trial of a grid, in order."""
    assert experiment.sweep is not None, "only a sweep has a grid"
    seen: set[str] = set()
    for point in points(experiment.sweep, fixed_values(experiment)):
        config = decided(experiment.trial(point))
        if config.trial_id() not in seen:
            seen.add(config.trial_id())
            yield config


def fixed_values(experiment: Experiment) -> dict[str, Any]:
    return flat(experiment.model_dump(mode="json", exclude={"name", "sweep"}))


class SweepSearch(Searcher):
    """The dense model first, then distinct configurations until the grid or `num_trials` is used up.

    While `busy` no trial is suggested: to start its process beside an open energy window would disturb that.
    `known` are results of a run whose search is lost: finished trials are not suggested, failed ones come first,
    and all keep their numbers.
    """

    def __init__(
        self,
        experiment: Experiment,
        busy: Callable[[], bool] = lambda: False,
        known: Sequence[TrialResult] = (),
    ) -> None:
        super().__init__()
        assert experiment.sweep is not None, "a search needs a sweep"
        self.busy = busy
        self.experiment, self.sweep = experiment, experiment.sweep
        self.dense = decided(experiment.trial()).dense()
        grid = trial_configs_of_grid(experiment) if self.sweep.search == "grid" else ()
        self.grid = [config for config in grid if config != self.dense]
        self.total = 1 + (self.sweep.num_trials or len(self.grid))  # at most; the dense model is one of them
        self.numbers = {result.trial_id: result.number for result in known}
        self.number = max(self.numbers.values(), default=-1) + 1  # of the next trial that has none
        finished = [result for result in known if result.status == "ok"]
        self.failed = [result for result in known if result.status == "failed"]
        self.taken = {result.trial_id: "" for result in finished}  # greenprune's trial id -> Ray's
        self.inner_ids: dict[str, str] = {}  # Ray's trial id -> the inner searcher's
        self.front = CommonFront(self.sweep.objectives)
        learnt = {result.trial_id: self.front.accept(result.metrics) for result in finished}
        # greenprune's trial id -> its objectives, where a front would take all
        self.results = {key: values for key, values in learnt.items() if len(values) == len(self.sweep.objectives)}
        self.inner = None if self.sweep.search == "grid" else self._optuna()

    def _optuna(self) -> OptunaSearch:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        return OptunaSearch(
            Space(self.sweep, fixed_values(self.experiment)),
            metric=list(self.sweep.objectives),
            mode=list(self.sweep.objectives.values()),
            sampler=SAMPLERS[self.sweep.search](self.sweep),
        )

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if self.busy():
            return None  # Tune asks again
        if self.dense.trial_id() not in self.taken:
            return self._take(trial_id, self.dense)
        if config := self._next_of_failed():
            return self._take(trial_id, config)
        if len(self.taken) >= self.total:
            return Searcher.FINISHED
        config = self._next_of_grid() if self.inner is None else self._next_of_inner(trial_id)
        return Searcher.FINISHED if config is None else self._take(trial_id, config)

    def _take(self, trial_id: str, config: TrialConfig) -> dict[str, Any]:
        number = self.numbers.get(config.trial_id(), self.number)
        self.number = max(self.number, number + 1)
        self.taken[config.trial_id()] = trial_id
        return {"number": number, "trial_id": config.trial_id(), "trial": config.model_dump(mode="json")}

    def _next_of_failed(self) -> TrialConfig | None:
        """A trial that failed before its search was lost, unless this configuration has another id by now."""
        while self.failed:
            result = self.failed.pop(0)
            config = TrialConfig.model_validate(result.config)
            if config.trial_id() == result.trial_id and result.trial_id not in self.taken:
                return config
        return None

    def _next_of_grid(self) -> TrialConfig | None:
        return next((config for config in self.grid if config.trial_id() not in self.taken), None)

    def _next_of_inner(self, trial_id: str) -> TrialConfig | None:
        assert self.inner is not None, "a grid has no inner searcher"
        for attempt in range(DUPLICATES_IN_A_ROW):
            inner_id = f"{trial_id}-{attempt}"
            point = self.inner.suggest(inner_id)
            try:
                config = decided(self.experiment.trial(point))
            except ConfigError:
                self.inner.on_trial_complete(inner_id, error=True)  # a combination that the trial refuses
                continue
            if config.trial_id() not in self.taken:
                self.inner_ids[trial_id] = inner_id
                return config
            known = self.results.get(config.trial_id())
            self.inner.on_trial_complete(inner_id, result=known, error=known is None)
        return None

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Trials report once, at their end."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        objectives = self.front.accept(result or {})
        complete = not error and len(objectives) == len(self.sweep.objectives)
        if complete:
            ours = next((key for key, value in self.taken.items() if value == trial_id), None)
            if ours:
                self.results[ours] = objectives
        if self.inner is not None and trial_id in self.inner_ids:
            inner_id = self.inner_ids.pop(trial_id)
            self.inner.on_trial_complete(inner_id, result=objectives if complete else None, error=not complete)

    STATE = ("numbers", "number", "failed", "taken", "inner_ids", "results", "front", "inner")

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of runs that began before a search could be told of results."""
        self.__dict__.update({"numbers": {}, "failed": [], "front": CommonFront(state["sweep"].objectives)} | state)

    def save(self, checkpoint_path: str) -> None:
        with open(checkpoint_path, "wb") as stream:
            cloudpickle.dump({name: getattr(self, name) for name in self.STATE}, stream)

    def restore(self, checkpoint_path: str) -> None:
        with open(checkpoint_path, "rb") as stream:
            self.__dict__.update(cloudpickle.load(stream))
