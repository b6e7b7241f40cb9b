"""What a sensor of energy must be able to do: open a count, look now and then, close the count to its parts.

    sensor = RaplSensor.here()
    count = sensor.open()
    ...                          # count.tick() every sensor.period_s
    count.close(seconds).parts

A sensor that can't tell never says 0 J: its part is absent with the reason as its source, or it leaves the part
out and gives the reason as a note. sensors.py lists the sensors there are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Kind = Literal["measured", "estimated", "constant", "absent"]  # best to worst
Component = Literal["gpu", "cpu", "ram"]


@dataclass(frozen=True)
class Part:
    """One component's joules over a window, and how they were had."""

    component: Component
    energy_j: float | None
    kind: Kind
    source: str
    scope: str


@dataclass(frozen=True)
class Counted:
    """What a count came to. notes: what is odd about it. gpus: each GPU's clocks, power cap, …, where it knows them."""

    parts: tuple[Part, ...]
    notes: tuple[str, ...] = ()
    gpus: tuple[Mapping[str, Any], ...] = ()


class Count(Protocol):
    """A sensor's count over one window."""

    def tick(self) -> None:
        """Called every `period_s` while the window is open."""

    def close(self, seconds: float) -> Counted:
        """What was counted since it was opened, `seconds` ago."""


class Sensor(Protocol):
    """A source of joules."""

    @property
    def period_s(self) -> float | None:
        """How often its counts must look while a window is open; None: not at all."""

    @property
    def counts_whole_node(self) -> bool:
        """Whether the joules are those of everything on the node, not of this process's GPUs alone."""

    def open(self) -> Count: ...


@dataclass(frozen=True)
class Found:
    """What this machine has of a sensor: one row of `greenprune doctor`.

    measures: whether joules come of it. remedy: what would mend it.
    """

    part: str
    state: str
    remedy: str = ""
    measures: bool = False
