"""Two stages on one GPU: each is charged its share of the joules, or none with the reason, never all of them."""

from __future__ import annotations

import os
import time

import pytest
from replayed_counters import FakeNvml, install_nvml

from greenprune.energy import meter
from greenprune.energy.charged import ChargedGpu
from greenprune.energy.counting import Part
from greenprune.energy.nvml import Nvml

ME, OTHER = os.getpid(), 4_000_000
SOON_US = 60_000_000  # after the window was opened, in NVML's time
WHOLE = Part("gpu", 300.0, "measured", "nvml_counter", "device")


def charged(pids, use=None) -> Part:
    """GPU 0 takes 300 J; `use` is given as [(PID, percent), …], a sample a second."""
    at = int(time.time() * 1e6) + SOON_US
    answers = {"energy_mj": [100_000, 400_000], "power_mw": [100_000], "pids": [list(pids)]}
    if use is not None:
        answers["use"] = [[(pid, at + 1_000_000 * i, percent) for i, (pid, percent) in enumerate(use)]]
    count = ChargedGpu(Nvml(FakeNvml(**answers)), 0).open()
    count.tick()
    (part,) = count.close(3.0).parts
    return part


@pytest.mark.parametrize(
    ("pids", "use"),
    [
        ([ME], None),
        ([ME], []),
        ([ME], [(ME, 80)]),
        ([ME, OTHER], [(ME, 80), (OTHER, 0), (ME, 60)]),  # it holds memory there, and computed nothing
        ([OTHER], None),  # in a container, where we are numbered otherwise
        ([], None),
    ],
)
def test_alone_on_a_gpu_it_is_measured_in_whole(pids, use):
    assert charged(pids, use) == WHOLE


def test_a_shared_gpu_is_charged_by_the_use_of_its_processors():
    part = charged([ME, OTHER], [(ME, 60), (OTHER, 20), (ME, 60), (OTHER, 100)])
    assert part == Part("gpu", 150.0, "estimated", "nvml_counter × share of SM time", "process")


def test_one_that_came_and_went_between_two_looks_counts_too():
    assert charged([ME], [(ME, 50), (OTHER, 50)]).energy_j == 150.0


@pytest.mark.parametrize(
    ("pids", "use", "reason"),
    [
        ([ME, OTHER], None, "its driver doesn't tell who used it"),
        ([ME, OTHER], [], "no sample of its use within 3 s"),
        ([OTHER, OTHER + 1], [(OTHER, 50), (OTHER + 1, 50)], "none of them is known to be this one"),
    ],
)
def test_a_share_that_cannot_be_told_is_absent_with_the_reason(pids, use, reason):
    part = charged(pids, use)
    assert (part.energy_j, part.kind) == (None, "absent")
    assert part.source == f"GPU 0 was shared with other processes, and {reason}"


def test_samples_of_before_the_window_do_not_count():
    before = int(time.time() * 1e6) - SOON_US
    use = [[(OTHER, before, 100), (ME, before + 2 * SOON_US, 50)]]
    binding = FakeNvml(energy_mj=[100_000, 400_000], power_mw=[100_000], pids=[[ME, OTHER]], use=use)
    assert ChargedGpu(Nvml(binding), 0).open().close(3.0).parts == (WHOLE,)


def test_a_stage_s_meter_charges_what_it_shares(monkeypatch):
    """The whole of it was taken for each stage before, so that two on a GPU counted its joules twice."""
    use = [[(ME, int(time.time() * 1e6) + SOON_US, 25), (OTHER, int(time.time() * 1e6) + SOON_US, 75)]]
    install_nvml(monkeypatch, FakeNvml(energy_mj=[100_000, 400_000], power_mw=[100_000], pids=[[ME, OTHER]], use=use))
    monkeypatch.setattr(meter, "gpus_of", lambda device: (0,))
    with meter.stage_meter(device=None).window("heal") as window:
        pass
    assert (window.reading.energy_j, window.reading.grade) == (75.0, "estimated")
    assert window.reading.gpu_j == 75.0
