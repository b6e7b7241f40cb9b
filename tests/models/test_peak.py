"""Peak memory of a piece of work."""

from __future__ import annotations

import sys

import pytest
import torch

from greenprune.models.peak import PeakMemory


@pytest.mark.skipif(sys.platform != "linux", reason="VmHWM is Linux's")
def test_peak_memory_is_of_the_window_only():
    peak = PeakMemory(torch.device("cpu"))
    before = peak.bytes()
    if before is None:
        pytest.skip("/proc/self/clear_refs can't be written here")
    held = torch.ones(64 << 18)  # 64 MiB
    after = peak.bytes()
    del held
    assert 60 << 20 < after - before < 100 << 20
    assert PeakMemory(torch.device("cpu")).bytes() < after - (30 << 20)
