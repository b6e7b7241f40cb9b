"""The sweep section: its space, objectives and resources; and walking through the space."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, create_model, field_validator, model_validator

from greenprune.columns import DEFAULT_OBJECTIVES, Direction
from greenprune.config.section import Int, Section
from greenprune.config.stages import STAGES
from greenprune.config.track import TrackerName
from greenprune.errors import ConfigError

MOST_WALKED = 100_000
LARGEST = 1e15  # of a bound; a float still tells such numbers apart


class Dimension(Section):
    """One axis of a search space: `{choice: […]}`, `{int: [low, high]}` or `{float: [low, high]}`."""

    choice: list[Any] | None = Field(None, min_length=1)
    int_: tuple[Int, Int] | None = Field(None, alias="int")
    float_: tuple[float, float] | None = Field(None, alias="float")
    step: float | None = Field(None, gt=0)
    log: bool = False
    when: dict[str, list[Any]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_kind(self) -> Dimension:
        kinds = [k for k, v in (("choice", self.choice), ("int", self.int_), ("float", self.float_)) if v]
        if len(kinds) != 1:
            raise ValueError(f"gives exactly one of choice, int, float; got {', '.join(kinds) or 'none'}")
        bounds = self.int_ or self.float_
        if bounds and bounds[0] > bounds[1]:
            raise ValueError(f"bounds must be [low, high] with low <= high, got {list(bounds)}")
        if bounds and (
            max(map(abs, bounds)) > LARGEST or (self.step and (bounds[1] - bounds[0]) / self.step > LARGEST)
        ):
            raise ValueError(f"bounds, and the steps between them, must be at most {LARGEST:.0e}; choose smaller ones")
        if self.log and (not bounds or bounds[0] <= 0):
            raise ValueError("log needs int or float bounds above 0; remove log or raise the lower bound")
        if self.log and self.step:
            raise ValueError("log and step exclude each other; remove one")
        if self.step and self.choice:
            raise ValueError("step belongs to int and float, not to choice; remove it")
        if self.int_ and self.step and self.step != int(self.step):
            raise ValueError(f"step of an int dimension must be a whole number, got {self.step}")
        return self

    def size(self) -> int | None:
        """How many values there are, or None where they can't be listed (float without a step)."""
        if self.choice is not None:
            return len(self.choice)
        if self.int_:
            return (self.int_[1] - self.int_[0]) // int(self.step or 1) + 1
        if self.float_ and self.step:
            return math.floor((self.float_[1] - self.float_[0]) / self.step + 1e-9) + 1
        return None

    def value(self, index: int) -> Any:
        """One of the `size()` values."""
        if self.choice is not None:
            return self.choice[index]
        if self.int_:
            return self.int_[0] + index * int(self.step or 1)
        assert self.float_ is not None, "a dimension is choice, int or float"
        assert self.step is not None, "only what can be listed has an index"
        return round(self.float_[0] + index * self.step, 12)

    def values(self) -> Iterator[Any]:
        """All values, one by one; none where they can't be listed."""
        return map(self.value, range(self.size() or 0))

    def draw(self, rng: random.Random) -> Any:
        """A value, each as likely as any other (with `log` each order of magnitude)."""
        if self.float_ and not self.step:
            low, high = map(math.log, self.float_) if self.log else self.float_
            drawn = rng.uniform(low, high)
            return min(max(math.exp(drawn) if self.log else drawn, self.float_[0]), self.float_[1])
        return self.value(rng.randrange(self.size() or 0))

    def may_be(self, value: Any) -> bool:
        """Whether the dimension can take this value; true for numbers between bounds where they can't be listed."""
        if self.choice is not None:
            return value in self.choice
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return False
        low, high = self.int_ or self.float_ or (0, 0)
        if not low <= value <= high or self.size() is None:
            return low <= value <= high
        return self.value(round((value - low) / (self.step or 1))) == value

    def of_trial(self, value: Any) -> list[Any]:
        """What a trial that has this value was given, if this dimension gave it: one value, or none.

        A section says fewer fields than the trial's has; of several that fit, the one that says most was given.
        """
        if self.choice is None:
            return [value] if self.may_be(value) else []
        return sorted((chosen for chosen in self.choice if says(chosen, value)), key=_leaves)[-1:]

    def words(self) -> str:
        """What values there are, for an error's text."""
        if self.choice is not None:
            return f"one of {self.choice}"
        low, high = self.int_ or self.float_ or (0, 0)
        return f"{low} to {high}" + (f" in steps of {self.step}" if self.step else "")

    def ends(self) -> list[Any]:
        """The values at which a configuration is checked before a search begins."""
        return self.choice if self.choice is not None else sorted(set(self.int_ or self.float_ or ()))


