"""A node's sensor of which this process is charged its share of the node's CPU time: an estimate, for stages that
share a node."""

from __future__ import annotations

from dataclasses import dataclass, replace

from greenprune.energy.counting import Count, Counted, Part, Sensor
from greenprune.energy.processes import node_cpu_s, own_cpu_s


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
        return replace(counted, parts=tuple(_charged(part, share) for part in counted.parts))


def _charged(part: Part, share: float) -> Part:
    if part.energy_j is None:
        return part
    source = f"{part.source} × share of CPU time"
    return replace(part, energy_j=part.energy_j * share, kind="estimated", source=source, scope="process")
