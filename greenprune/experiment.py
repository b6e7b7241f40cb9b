"""An experiment file: a trial, a name, and optionally a sweep over it; and every reason to refuse it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from greenprune.assets import model_facts
from greenprune.columns import COLUMNS, Column
from greenprune.config import (
    ENGINES,
    BenchmarkConfig,
    Dimension,
    Shape,
    SweepConfig,
    TrialConfig,
    absolute,
    in_order,
    perplexity_name,
    points,
)
from greenprune.config.overrides import apply_overrides, flat, known_keys, parse_yaml, split_override
from greenprune.config.refusals import validated
from greenprune.config.serving import cannot_serve
from greenprune.config.sweep import axis_of, value_under
from greenprune.errors import ConfigError, nearest

MAX_CHECKED_POINTS = 5000
WIDTHS = ("hidden_size", "intermediate_size", "ffn_dim")  # in a config.json


class Experiment(TrialConfig):
    """One experiment file: a trial, a name, and optionally a sweep over it."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    sweep: SweepConfig | None = None

    def to_dict(self) -> dict[str, Any]:
        """What an experiment file would hold; `parse_experiment` gives this experiment back."""
        data = self.model_dump(mode="json", exclude={"sweep"})  # nulls stay: `energy: null` isn't the default
        if self.sweep:
            data["sweep"] = self.sweep.model_dump(mode="json", by_alias=True, exclude_none=True)
        return data

    def trial(self, overrides: Mapping[str, Any] | None = None) -> TrialConfig:
        """The trial of this experiment, at one point of the sweep's space if `overrides` gives one."""
        base = self.model_dump(mode="json", exclude={"name", "sweep"})
        return validated(TrialConfig, apply_overrides(base, overrides or {}), source=f"experiment {self.name}")


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read, override and validate an experiment file. Paths in it are relative to its own folder, those of `overrides`
    to the working directory. Raises ConfigError with key, rule, got and remedy.
    """
    path = Path(path)
    data = _absolute(read_yaml(path), path.absolute().parent, str(path))
    return parse_experiment(data, overrides, source=str(path), default_name=path.stem)


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: an experiment file must exist, got no such file; check the path") from None
    except (UnicodeDecodeError, OSError) as problem:
        raise ConfigError(f"{path}: must be a readable text file, got {problem}; check it") from None
    data = parse_yaml(text, f"{path}:")
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: must be a mapping of sections, got {type(data).__name__}; see experiments/")
    return data


def parse_experiment(
    data: Mapping[str, Any],
    overrides: Sequence[str] = (),
    source: str = "config",
    default_name: str = "trial",
) -> Experiment:
    """Validate an experiment given as a mapping; `overrides` are `key=value` strings with YAML values. Relative paths
    are made absolute.
    """
    here = Path.cwd()
    given = _absolute(dict(map(split_override, overrides)), here, "override")
    merged = apply_overrides(_absolute(data, here, source), given)
    merged.setdefault("name", default_name)
    experiment = validated(Experiment, merged, source)
    try:
        if experiment.sweep:
            _check_space(experiment)
            _check_objectives(experiment)
            _check_storage(experiment)
        _check_shape(experiment)
    except ConfigError as problem:
        raise ConfigError(f"{source}: {problem}") from None
    return experiment


def _absolute(data: Mapping[str, Any], folder: Path, source: str) -> dict[str, Any]:
    try:
        return absolute(data, folder)
    except ConfigError as problem:
        raise ConfigError(f"{source}: {problem}") from None


def json_schema() -> dict[str, Any]:
    """JSON schema of an experiment file, for editors (`greenprune schema`)."""
    schema = Experiment.model_json_schema(by_alias=True)
    schema["required"] = [name for name in schema["required"] if name != "name"]  # defaults to the file's stem
    return schema


def _check_space(experiment: Experiment) -> None:
    """Unknown keys and conditions, then every point of a grid or every corner of a search."""
    assert experiment.sweep is not None, "only a sweep has a space"
    space, known = experiment.sweep.space, known_keys()
    fixed = flat(experiment.model_dump(mode="json", exclude={"name", "sweep"}))
    for key, dimension in space.items():
        if key not in known:
            raise ConfigError(f"sweep.space.{key} is not a known key of a trial; {nearest(key, known)}")
        for condition, values in dimension.when.items():
            where = f"sweep.space.{key}.when.{condition}"
            if condition not in known:
                raise ConfigError(f"{where} is not a known key of a trial; {nearest(condition, known)}")
            if condition == key:
                raise ConfigError(f"{where} makes {key} depend on itself; name another key")
            may_be, is_ = _possible(condition, space, fixed)
            if not any(map(may_be, values)):
                raise ConfigError(f"{where} never holds: {condition} is {is_}, got {values}; mend either")
    in_order(space)
    corners = points(experiment.sweep, fixed, ends_only=experiment.sweep.search != "grid")
    for point in itertools.islice(corners, MAX_CHECKED_POINTS):
        try:
            _check_shape(experiment.trial(point))
        except ConfigError as problem:
            raise ConfigError(f"sweep.space allows {point}, which is refused: {problem}") from None


def _possible(key: str, space: Mapping[str, Dimension], fixed: Mapping[str, Any]) -> tuple[Callable[[Any], bool], str]:
    """Which values `key` takes in some trial of the space, as a test and in words."""
    axis = axis_of(key, space)
    if axis == key:
        return space[key].may_be, space[key].words()
    if axis is None:
        return [fixed.get(key)].__contains__, repr(fixed.get(key))
    found = [value_under(value, axis, key) for value in space[axis].values()]
    return found.__contains__, f"one of {found}"


def measured_objectives(benchmark: BenchmarkConfig) -> dict[str, Column]:
    """The columns that may be objectives and that every trial with this benchmark gives a number for."""
    found: dict[str, Column] = {}
    energy = benchmark.energy
    for name, declared in COLUMNS.items():
        if declared.better and _given(declared.needs, benchmark):
            if "<task>" in name:
                found |= {name.replace("<task>", task): declared for task in benchmark.tasks}
            elif "<text>" in name:
                found |= dict.fromkeys(map(perplexity_name, benchmark.perplexity), declared)
            elif not (declared.batches and energy and not ENGINES[energy.engine].batches):
                found[name] = declared
                if declared.at_each and energy and energy.concurrency != [1]:
                    found |= {f"{name}@{number}": declared for number in energy.concurrency}
    return found


def _given(key: str | None, benchmark: BenchmarkConfig) -> bool:
    """Whether a benchmark has something at the dotted `key`; where the key is None there is nothing to have."""
    value: Any = benchmark
    for part in (key or "").split(".")[1:]:
        value = getattr(value, part, None)
    return bool(value)


def _check_objectives(experiment: Experiment) -> None:
    assert experiment.sweep is not None, "only a sweep has objectives"
    measured = measured_objectives(experiment.benchmark)
    for name, direction in experiment.sweep.objectives.items():
        if name not in measured:
            raise ConfigError(
                f"sweep.objectives.{name} is measured by nothing in benchmark; add the task, text or energy "
                f"workload that gives it; {nearest(name, measured)}"
            )
        good = measured[name].better
        if direction != good:
            raise ConfigError(f"sweep.objectives.{name} must be {good}, got {direction}: a better model has it so")


def _check_storage(experiment: Experiment) -> None:
    """Workers that heal together keep their parts of a training checkpoint in one folder."""
    assert experiment.sweep is not None, "only a sweep has a storage"
    varied = experiment.sweep.space.get("heal.num_workers")
    workers = max([experiment.heal.workers(), *(varied.ends() if varied else ())])
    if workers > 1 and "://" in experiment.sweep.storage:
        raise ConfigError(
            f"sweep.storage must be a folder that all nodes share where heal.num_workers is above 1, got "
            f"{experiment.sweep.storage}; use such a folder, or one worker"
        )


def _check_shape(trial: TrialConfig) -> None:
    """Refuse a pruning that doesn't fit the model, where that can be known without loading it."""
    facts = model_facts(trial.model)
    widths: dict[str, int] = {name: facts[name] for name in WIDTHS if name in facts}
    trial.quantize.check(trial.prune, widths)
    heads = facts.get("num_attention_heads")
    trial.prune.check(Shape(facts.get("num_hidden_layers"), heads, facts.get("num_key_value_heads", heads)))
    if trial.benchmark.energy and (reason := cannot_serve(trial.benchmark.energy.engine, trial, facts)):
        raise ConfigError(f"benchmark.energy.engine: {reason}")
