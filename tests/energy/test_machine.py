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


@pytest.fixture
def known_box(monkeypatch, tmp_path):
    """A machine of which all but the GPUs is known; a function that puts GPUs in and gives identity and class."""
    install_powercap(monkeypatch, tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(machine, "cpu_model", lambda: "AMD EPYC")
    monkeypatch.setattr(machine, "_memory_gib", lambda: 24)
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 2)

    def identified(binding: FakeNvml | None, mask: str | None = None) -> tuple[str, str]:
        install_nvml(monkeypatch, binding)
        if mask is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", mask)
        identity, facts = machine_identity()
        return identity, facts["machine_class"]

    return identified


def test_without_a_gpu_identity_and_class_are_the_hash_that_they_were(known_box):
    """Energies that CPUs of before took stay valid: CPU model, cores, memory, sensors."""
    assert known_box(None) == ("70630021cc3f", "70630021cc3f")


def test_the_class_is_the_hash_that_the_identity_was(known_box):
    assert known_box(FakeNvml())[1] == "c56649f80016"


def test_another_card_of_a_class_is_another_machine(known_box):
    cards = [known_box(FakeNvml(gpus=2), mask) for mask in ("0", "1", "GPU-1")]
    assert len({machine_class for _, machine_class in cards}) == 1
    assert cards[0][0] != cards[1][0] == cards[2][0]


def test_driver_and_power_cap_are_part_of_a_card(known_box):
    cards = [known_box(FakeNvml(limit_mw=[watts * 1000])) for watts in (700, 500, 700)]
    newer = FakeNvml(limit_mw=[700_000])
    newer.nvmlSystemGetDriverVersion = lambda: b"590"
    assert cards[0] == cards[2]
    assert len({cards[0][0], cards[1][0], known_box(newer)[0]}) == 3
    assert len({machine_class for _, machine_class in (*cards, known_box(newer))}) == 1


def test_a_slice_is_told_from_its_neighbour(known_box):
    first, second = (known_box(FakeNvml(), mask) for mask in ("MIG-aaaa", "MIG-bbbb"))
    assert first[0] != second[0]
    assert first[1] == second[1]


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
