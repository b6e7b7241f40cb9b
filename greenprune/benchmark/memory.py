"""Peak memory of work on a device."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress
from pathlib import Path

import torch


class PeakMemory:
    """Peak memory from its making on: the allocator's on a GPU, the process's resident set on Linux.

    The resident set holds Python and its libraries too, some hundreds of MB that all models share.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        gc.collect()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self.resettable = device.type == "cpu" and _reset_high_water_mark()

    def bytes(self) -> int | None:
        """None where the system doesn't tell."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        if not self.resettable:
            return None
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return None


def _reset_high_water_mark() -> bool:
    """Set Linux's VmHWM to what is resident now, freed memory given back first (proc(5), clear_refs 5)."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True
