"""What Optuna suggests next: distinct configurations that the trial allows, drawn from an Optuna study.

The same seed, asked and told in the same order, gives the same suggestions; a search that goes on relies on it. A
sampler may repeat itself, above all near the end of a small space, and a Gaussian process takes half a second each
time. Then a point is drawn at random from what nobody has tried, and where nothing is left the search ends.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Container, Iterator, Mapping
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import TrialState

from greenprune.bos import with_bos
from greenprune.config import Dimension, SweepConfig, TrialConfig, flat, holds, in_order, most_points, points
from greenprune.config import random_point as drawn_point
from greenprune.config.sweep import value_under
from greenprune.errors import ConfigError
from greenprune.experiment import Experiment

REPEATS_IN_A_ROW = 10  # after so many a point is drawn at random
RANDOM_DRAWS = 200  # after so many that are taken or refused, those that are left are listed
MOST_LISTED = 5000  # points; of a larger space the random draws find one, or it counts as exhausted


def fixed_values(experiment: Experiment) -> dict[str, Any]:
    """The dotted keys of an experiment's trial, for the conditions of its space."""
    return flat(experiment.model_dump(mode="json", exclude={"name", "sweep"}))


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


class Sampler:
    """Distinct trials of an experiment's space, from an Optuna study that is told what they gave."""

    def __init__(self, experiment: Experiment) -> None:
        assert experiment.sweep is not None, "only a sweep is sampled"
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.experiment, self.sweep, self.fixed = experiment, experiment.sweep, fixed_values(experiment)
        ways = {"max": StudyDirection.MAXIMIZE, "min": StudyDirection.MINIMIZE}
        self.study = optuna.create_study(
            directions=[ways[direction] for direction in self.sweep.objectives.values()],
            sampler=SAMPLERS[self.sweep.search](self.sweep),
        )
        self.random = random.Random(self.sweep.seed)
        self.listed: list[dict[str, Any]] | None = None  # points that may be left, once listed; the next one last
        # by greenprune's trial ids:
        self.points: dict[str, dict[str, Any]] = {}  # all suggestions
        self.open: dict[str, optuna.Trial] = {}  # those that the study was told nothing about
        self.results: dict[str, Mapping[str, float]] = {}  # objectives, where a trial has all

    def next(self, taken: Container[str]) -> TrialConfig | None:
        """A configuration whose id isn't taken; None where none is left."""
        for _ in range(REPEATS_IN_A_ROW):
            trial = self.study.ask()
            point = self._suggested(trial)
            config = self._config(point)
            if config is not None and config.trial_id() not in taken:
                return self._chosen(config, point, trial)
            self._end(trial, self.results.get(config.trial_id()) if config else None)
        for point in self._untried():
            config = self._config(point)
            if config is not None and config.trial_id() not in taken:
                return self._chosen(config, point, self._ask_for(point))
        return None

    def _chosen(self, config: TrialConfig, point: dict[str, Any], trial: optuna.Trial) -> TrialConfig:
        self.points[config.trial_id()], self.open[config.trial_id()] = point, trial
        return config

    def tell(self, trial_id: str, objectives: Mapping[str, float] | None) -> None:
        """What a trial gave, None where it failed. One that failed and was run again is learnt as another trial."""
        if trial_id in self.results:
            return
        if trial := self.open.pop(trial_id, None):
            self._end(trial, objectives)
        elif objectives is not None and trial_id in self.points:
            self._end(self._ask_for(self.points[trial_id]), objectives)
        if objectives is not None:
            self.results[trial_id] = objectives

    def forget(self, trial_id: str) -> None:
        """A suggestion that nobody will try."""
        self.points.pop(trial_id, None)
        if trial := self.open.pop(trial_id, None):
            self._end(trial, None)

    def learn(self, config: TrialConfig, objectives: Mapping[str, float]) -> None:
        """What a trial gave that this sampler didn't suggest; nothing where it isn't a point of the space."""
        values, point = config.model_dump(mode="json"), dict[str, Any]()
        for key in in_order(self.sweep.space):
            if holds(self.sweep.space[key], point, self.fixed):
                section = key.partition(".")[0]
                given = self.sweep.space[key].of_trial(value_under(values[section], section, key))
                if not given:
                    return
                point[key] = given[0]
        self.results[config.trial_id()] = objectives
        self._end(self._ask_for(point), objectives)

    def _suggested(self, trial: optuna.Trial) -> dict[str, Any]:
        """The study's trial as a point of the space, conditions respected."""
        point: dict[str, Any] = {}
        for key in in_order(self.sweep.space):
            if holds(self.sweep.space[key], point, self.fixed):
                point[key] = _suggest(trial, key, self.sweep.space[key])
        return point

    def _ask_for(self, point: Mapping[str, Any]) -> optuna.Trial:
        """The study's trial for a point that is given."""
        space = self.sweep.space
        self.study.enqueue_trial({k: v if space[k].choice is None else json.dumps(v) for k, v in point.items()})
        trial = self.study.ask()
        self._suggested(trial)
        return trial

    def _end(self, trial: optuna.Trial, objectives: Mapping[str, float] | None) -> None:
        if objectives is None:
            self.study.tell(trial, state=TrialState.FAIL)
        else:
            self.study.tell(trial, [objectives[name] for name in self.sweep.objectives])

    def _config(self, point: Mapping[str, Any]) -> TrialConfig | None:
        try:
            return with_bos(self.experiment.trial(point))
        except ConfigError:  # a combination that the trial refuses
            return None

    def _untried(self) -> Iterator[dict[str, Any]]:
        """Points in random order: some at random, then of a small space all that were not listed before."""
        for _ in range(RANDOM_DRAWS if self.listed is None else 0):
            yield drawn_point(self.sweep, self.fixed, self.random)
        if self.listed is None:
            size = most_points(self.sweep, self.fixed)
            if size is None or size > MOST_LISTED:
                return
            self.listed = list(points(self.sweep, self.fixed))
            self.random.shuffle(self.listed)
        while self.listed:
            yield self.listed.pop()


def _suggest(trial: optuna.Trial, key: str, dimension: Dimension) -> Any:
    if dimension.choice is not None:
        # Optuna's categories must be scalars; ours may be lists, so they go as JSON
        return json.loads(trial.suggest_categorical(key, [json.dumps(value) for value in dimension.choice]))
    if dimension.int_:
        return trial.suggest_int(key, *dimension.int_, step=int(dimension.step or 1), log=dimension.log)
    assert dimension.float_, "a dimension is choice, int or float"
    return trial.suggest_float(key, *dimension.float_, step=dimension.step, log=dimension.log)
