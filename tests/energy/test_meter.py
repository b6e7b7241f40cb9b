"""The node's meter on replayed counters: an NVML that answers from a script, a powercap tree of files."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest
from replayed_counters import Clock, FakeNvml, powercap, set_uj

from greenprune.energy import meter as meter_module
from greenprune.energy import processes, rapl
from greenprune.energy.costs import break_even_requests, search_cost
from greenprune.energy.linear import LinearModel
from greenprune.energy.meter import Charged, NodeMeter, meter_for, no_sensor, stage_meter
from greenprune.energy.nvml import Nvml, NvmlSensor
from greenprune.energy.processes import Neighbours
from greenprune.energy.rapl import RaplSensor, Zone
from greenprune.energy.reading import Part
from greenprune.errors import EnergyError


def count_of(sensor, ticks: int, seconds: float):
    """A window's parts and notes after so many ticks."""
    count = sensor.open()
    for _ in range(ticks):
        count.tick()
    return count.close(seconds), count


def nvml_sensor(indices=(0,), step=1.0, **answers) -> NvmlSensor:
    return NvmlSensor(Nvml(FakeNvml(gpus=max(indices) + 1, **answers)), indices, clock=Clock(step))


# ----------------------------------------------------------------------------------------------------- NVML


def test_the_counter_is_the_figure_and_power_agrees():
    sensor = nvml_sensor(energy_mj=[5_000, 305_000], power_mw=[100_000])
    parts, count = count_of(sensor, ticks=2, seconds=3.0)  # 100 W over 3 looks one second apart
    assert parts == [Part("gpu", 300.0, "measured", "nvml_counter", "device")]
    assert count.notes == []


def test_a_counter_that_power_contradicts_is_flagged():
    sensor = nvml_sensor(energy_mj=[0, 300_000], power_mw=[130_000])
    parts, count = count_of(sensor, ticks=2, seconds=3.0)
    assert parts[0].energy_j == 300.0
    assert count.notes == ["GPU 0's counter (300 J) and its integrated power (390 J) disagree by 30%"]
    _, near = count_of(nvml_sensor(energy_mj=[0, 300_000], power_mw=[109_000]), ticks=2, seconds=3.0)
    assert near.notes == []


def test_without_a_counter_power_is_integrated():
    parts, _ = count_of(nvml_sensor(power_mw=[100_000, 200_000, 200_000, 100_000]), ticks=2, seconds=3.0)
    assert parts == [Part("gpu", 150.0 + 200.0 + 150.0, "measured", "nvml_power", "device")]


def test_a_counter_that_stands_still_is_no_zero():
    parts, count = count_of(nvml_sensor(energy_mj=[7_000], power_mw=[50_000]), ticks=1, seconds=2.0)
    assert (parts[0].energy_j, parts[0].source) == (100.0, "nvml_power")
    assert "stood still" in count.notes[0]


def test_a_gpu_that_tells_nothing_is_absent():
    parts, _ = count_of(nvml_sensor(indices=(0, 1), energy_mj0=[0, 9_000]), ticks=1, seconds=2.0)
    assert (parts[0].energy_j, parts[0].kind) == (None, "absent")
    assert "GPU 1 told neither energy nor power" in parts[0].source


def test_several_gpus_are_summed_and_others_are_not():
    answers = {"energy_mj0": [0, 1_000], "energy_mj1": [0, 20_000], "energy_mj2": [0, 300_000]}
    parts, _ = count_of(nvml_sensor(indices=(0, 2), **answers), ticks=0, seconds=1.0)
    assert parts[0].energy_j == 301.0


def test_a_gpu_cut_into_mig_slices_is_refused():
    with pytest.raises(EnergyError, match="GPU 1, which is cut into MIG slices"):
        nvml_sensor(indices=(0, 1), mig0=[[0, 0]], mig1=[[1, 1]])


def test_clocks_cap_temperature_and_throttling_are_recorded():
    sensor = nvml_sensor(
        energy_mj=[0, 1_000], clock_mhz=[1000, 2000], temperature=[60, 70], throttling=[0, 4], cap_mw=[700_000]
    )
    _, count = count_of(sensor, ticks=0, seconds=1.0)
    (state,) = count.states()
    assert (state["sm_clock_mhz"], state["temperature_c"], state["power_cap_w"]) == (1500.0, 70, 700.0)
    assert state["throttling"] == ("power cap",)
    _, silent = count_of(nvml_sensor(energy_mj=[0, 1_000]), ticks=0, seconds=1.0)
    assert silent.states()[0]["temperature_c"] is None


