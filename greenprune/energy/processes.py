"""Whose work it is: the CPU time of this process and its children, and who else uses the node meanwhile."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from greenprune.energy.nvml import Nvml

PROC_STAT = Path("/proc/stat")
TICK_S = 0.01  # the grain of /proc/stat, for each core
BLIP_S = 0.05  # what a daemon that wakes up takes, of no weight in a window of seconds
BUSY = (0, 1, 2, 5, 6)  # user, nice, system, irq, softirq of proc(5); neither waiting nor stolen time


def own_cpu_s() -> float:
    """CPU seconds of this process and its descendants, those that have ended included."""
    import psutil

    total, me = 0.0, psutil.Process()
    for process in (me, *me.children(recursive=True)):
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            times = process.cpu_times()
            total += times.user + times.system
            total += getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
    return total


def own_pids() -> set[int]:
    import psutil

    me = psutil.Process()
    return {me.pid, *(child.pid for child in me.children(recursive=True))}


def node_cpu_s(stat: Path = PROC_STAT) -> float | None:
    """CPU seconds that the node has worked since it started; None where the system doesn't tell (not Linux)."""
    try:
        numbers = stat.read_text().split("\n", 1)[0].split()[1:]
        return sum(int(numbers[i]) for i in BUSY) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None


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

    def open(self) -> Watch:
        return Watch(self)


class Watch:
    """One window's look at the neighbours."""

    def __init__(self, neighbours: Neighbours) -> None:
        self.to = neighbours
        self.seen: dict[int, set[int]] = {gpu: set() for gpu in neighbours.gpus}
        self.ours: set[int] = set()
        self.tick()
        self.own, self.node = neighbours.own_s(), neighbours.node_s()

    def tick(self) -> None:
        """Look who computes on the GPUs."""
        if self.to.gpus:
            self.ours |= own_pids()
        for gpu in self.to.gpus:
            assert self.to.library is not None, "GPUs are known from NVML"
            self.seen[gpu] |= self.to.library.pids(gpu)

    def foreign_pids(self, gpu: int) -> list[int]:
        """Who else computed on a GPU. In a container NVML numbers our own process otherwise: one unknown is us."""
        foreign = sorted(self.seen[gpu] - self.ours)
        return foreign if self.seen[gpu] & self.ours else foreign[:-1]

    def foreign_load(self, seconds: float) -> float | None:
        """Share of the node's cores that others kept busy over the window."""
        node = self.to.node_s()
        if node is None or self.node is None:
            return None
        foreign = (node - self.node) - (self.to.own_s() - self.own) - BLIP_S - TICK_S * self.to.cores
        return min(1.0, max(0.0, foreign / (seconds * self.to.cores)))

    def close(self, seconds: float) -> str | None:
        """Who disturbed the window; None for nobody."""
        load = None if self.to.max_load is None else self.foreign_load(seconds)
        self.tick()
        reasons = []
        for gpu in self.to.gpus:
            if pids := self.foreign_pids(gpu):
                reasons.append(f"other processes computed on GPU {gpu} (PID {', '.join(map(str, pids))})")
        if load is not None and self.to.max_load is not None and load > self.to.max_load:
            reasons.append(f"other processes kept {load:.0%} of the node's cores busy")
        return " and ".join(reasons) or None
