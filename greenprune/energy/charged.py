"""A stage's share of sensors that it shares with others: an estimate, where the share can be told.

Of a node's sensor it is charged its share of the node's CPU time, of a GPU's its share of the time that processes
computed there. A GPU that nobody else used is its own, measured in whole.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from greenprune.energy.counting import Count, Counted, Part, Sensor
from greenprune.energy.neighbours import Neighbours
from greenprune.energy.nvml import POWER_PERIOD_S, Nvml, NvmlSensor
from greenprune.energy.processes import node_cpu_s, own_cpu_s

LOOK_EVERY = 10  # samples of power: once a second, as often as the driver samples who computes


def charged(sensor: Sensor) -> Sequence[Sensor]:
    """The sensor in whose place a stage is charged its share; of several GPUs one each."""
    if isinstance(sensor, NvmlSensor):
        return [ChargedGpu(sensor.library, index) for index in sensor.indices]
    return [Charged(sensor)] if sensor.counts_whole_node else [sensor]


# ---------------------------------------------------------------------------------------------------- of a node


@dataclass(frozen=True)
class Charged:
    """`sensor`, charged; beside a GPU's joules it stays a column of its own, as the sensor itself does."""

    sensor: Sensor

    @property
    def period_s(self) -> float | None:
        return self.sensor.period_s

    @property
    def counts_whole_node(self) -> bool:
        return self.sensor.counts_whole_node

    def open(self) -> ChargedCount:
        return ChargedCount(self.sensor.open(), own_cpu_s(), node_cpu_s())


@dataclass(frozen=True)
class ChargedCount:
    """One window of a charged sensor. own_s, node_s: CPU seconds when it was opened, this process's and the node's."""

    count: Count
    own_s: float
    node_s: float | None

    def tick(self) -> None:
        self.count.tick()

    def close(self, seconds: float) -> Counted:
        """Each part × this process's share; the whole parts where the system doesn't tell the node's CPU time."""
        node_s = node_cpu_s()
        counted = self.count.close(seconds)
        if node_s is None or self.node_s is None or node_s <= self.node_s:
            return counted
        share = min(1.0, (own_cpu_s() - self.own_s) / (node_s - self.node_s))
        return replace(counted, parts=tuple(_charged(part, share, "CPU time") for part in counted.parts))


def _charged(part: Part, share: float, of: str) -> Part:
    if part.energy_j is None:
        return part
    source = f"{part.source} × share of {of}"
    return replace(part, energy_j=part.energy_j * share, kind="estimated", source=source, scope="process")


# ----------------------------------------------------------------------------------------------------- of a GPU


@dataclass(frozen=True)
class ChargedGpu:
    """One GPU, charged."""

    library: Nvml
    index: int

    @property
    def period_s(self) -> float | None:
        return POWER_PERIOD_S

    @property
    def counts_whole_node(self) -> bool:
        return False

    def open(self) -> ChargedGpuCount:
        return ChargedGpuCount(self.library, self.index)


class ChargedGpuCount:
    """One window of a charged GPU: its joules, who was there, and who computed how much."""

    def __init__(self, library: Nvml, index: int) -> None:
        self.library, self.index = library, index
        self.since_us = int(time.time() * 1e6)
        self.used: Counter[int] = Counter()  # by PID, percent summed over looks
        self.is_told = True
        self.ticks = 0
        self.there = Neighbours(library, (index,), None).open()
        self.count = NvmlSensor(library, (index,)).open()

    def tick(self) -> None:
        self.count.tick()
        self.ticks += 1
        if self.ticks % LOOK_EVERY == 0:
            self._look()

    def close(self, seconds: float) -> Counted:
        counted = self.count.close(seconds)
        self._look()
        share = self._share(seconds)
        if share == 1:
            return counted
        if isinstance(share, str):
            reason = f"GPU {self.index} was shared with other processes, and {share}"
            parts = [replace(part, energy_j=None, kind="absent", source=reason) for part in counted.parts]
        else:
            parts = [_charged(part, share, "SM time") for part in counted.parts]
        return replace(counted, parts=tuple(parts))

    def _look(self) -> None:
        self.there.tick()
        found = self.library.use(self.index, self.since_us)
        self.is_told = self.is_told and found is not None
        for use in found or ():
            self.used[use.pid] += use.percent
            self.since_us = max(self.since_us, use.at_us)

    def _share(self, seconds: float) -> float | str:
        """This process's share of the GPU, 1 where it had it alone; why it can't be told, where it can't."""
        total = self.used.total()
        there = self.there.seen[self.index] | {pid for pid, percent in self.used.items() if percent}
        ours = there & self.there.ours
        if len(there - ours) <= (0 if ours else 1):  # in a container NVML numbers our process otherwise: one is us
            return 1.0
        if not ours:
            return "none of them is known to be this one"
        if not self.is_told:
            return "its driver doesn't tell who used it"
        if not total:
            return f"no sample of its use within {seconds:.2g} s"
        return sum(self.used[pid] for pid in ours) / total