# ----------------------------------------------------------------------------------------------------- RAPL


def test_packages_and_memory_are_told_apart_and_cores_count_once(tmp_path):
    root = powercap(tmp_path, p0=100, p1=100, p0_dram=10, p0_core=5, p1_uncore=5)
    count = RaplSensor.here(root).open()
    set_uj(root, p0=400, p1=150, p0_dram=30)
    assert count.close(1.0) == [
        Part("cpu", 350e-6, "measured", "rapl", "package"),
        Part("ram", 20e-6, "measured", "rapl", "dram"),
    ]


def test_a_counter_that_wraps_goes_on(tmp_path):
    root = powercap(tmp_path, p0=900)
    count = RaplSensor.here(root).open()
    for value in (100, 950, 50):  # 200, 850 and 100 µJ further, over two wraps
        set_uj(root, p0=value)
        count.tick()
    assert count.close(1.0)[0].energy_j == pytest.approx(1150e-6)


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
    monkeypatch.setattr(meter_module, "mend", lambda: rapl.mend(root))
    assert f"can't be read: sudo chmod a+r {closed}" in no_sensor()


def test_no_counter_is_no_sensor(tmp_path):
    assert RaplSensor.here(tmp_path) is None
    assert rapl.mend(tmp_path) is None


# ------------------------------------------------------------------------------------------------ the model


def test_the_linear_model_by_hand():
    spent = iter([10.0, 13.0])
    model = LinearModel(watts_per_core=4.0, watts_base=5.0, own_s=lambda: next(spent))
    assert model.open().close(2.0) == [
        Part("cpu", 4.0 * 3 + 5.0 * 2, "estimated", "cpu_model (4 W × CPU-seconds + 5 W × seconds)", "process")
    ]


def test_own_cpu_time_has_that_of_children_that_ended():
    before = processes.own_cpu_s()
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.3: pass"], check=True)
    assert processes.own_cpu_s() - before > 0.2  # it is counted in ticks


# ---------------------------------------------------------------------------------------------- neighbours


def look(pids=(), own=(0.0, 0.0), node=(0.0, 0.0), max_load=0.1, gpus=(), seconds=10.0, cores=2):
    own_s, node_s = iter(own), iter(node)
    library = Nvml(FakeNvml(pids=list(pids))) if gpus else None
    neighbours = Neighbours(library, gpus, max_load, lambda: next(own_s), lambda: next(node_s), cores)
    watch = neighbours.open()
    watch.tick()
    return watch.close(seconds)


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
        watch = Neighbours(None, (), 0.5 / (os.cpu_count() or 1), own_s=lambda: 0.0).open()
        started = time.perf_counter()
        time.sleep(1.0)
        assert "node's cores busy" in watch.close(time.perf_counter() - started)
    finally:
        other.kill()
        other.wait()


# ------------------------------------------------------------------------------------------------- the meter


class Fixed:
    """A sensor that always gives the same parts."""

    def __init__(self, *parts: Part, period_s: float | None = None) -> None:
        self.parts, self.period_s, self.notes, self.ticks = parts, period_s, [], 0

    def open(self):
        return self

    def tick(self):
        self.ticks += 1

    def close(self, seconds):
        return list(self.parts)


GPU = Part("gpu", 300.0, "measured", "nvml_counter", "device")
PACKAGE = Part("cpu", 50.0, "measured", "rapl", "package")
DRAM = Part("ram", 10.0, "measured", "rapl", "dram")
MODEL = LinearModel(1.0, 1.0, own_s=lambda: 0.0)


def reading_of(meter):
    with meter.window("w") as window:
        pass
    return window.reading


@pytest.mark.parametrize(
    ("parts", "sharing", "joules", "kind", "scope"),
    [
        ((GPU,), "exclusive: device", 300.0, "measured", "device"),
        ((GPU, PACKAGE, DRAM), "exclusive: device", 300.0, "measured", "device"),
        ((GPU, PACKAGE, DRAM), "exclusive: node", 360.0, "measured", "device+package+dram"),
        ((PACKAGE, DRAM), "exclusive: node", 60.0, "measured", "package+dram"),
        ((PACKAGE,), "shared", 50.0, "measured", "package"),
    ],
)
def test_the_headline_is_what_was_measured_and_is_ours(parts, sharing, joules, kind, scope):
    reading = reading_of(NodeMeter([Fixed(*parts)], MODEL, sharing))
    assert (reading.energy_j, reading.kind, reading.scope, reading.sharing) == (joules, kind, scope, sharing)
    assert reading.gpu_j == (300.0 if GPU in parts else None)
    assert reading.notes == ()


