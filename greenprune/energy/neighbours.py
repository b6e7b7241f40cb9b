"""Who else uses the node while a window is open."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from greenprune.energy.processes import node_cpu_s, own_cpu_s, own_pids

if TYPE_CHECKING:
    from greenprune.energy.nvml import Nvml

TICK_S = 0.01  # the grain of /proc/stat, for each core
BLIP_S = 0.05  # what a daemon that wakes up takes, of no weight in a window of seconds


class Neighbours:
    """Watches a node for work that isn't this process's.

    gpus: NVML indices that nobody else may compute on. max_load: the share of the node's cores that others
    may keep busy; None doesn't look (a figure of a GPU alone has none of it in it).
    """

    def __init__(
        self,
        library: Nvml | None,
        gpus: Sequence[int],
        max_load: float | None,
        own_s: Callable[[], float] = own_cpu_s,
        node_s: Callable[[], float | None] = node_cpu_s,
        cores: int | None = None,
    ) -> None:
        self.library, self.gpus, self.max_load = library, tuple(gpus), max_load
        self.own_s, self.node_s, self.cores = own_s, node_s, cores or os.cpu_count() or 1
        self.period_s = 1.0 if self.gpus else None

    def open(self) -> NeighbourCount:
        return NeighbourCount(self)


class NeighbourCount:
    """One window's look at the neighbours."""

    def __init__(self, neighbours: Neighbours) -> None:
        self.neighbours = neighbours
        self.seen: dict[int, set[int]] = {gpu: set() for gpu in neighbours.gpus}
        self.ours: set[int] = set()
        self.tick()
        self.own, self.node = neighbours.own_s(), neighbours.node_s()

    def tick(self) -> None:
        """Look who computes on the GPUs."""
        if self.neighbours.gpus:
            self.ours |= own_pids()
        for gpu in self.neighbours.gpus:
            assert self.neighbours.library is not None, "GPUs are known from NVML"
            self.seen[gpu] |= self.neighbours.library.pids(gpu)

    def foreign_pids(self, gpu: int) -> list[int]:
        """Who else computed on a GPU. In a container NVML numbers our own process otherwise: one unknown is us."""
        foreign = sorted(self.seen[gpu] - self.ours)
        return foreign if self.seen[gpu] & self.ours else foreign[:-1]

    def foreign_load(self, seconds: float) -> float | None:
        """Share of the node's cores that others kept busy over the window."""
        node = self.neighbours.node_s()
        if node is None or self.node is None:
            return None
        foreign = (node - self.node) - (self.neighbours.own_s() - self.own) - BLIP_S - TICK_S * self.neighbours.cores
        return min(1.0, max(0.0, foreign / (seconds * self.neighbours.cores)))

    def close(self, seconds: float) -> str | None:
        """Who disturbed the window; None for nobody."""
        load = None if self.neighbours.max_load is None else self.foreign_load(seconds)
        self.tick()
        reasons = []
        for gpu in self.neighbours.gpus:
            if pids := self.foreign_pids(gpu):
                reasons.append(f"other processes computed on GPU {gpu} (PID {', '.join(map(str, pids))})")
        if load is not None and self.neighbours.max_load is not None and load > self.neighbours.max_load:
            reasons.append(f"other processes kept {load:.0%} of the node's cores busy")
        return " and ".join(reasons) or None
