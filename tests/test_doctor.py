"""What `greenprune doctor` says of machines that this one isn't."""

from __future__ import annotations

import dataclasses

import pytest
from replayed_counters import FakeNvml, install_nvml, install_powercap, powercap

from greenprune import doctor
from greenprune.config import ENGINES
from greenprune.doctor import examine
from greenprune.energy.rapl import Zone


@pytest.fixture
def counters(tmp_path, monkeypatch):
    root = powercap(tmp_path, p0=1, p0_dram=1)
    install_powercap(monkeypatch, root)
    return root


def rows() -> dict[str, doctor.Check]:
    return {check.part: check for check in examine()}


def test_every_missing_thing_has_its_remedy(monkeypatch):
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    for check in examine():
        assert check.remedy or not check.state.startswith(("missing", "unknown", "none")), check
    assert rows()["ray"].remedy == "pip install 'ray[tune,train]'"


def test_a_counter_that_may_not_be_read_is_named_with_its_command(counters, monkeypatch):
    assert "measured by RAPL: package-0, dram" in rows()["cpu energy"].state
    monkeypatch.setattr(Zone, "readable", lambda zone: zone.component == "ram")
    check = rows()["cpu energy"]
    assert check.state == "estimated: RAPL is there but can't be read"
    assert check.remedy == f"sudo chmod a+r {counters}/intel-rapl:0/energy_uj"


@pytest.mark.parametrize(
    ("answers", "state", "remedy"),
    [
        ({"energy_mj": [1], "power_mw": [1]}, "measured by its counter", ""),
        ({"power_mw": [1]}, "its power is measured", ""),
        ({}, "tells neither energy nor power", "driver"),
        ({"energy_mj": [1], "power_mw": [1], "mig": [[1, 1]]}, "cut into MIG slices", "nvidia-smi -i 0 -mig 0"),
    ],
    ids=["counter", "power", "neither", "mig"],
)
def test_each_gpu_says_how_it_is_metered(monkeypatch, answers, state, remedy):
    install_nvml(monkeypatch, FakeNvml(**answers))
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: True)
    assert state in rows()["gpu 0"].state
    assert remedy in rows()["gpu 0"].remedy


def test_engines_are_there_or_have_their_script(monkeypatch):
    missing = dataclasses.replace(ENGINES["vllm"], module="nothing_of_this_name")
    monkeypatch.setitem(ENGINES, "vllm", missing)
    monkeypatch.setitem(ENGINES, "llama_cpp", dataclasses.replace(ENGINES["llama_cpp"], module="json"))
    assert (rows()["vllm"].remedy, rows()["llama_cpp"].remedy) == ("scripts/engines vllm", "")
    assert rows()["llama_cpp"].state.startswith("installed")


def test_without_a_sensor_joules_are_estimated(monkeypatch, tmp_path):
    install_nvml(monkeypatch, None)
    install_powercap(monkeypatch, tmp_path)
    assert rows()["joules of a trial"].state.startswith("estimated")
    assert "watts_per_core" in rows()["joules of a trial"].remedy


def test_joules_are_said_to_be_of_the_first_sensor_that_measures(counters, monkeypatch):
    install_nvml(monkeypatch, FakeNvml())  # a GPU that tells nothing
    assert rows()["joules of a trial"].state == "measured, over the whole node"
    install_nvml(monkeypatch, FakeNvml(power_mw=[1]))
    assert rows()["joules of a trial"].state.startswith("measured on the GPU it runs on")