def test_beside_a_gpu_the_model_of_the_cpu_is_a_column_only():
    reading = reading_of(NodeMeter([Fixed(GPU)], MODEL, "exclusive: node"))
    assert (reading.energy_j, reading.kind) == (300.0, "measured")
    assert reading.cpu_j is not None
    assert [part.kind for part in reading.parts] == ["measured", "estimated"]


def test_without_a_sensor_the_model_is_the_headline_and_says_why():
    reading = reading_of(NodeMeter([], MODEL, why_not="estimated: no sensor"))
    assert (reading.kind, reading.scope, reading.notes) == ("estimated", "process", ("estimated: no sensor",))
    assert "1 W × CPU-seconds" in reading.source
    assert reading.began == pytest.approx(time.time(), abs=60)


def test_a_sensor_that_failed_leaves_no_figure():
    broken = Part("gpu", None, "absent", "GPU 0 told neither energy nor power", "device")
    reading = reading_of(NodeMeter([Fixed(broken, PACKAGE)], MODEL, "exclusive: node"))
    assert (reading.energy_j, reading.kind) == (None, "absent")
    assert reading.cpu_j == 50.0


def test_sensors_look_while_the_window_is_open_and_stop_with_it():
    sensor = Fixed(GPU, period_s=0.01)
    with NodeMeter([sensor], MODEL).window("w"):
        time.sleep(0.2)
    seen = sensor.ticks
    assert seen >= 3
    assert not [thread for thread in threading.enumerate() if thread.name == "greenprune-energy"]
    with pytest.raises(ZeroDivisionError), NodeMeter([sensor], MODEL).window("w"):
        _ = 1 / 0
    assert not [thread for thread in threading.enumerate() if thread.name == "greenprune-energy"]


def test_a_contaminated_window_says_so():
    own, node = iter([0.0, 0.0]), iter([0.0, 1e9])
    neighbours = Neighbours(None, (), 0.1, lambda: next(own), lambda: next(node), 1)
    reading = reading_of(NodeMeter([Fixed(PACKAGE)], MODEL, "exclusive: node", neighbours=neighbours))
    assert reading.grade == "contaminated"
    assert reading.contamination == "other processes kept 100% of the node's cores busy"


def test_a_shared_package_is_charged_by_cpu_time(monkeypatch):
    own, node = iter([1.0, 3.0]), iter([10.0, 18.0])
    monkeypatch.setattr(meter_module, "own_cpu_s", lambda: next(own))
    monkeypatch.setattr(meter_module, "node_cpu_s", lambda: next(node))
    (part,) = Charged(Fixed(PACKAGE)).open().close(1.0)
    assert (part.energy_j, part.kind, part.source) == (12.5, "estimated", "rapl × share of CPU time")


def test_on_a_cpu_codecarbon_stands_beside_and_nests_in_a_stage():
    import torch

    device = torch.device("cpu")
    with stage_meter(device).window("stage") as stage:
        reading = reading_of(meter_for(device, "FRA", max_foreign_load=1.0))
    assert reading.energy_j > 0
    assert reading.co2e_g > 0
    assert reading.ram_j > 0
    assert reading.row["country_iso_code"] == "FRA"
    assert reading.contamination is None
    assert stage.reading.energy_j >= reading.energy_j or reading.kind == "measured"


# ---------------------------------------------------------------------------------------------------- costs


def test_break_even_by_hand():
    assert break_even_requests(3.0, 50.0, 0.5) == pytest.approx(60)  # the dense one takes 100 Wh for 1,000
    assert break_even_requests(3.0, 50.0, 1.0) is None  # never
    assert break_even_requests(None, 50.0, 0.5) is None
    assert break_even_requests(0.0, 50.0, 0.5) == 0.0


def test_each_artifact_of_a_search_is_counted_once():
    def stage(name, key, joules, kind="estimated"):
        return {"stage": name, "key": key, "seconds": 10.0, "energy_j": joules, "energy_kind": kind}

    shared, unmetered = stage("collect", "k", 3600.0), stage("heal", "h", None)
    cost = search_cost([shared, stage("prune", "k", 1800.0), shared, unmetered, stage("heal", "i", 1800.0, "measured")])
    assert (cost.energy_wh, cost.unmetered, cost.seconds) == (2.0, 1, 40.0)
    assert cost.by_stage_wh == {"collect": 1.0, "prune": 0.5, "heal": 0.5}
    assert cost.describe() == "2 Wh, estimated and measured (collect 1, prune 0.5, heal 0.5; not metered: 1)"
    assert search_cost([unmetered]).energy_wh is None