class StageResources(Section):
    """What one stage asks of the cluster; null takes a default derived from the nodes."""

    cpu: float | None = Field(None, ge=0)
    gpu: float | None = Field(None, ge=0)
    memory_gb: float | None = Field(None, gt=0)
    custom: dict[str, float] = Field(default_factory=dict, description="custom Ray resources")
    labels: dict[str, str] = Field(
        default_factory=dict, description="labels of the nodes it may run on, as Ray has them"
    )
    exclusive: Literal["none", "device", "node"] | None = Field(
        None, description="device: whole GPUs; node: all cores and GPUs of a node"
    )

    @model_validator(mode="after")
    def _whole_devices(self) -> StageResources:
        if self.exclusive == "device" and self.gpu is not None and (self.gpu < 1 or self.gpu != int(self.gpu)):
            raise ValueError(f"exclusive: device needs whole GPUs, got gpu: {self.gpu}; set gpu to 1 or more")
        return self


if TYPE_CHECKING:

    class ResourcesConfig(Section):
        def __getattr__(self, stage: str) -> StageResources: ...
else:
    OF_STAGES = {stage: (StageResources, StageResources()) for stage in STAGES}
    ResourcesConfig = create_model("ResourcesConfig", __base__=Section, __module__=__name__, **OF_STAGES)


class SweepConfig(Section):
    search: Literal["grid", "random", "tpe", "nsga2", "gp"] = "grid"
    num_trials: Int | None = Field(None, ge=1, description="for every search but grid")
    seed: Int = 0
    space: dict[str, Dimension] = Field(min_length=1)
    objectives: dict[str, Direction] = Field(DEFAULT_OBJECTIVES, min_length=1)
    resources: ResourcesConfig = ResourcesConfig()
    max_concurrent: Int | None = Field(None, ge=1)
    stage_retries: Int = Field(1, ge=0, description="times a stage whose worker process died is run again")
    track: list[TrackerName] = Field(default_factory=list, description="experiment trackers told of every trial")
    storage: str = "runs"

    @field_validator("track")
    @classmethod
    def _each_once(cls, track: list[TrackerName]) -> list[TrackerName]:
        if len(set(track)) < len(track):
            raise ValueError(f"must name each tracker once, got {', '.join(track)}; remove the repeated one")
        return track

    @field_validator("storage")
    @classmethod
    def _names_a_place(cls, uri: str) -> str:
        try:
            possible = bool(uri.strip()) and "\0" not in uri and bool(Path(uri).expanduser())
        except RuntimeError:  # the home of nobody known
            possible = False
        if not possible:
            raise ValueError(f"must name a folder or a bucket, such as runs or s3://bucket/runs, got {uri!r}")
        return uri

    @model_validator(mode="after")
    def _search_fits_space(self) -> SweepConfig:
        if self.search == "grid":
            if self.num_trials is not None:
                raise ValueError("num_trials belongs to random, tpe, nsga2 and gp; a grid runs every point: remove it")
            endless = [key for key, dimension in self.space.items() if dimension.size() is None]
            if endless:
                raise ValueError(
                    f"grid can't list the values of {', '.join(endless)}; give choice, or a step, or another search"
                )
        elif self.num_trials is None:
            raise ValueError(f"search {self.search} needs num_trials; add e.g. num_trials: 32")
        return self


def axis_of(key: str, space: Mapping[str, Any]) -> str | None:
    """The key of the space that decides `key`: itself, or a section that is chosen whole; None where none does."""
    steps = key.split(".")
    ways = (".".join(steps[:count]) for count in range(len(steps), 0, -1))
    return next((way for way in ways if way in space), None)


