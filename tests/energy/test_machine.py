"""Which hardware this is, and which of its GPUs a process uses. Nothing here needs a sensor."""

from __future__ import annotations

import subprocess
import sys

import pytest
from replayed_counters import FakeNvml, install_nvml, install_powercap, powercap

from greenprune.energy import machine, machine_identity
from greenprune.energy.machine import energy_sources, visible_gpus
from greenprune.energy.nvml import Gpu
from greenprune.errors import EnergyError

GPUS = (Gpu(0, "H100", "GPU-aaaa-1"), Gpu(1, "H100", "GPU-bbbb-2"))


def test_machine_identity_is_stable_and_tells_hardware_apart(monkeypatch):
    identity, facts = machine_identity()
    assert machine_identity()[0] == identity
    assert {"cpu", "cores", "memory_gib", "gpus", "energy_sources", "hostname", "os", "driver"} <= set(facts)
    install_nvml(monkeypatch, FakeNvml(gpus=2))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with_gpus, facts = machine_identity()
    assert with_gpus != identity
    assert facts["gpus"] == ["H100", "H100"]
    assert facts["driver"] == "580"
    assert "nvml" in facts["energy_sources"]


def test_energy_sources_are_named_as_they_always_were(monkeypatch, tmp_path):
    """They are part of the identity that artifacts in a store are bound to."""
    install_nvml(monkeypatch, None)
    install_powercap(monkeypatch, tmp_path)
    assert energy_sources() == ["cpu_model"]
    install_powercap(monkeypatch, powercap(tmp_path, p0=1))
    assert energy_sources() == ["rapl"]
    install_nvml(monkeypatch, FakeNvml(mig=[[1, 1]]))  # a GPU counts for the identity whether it can be metered or not
    assert energy_sources() == ["nvml", "rapl"]


def test_an_identity_is_the_hash_that_it_was(monkeypatch, tmp_path):
    install_nvml(monkeypatch, FakeNvml())
    install_powercap(monkeypatch, tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(machine, "cpu_model", lambda: "AMD EPYC")
    monkeypatch.setattr(machine, "_memory_gib", lambda: 24)
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 2)
    identity, _ = machine_identity()
    assert identity == "c56649f80016"


@pytest.mark.parametrize(
    ("mask", "indices"),
    [("", ()), ("1", (1,)), ("0,1", (0, 1)), ("GPU-bbbb", (1,)), ("0,-1,1", (0,)), ("-1", ())],
)
def test_visible_gpus_by_index_and_uuid(mask, indices):
    assert visible_gpus(GPUS, mask) == indices


@pytest.mark.parametrize("mask", ["MIG-1234", "7", "GPU-"])
def test_a_gpu_that_cannot_be_told_is_refused(mask):
    with pytest.raises(EnergyError, match=f"got '{mask}'"):
        visible_gpus(GPUS, mask)


def test_an_index_among_different_gpus_needs_one_numbering(monkeypatch):
    mixed = (Gpu(0, "A100", "GPU-aaaa-1"), Gpu(1, "H100", "GPU-bbbb-2"))
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    with pytest.raises(EnergyError, match="CUDA_DEVICE_ORDER=PCI_BUS_ID"):
        visible_gpus(mixed, "1")
    assert visible_gpus(mixed, "GPU-bbbb") == (1,)
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert visible_gpus(mixed, "1") == (1,)


def test_a_cpu_counts_no_gpu():
    import torch

    assert machine.gpus_of(torch.device("cpu")) == ()


def test_importing_energy_is_light():
    code = (
        "import sys, greenprune.energy; print(sorted({'torch', 'codecarbon', 'pynvml', 'pandas'} & set(sys.modules)))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == "[]"
