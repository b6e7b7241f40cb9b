"""Joules where there is no sensor: a declared linear model, never a measurement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from greenprune.config.benchmark import WATTS_BASE, WATTS_PER_CORE
from greenprune.energy.counting import Counted, Part
from greenprune.energy.processes import own_cpu_s


@dataclass(frozen=True)
class LinearModel:
    """watts_per_core × CPU-seconds of this process and its children + watts_base × seconds.

    The parameters are declared (`benchmark.energy.watts_per_core`, `watts_base`) and stand in every figure's
    source. It counts work, so it tells a smaller model from a larger one, and is blind to memory traffic,
    clocks and temperature.
    """

    watts_per_core: float = WATTS_PER_CORE
    watts_base: float = WATTS_BASE
    own_s: Callable[[], float] = field(default=own_cpu_s, repr=False)

    @property
    def source(self) -> str:
        return f"cpu_model ({self.watts_per_core:g} W × CPU-seconds + {self.watts_base:g} W × seconds)"

    def open(self) -> LinearCount:
        return LinearCount(self, self.own_s())


@dataclass(frozen=True)
class LinearCount:
    """One window of the model."""

    model: LinearModel
    begin_s: float

    def tick(self) -> None:
        """Nothing to do between a window's ends."""

    def close(self, seconds: float) -> Counted:
        worked = max(0.0, self.model.own_s() - self.begin_s)
        joules = self.model.watts_per_core * worked + self.model.watts_base * seconds
        return Counted((Part("cpu", joules, "estimated", self.model.source, "process"),))