def value_under(value: Any, axis: str, key: str) -> Any:
    """What a value of `axis` says of `key`, which is the axis or below it; None where it says nothing."""
    for step in key.removeprefix(axis).split(".")[1:]:
        value = value.get(step) if isinstance(value, Mapping) else None
    return value


def says(part: Any, whole: Any) -> bool:
    """Whether all that a value of an experiment file says is so in a trial's."""
    if isinstance(part, Mapping) and isinstance(whole, Mapping):
        return all(key in whole and says(value, whole[key]) for key, value in part.items())
    if isinstance(part, list) and isinstance(whole, list):
        return len(part) == len(whole) and all(map(says, part, whole))
    return part == whole


def _leaves(value: Any) -> int:
    """How much a value says: 1, or what is in it."""
    inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else None
    return 1 if inside is None else sum(map(_leaves, inside))


def in_order(space: Mapping[str, Dimension]) -> list[str]:
    """Keys of a space so that every key comes after those its `when` names. ConfigError on a circle."""
    ordered: list[str] = []
    while len(ordered) < len(space):
        waits = {k: {axis_of(condition, space) for condition in space[k].when} - {None} for k in space}
        ready = [k for k in space if k not in ordered and waits[k] <= set(ordered)]
        if not ready:
            circle = ", ".join(k for k in space if k not in ordered)
            raise ConfigError(f"sweep.space has conditions that wait for each other: {circle}; break the circle")
        ordered += ready
    return ordered


def holds(dimension: Dimension, point: Mapping[str, Any], base: Mapping[str, Any]) -> bool:
    """Whether a dimension's `when` is met by the point chosen so far (`base`: the trial's fixed values)."""
    for key, values in dimension.when.items():
        axis = axis_of(key, point)
        if (base.get(key) if axis is None else value_under(point[axis], axis, key)) not in values:
            return False
    return True


def points(sweep: SweepConfig, base: Mapping[str, Any], ends_only: bool = False) -> Iterator[dict[str, Any]]:
    """Every point of the space, one by one, conditions respected; with `ends_only` the bounds instead of all values."""
    return _points(sweep.space, in_order(sweep.space), base, ends_only)


def _points(
    space: Mapping[str, Dimension], order: Sequence[str], base: Mapping[str, Any], ends_only: bool = False
) -> Iterator[dict[str, Any]]:
    def extend(point: dict[str, Any], rest: Sequence[str]) -> Iterator[dict[str, Any]]:
        if not rest:
            yield point
            return
        key, dimension = rest[0], space[rest[0]]
        if not holds(dimension, point, base):
            yield from extend(point, rest[1:])
            return
        for value in dimension.ends() if ends_only else dimension.values():
            yield from extend({**point, key: value}, rest[1:])

    yield from extend({}, order)


def most_points(sweep: SweepConfig, base: Mapping[str, Any]) -> int | None:
    """How many points the space has, None where they can't be listed; at most so many where conditions are intricate.

    Axes without conditions multiply; the others are walked, up to MOST_WALKED points.
    """
    sizes = {key: dimension.size() for key, dimension in sweep.space.items()}
    if None in sizes.values():
        return None
    bound = {key for key, dimension in sweep.space.items() if dimension.when}
    conditions = {condition for dimension in sweep.space.values() for condition in dimension.when}
    bound |= {axis_of(condition, sweep.space) or condition for condition in conditions}
    free = math.prod(size or 0 for key, size in sizes.items() if key not in bound)
    walked = _points(sweep.space, [key for key in in_order(sweep.space) if key in bound], base)
    count = sum(1 for _ in itertools.islice(walked, MOST_WALKED))
    return free * (count if count < MOST_WALKED else math.prod(sizes[key] or 0 for key in bound & set(sizes)))


def random_point(sweep: SweepConfig, base: Mapping[str, Any], rng: random.Random) -> dict[str, Any]:
    """A point with each axis drawn by itself, conditions respected."""
    point: dict[str, Any] = {}
    for key in in_order(sweep.space):
        if holds(sweep.space[key], point, base):
            point[key] = sweep.space[key].draw(rng)
    return point
