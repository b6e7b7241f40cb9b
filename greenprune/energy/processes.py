"""This process and its children: their CPU time and numbers, and the CPU time of the whole node."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

PROC_STAT = Path("/proc/stat")
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
