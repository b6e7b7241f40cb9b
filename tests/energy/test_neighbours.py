"""Whose work it is: this process's CPU time, and who else uses the node while a window is open."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from replayed_counters import FakeNvml

from greenprune.energy import processes
from greenprune.energy.neighbours import Neighbours
from greenprune.energy.nvml import Nvml


def test_own_cpu_time_has_that_of_children_that_ended():
    before = processes.own_cpu_s()
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.3: pass"], check=True)
    assert processes.own_cpu_s() - before > 0.2  # it is counted in ticks


def look(pids=(), own=(0.0, 0.0), node=(0.0, 0.0), max_load=0.1, gpus=(), seconds=10.0, cores=2):
    own_s, node_s = iter(own), iter(node)
    library = Nvml(FakeNvml(pids=list(pids))) if gpus else None
    neighbours = Neighbours(library, gpus, max_load, lambda: next(own_s), lambda: next(node_s), cores)
    count = neighbours.open()
    count.tick()
    return count.close(seconds)


def test_foreign_cpu_time_contaminates_from_its_threshold_on():
    assert look(own=(1.0, 11.0), node=(100.0, 112.0)) is None  # 2 s of 20
    assert look(own=(1.0, 11.0), node=(100.0, 115.07)) == "other processes kept 25% of the node's cores busy"
    assert look(own=(1.0, 11.0), node=(100.0, 115.0), max_load=None) is None
    assert look(own=(0.0, 0.05), node=(0.0, 0.12), seconds=0.05) is None  # a daemon woke up in a short window
    assert look(node=(None, None)) is None  # a system that doesn't tell


def test_a_foreign_process_on_the_gpu_contaminates_before_during_or_after():
    mine = os.getpid()
    assert look(pids=[[mine]], gpus=(0,)) is None
    for moment in range(3):
        pids = [[mine], [mine], [mine]]
        pids[moment] = [mine, 4_000_000]
        assert look(pids=pids, gpus=(0,)) == "other processes computed on GPU 0 (PID 4000000)"


def test_in_a_container_one_unknown_process_is_ours():
    assert look(pids=[[4_000_001]], gpus=(0,)) is None
    assert "PID 4000000" in look(pids=[[4_000_000, 4_000_001]], gpus=(0,))


@pytest.mark.skipif(not processes.PROC_STAT.exists(), reason="/proc/stat is Linux's")
def test_another_busy_process_is_seen_here():
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True)
    try:
        count = Neighbours(None, (), 0.5 / (os.cpu_count() or 1), own_s=lambda: 0.0).open()
        started = time.perf_counter()
        time.sleep(1.0)
        assert "node's cores busy" in count.close(time.perf_counter() - started)
    finally:
        other.kill()
        other.wait()
