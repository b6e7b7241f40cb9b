"""Peak memory of work on a device, and too little of it."""

from __future__ import annotations

import ctypes
import gc
import weakref
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import torch


class PeakMemory:
    """Peak memory from its making on: that of all GPUs' allocators, or the process's resident set on Linux.

    The resident set holds Python and its libraries too, some hundreds of MB that all models share. The system has one
    mark, which a new one resets: those that were there keep what it was.
    """

    alive: ClassVar[weakref.WeakSet[PeakMemory]] = weakref.WeakSet()

    def __init__(self, device: torch.device) -> None:
        self.device, self.before = device, 0
        for other in self.alive:
            other.before = other.bytes() or 0
        self.alive.add(self)
        gc.collect()
        if device.type == "cuda":
            for gpu in range(torch.cuda.device_count()):
                torch.cuda.reset_peak_memory_stats(gpu)
        self.resettable = device.type == "cpu" and _reset_high_water_mark()

    def bytes(self) -> int | None:
        """None where the system doesn't tell."""
        if self.device.type == "cuda":
            return max(self.before, sum(map(torch.cuda.max_memory_allocated, range(torch.cuda.device_count()))))
        if not self.resettable:
            return None
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return max(self.before, int(line.split()[1]) * 1024)
        return None


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether a stage failed for want of memory, on a GPU, here, or in a worker that is quoted."""
    text = str(problem).lower()
    said = isinstance(problem, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
    return isinstance(problem, MemoryError | torch.OutOfMemoryError) or said


def _reset_high_water_mark() -> bool:
    """Set Linux's VmHWM to what is resident now, freed memory given back first (proc(5), clear_refs 5)."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True
