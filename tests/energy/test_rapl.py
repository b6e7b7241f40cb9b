"""Joules of CPU packages and memory from a powercap tree of files."""

from __future__ import annotations

import pytest
from replayed_counters import install_nvml, install_powercap, powercap, set_uj

from greenprune.energy import rapl
from greenprune.energy.counting import Part
from greenprune.energy.rapl import RaplSensor, Zone
from greenprune.energy.sensors import why_no_sensor


def test_packages_and_memory_are_told_apart_and_cores_count_once(tmp_path):
    root = powercap(tmp_path, p0=100, p1=100, p0_dram=10, p0_core=5, p1_uncore=5)
    count = RaplSensor.here(root).open()
    set_uj(root, p0=400, p1=150, p0_dram=30)
    assert count.close(1.0).parts == (
        Part("cpu", 350e-6, "measured", "rapl", "package"),
        Part("ram", 20e-6, "measured", "rapl", "dram"),
    )


def test_a_counter_that_wraps_goes_on(tmp_path):
    root = powercap(tmp_path, p0=900)
    count = RaplSensor.here(root).open()
    for value in (100, 950, 50):  # 200, 850 and 100 µJ further, over two wraps
        set_uj(root, p0=value)
        count.tick()
    assert count.close(1.0).parts[0].energy_j == pytest.approx(1150e-6)


def test_a_counter_that_stands_still_gives_no_figure_and_says_so(tmp_path):
    counted = RaplSensor.here(powercap(tmp_path, p0=900)).open().close(2.0)
    assert counted.parts == ()
    assert counted.notes == ("RAPL's package counters stood still for 2.00 s",)


def test_a_counter_that_fails_in_a_window_is_absent(tmp_path):
    root = powercap(tmp_path, p0=100, p1=100)
    count = RaplSensor.here(root).open()
    (root / "intel-rapl:1" / "energy_uj").unlink()
    count.tick()
    (part,) = count.close(1.0).parts
    assert (part.energy_j, part.kind) == (None, "absent")
    assert "energy_uj" in part.source


def test_flat_and_nested_listings_are_the_same_zones(tmp_path):
    root = powercap(tmp_path, p0=1, p0_dram=1)
    (root / "intel-rapl:0:1").symlink_to(root / "intel-rapl:0" / "intel-rapl:0:1")
    assert [zone.name for zone in rapl.zones(root)] == ["package-0", "dram"]


def test_a_counter_without_permission_is_named_with_its_command(tmp_path, monkeypatch):
    root = powercap(tmp_path, p0=1, p1=1)
    closed = root / "intel-rapl:1" / "energy_uj"
    monkeypatch.setattr(Zone, "readable", lambda zone: zone.counter != closed)
    assert RaplSensor.here(root) is None  # one package of two is no figure
    assert rapl.mend(root) == f"sudo chmod a+r {closed}"
    install_powercap(monkeypatch, root)
    assert f"can't be read: sudo chmod a+r {closed}" in why_no_sensor()


def test_no_counter_is_no_sensor(tmp_path):
    assert RaplSensor.here(tmp_path) is None
    assert rapl.mend(tmp_path) is None


def test_why_a_cpu_has_no_sensor_is_said_as_it_always_was(monkeypatch, tmp_path):
    install_nvml(monkeypatch, None)
    install_powercap(monkeypatch, tmp_path)
    said = "estimated: no sensor, this machine shows no RAPL counter (a virtual machine rarely does)"
    assert why_no_sensor() == said
    install_powercap(monkeypatch, powercap(tmp_path, p0=1))
    assert why_no_sensor() == "estimated: no sensor"
