"""Joules of GPUs from an NVML that answers from a script."""

from __future__ import annotations

import pytest
from replayed_counters import Clock, FakeNvml

from greenprune.energy.counting import Counted, Part
from greenprune.energy.nvml import Nvml, NvmlSensor
from greenprune.errors import EnergyError


def count_of(sensor, ticks: int, seconds: float) -> Counted:
    """What a window came to after so many ticks."""
    count = sensor.open()
    for _ in range(ticks):
        count.tick()
    return count.close(seconds)


def nvml_sensor(indices=(0,), step=1.0, **answers) -> NvmlSensor:
    return NvmlSensor(Nvml(FakeNvml(gpus=max(indices) + 1, **answers)), indices, clock=Clock(step))


def test_the_counter_is_the_figure_and_power_agrees():
    sensor = nvml_sensor(energy_mj=[5_000, 305_000], power_mw=[100_000])
    counted = count_of(sensor, ticks=2, seconds=3.0)  # 100 W over 3 looks one second apart
    assert counted.parts == (Part("gpu", 300.0, "measured", "nvml_counter", "device"),)
    assert counted.notes == ()


def test_a_counter_that_power_contradicts_is_flagged():
    sensor = nvml_sensor(energy_mj=[0, 300_000], power_mw=[130_000])
    counted = count_of(sensor, ticks=2, seconds=3.0)
    assert counted.parts[0].energy_j == 300.0
    assert counted.notes == ("GPU 0's counter (300 J) and its integrated power (390 J) disagree by 30%",)
    near = count_of(nvml_sensor(energy_mj=[0, 300_000], power_mw=[109_000]), ticks=2, seconds=3.0)
    assert near.notes == ()


def test_without_a_counter_power_is_integrated():
    counted = count_of(nvml_sensor(power_mw=[100_000, 200_000, 200_000, 100_000]), ticks=2, seconds=3.0)
    assert counted.parts == (Part("gpu", 150.0 + 200.0 + 150.0, "measured", "nvml_power", "device"),)


def test_a_counter_that_stands_still_is_no_zero():
    counted = count_of(nvml_sensor(energy_mj=[7_000], power_mw=[50_000]), ticks=1, seconds=2.0)
    assert (counted.parts[0].energy_j, counted.parts[0].source) == (100.0, "nvml_power")
    assert "stood still" in counted.notes[0]


def test_a_gpu_that_tells_nothing_is_absent():
    (part,) = count_of(nvml_sensor(indices=(0, 1), energy_mj0=[0, 9_000]), ticks=1, seconds=2.0).parts
    assert (part.energy_j, part.kind) == (None, "absent")
    assert "GPU 1 told neither energy nor power" in part.source


def test_several_gpus_are_summed_and_others_are_not():
    answers = {"energy_mj0": [0, 1_000], "energy_mj1": [0, 20_000], "energy_mj2": [0, 300_000]}
    (part,) = count_of(nvml_sensor(indices=(0, 2), **answers), ticks=0, seconds=1.0).parts
    assert part.energy_j == 301.0


def test_a_gpu_cut_into_mig_slices_is_refused():
    with pytest.raises(EnergyError, match="GPU 1, which is cut into MIG slices"):
        nvml_sensor(indices=(0, 1), mig0=[[0, 0]], mig1=[[1, 1]])


def test_clocks_cap_temperature_and_throttling_are_recorded():
    sensor = nvml_sensor(
        energy_mj=[0, 1_000], clock_mhz=[1000, 2000], temperature=[60, 70], throttling=[0, 4], cap_mw=[700_000]
    )
    (state,) = count_of(sensor, ticks=0, seconds=1.0).gpus
    assert (state["sm_clock_mhz"], state["temperature_c"], state["power_cap_w"]) == (1500.0, 70, 700.0)
    assert state["throttling"] == ("power cap",)
    (silent,) = count_of(nvml_sensor(energy_mj=[0, 1_000]), ticks=0, seconds=1.0).gpus
    assert silent["temperature_c"] is None
