"""The node's meter on sensors of known figures: what makes the headline, what stands beside it."""

from __future__ import annotations

import threading
import time

import pytest

from greenprune.energy import charged
from greenprune.energy.charged import Charged
from greenprune.energy.counting import Counted, Part
from greenprune.energy.linear import LinearModel
from greenprune.energy.meter import NodeMeter, meter_for, stage_meter
from greenprune.energy.neighbours import Neighbours


class Fixed:
    """A sensor that always comes to the same."""

    def __init__(self, *parts: Part, whole_node: bool = False, period_s: float | None = None, notes=()) -> None:
        self.counted, self.period_s, self.counts_whole_node, self.ticks = Counted(parts, notes), period_s, whole_node, 0

    def open(self):
        return self

    def tick(self):
        self.ticks += 1

    def close(self, seconds):
        return self.counted


GPU = Part("gpu", 300.0, "measured", "nvml_counter", "device")
PACKAGE = Part("cpu", 50.0, "measured", "rapl", "package")
DRAM = Part("ram", 10.0, "measured", "rapl", "dram")
MODEL = LinearModel(1.0, 1.0, own_s=lambda: 0.0)


def sensors_of(*parts: Part) -> list[Fixed]:
    """A sensor of the GPU alone and one of the whole node, as far as there are parts for them."""
    of_gpu = tuple(part for part in parts if part.component == "gpu")
    of_node = tuple(part for part in parts if part.component != "gpu")
    return [Fixed(*of_gpu)] * bool(of_gpu) + [Fixed(*of_node, whole_node=True)] * bool(of_node)


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
    reading = reading_of(NodeMeter(sensors_of(*parts), MODEL, sharing))
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
    reading = reading_of(NodeMeter(sensors_of(broken, PACKAGE), MODEL, "exclusive: node"))
    assert (reading.energy_j, reading.kind) == (None, "absent")
    assert reading.cpu_j == 50.0


def test_a_sensor_beside_the_headline_that_failed_spoils_its_own_column_only():
    broken = Part("cpu", None, "absent", "a RAPL counter failed: gone", "package")
    reading = reading_of(NodeMeter(sensors_of(GPU, broken), MODEL, "exclusive: device"))
    assert (reading.energy_j, reading.kind, reading.cpu_j) == (300.0, "measured", None)
    assert reading_of(NodeMeter(sensors_of(GPU, broken), MODEL, "exclusive: node")).kind == "absent"


def test_a_sensor_that_leaves_its_part_out_is_replaced_by_the_model_and_says_why():
    silent = Fixed(whole_node=True, notes=("the package counters stood still",))
    reading = reading_of(NodeMeter([silent], MODEL, "exclusive: node"))
    assert (reading.kind, reading.scope) == ("estimated", "process")
    assert reading.notes == ("the package counters stood still",)


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
    reading = reading_of(NodeMeter(sensors_of(PACKAGE), MODEL, "exclusive: node", neighbours=neighbours))
    assert reading.grade == "contaminated"
    assert reading.contamination == "other processes kept 100% of the node's cores busy"


def test_a_shared_package_is_charged_by_cpu_time(monkeypatch):
    own, node = iter([1.0, 3.0]), iter([10.0, 18.0])
    monkeypatch.setattr(charged, "own_cpu_s", lambda: next(own))
    monkeypatch.setattr(charged, "node_cpu_s", lambda: next(node))
    (part,) = Charged(Fixed(PACKAGE, whole_node=True)).open().close(1.0).parts
    assert (part.energy_j, part.kind, part.source) == (12.5, "estimated", "rapl × share of CPU time")


def test_a_charged_sensor_passes_on_what_it_could_not_tell(monkeypatch):
    own, node = iter([1.0, 3.0]), iter([10.0, 18.0])
    monkeypatch.setattr(charged, "own_cpu_s", lambda: next(own))
    monkeypatch.setattr(charged, "node_cpu_s", lambda: next(node))
    broken = Part("cpu", None, "absent", "a RAPL counter failed: gone", "package")
    assert Charged(Fixed(broken, notes=("odd",))).open().close(1.0) == Counted((broken,), ("odd",))


def test_the_linear_model_by_hand():
    spent = iter([10.0, 13.0])
    model = LinearModel(watts_per_core=4.0, watts_base=5.0, own_s=lambda: next(spent))
    assert model.open().close(2.0).parts == (
        Part("cpu", 4.0 * 3 + 5.0 * 2, "estimated", "cpu_model (4 W × CPU-seconds + 5 W × seconds)", "process"),
    )


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
