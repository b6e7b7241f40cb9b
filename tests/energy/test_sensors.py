"""What every sensor of the table must do, on counters that a test moves. A new sensor is a row of REPLAYED."""

from __future__ import annotations

import pytest
from replayed_counters import FakeNvml, install_nvml, install_powercap, powercap, set_uj

from greenprune.doctor import examine
from greenprune.energy.counting import Counted
from greenprune.energy.linear import LinearModel
from greenprune.energy.machine import energy_sources
from greenprune.energy.meter import NodeMeter
from greenprune.energy.nvml import POWER_PERIOD_S
from greenprune.energy.sensors import SENSORS, sensors_for


class ReplayedNvml:
    """GPU 0 of this machine: 300 J of work at 100 W."""

    gpus = (0,)
    gives = ((300.0, "gpu", "nvml_counter", "device"),)

    def __init__(self, monkeypatch, folder) -> None:
        self.answers = {"energy_mj": [900_000], "power_mw": [100_000]}
        self.binding = FakeNvml(**self.answers)
        install_nvml(monkeypatch, self.binding)

    @staticmethod
    def take_away(monkeypatch, folder) -> None:
        install_nvml(monkeypatch, None)

    def work(self) -> None:
        self.binding.answers["energy_mj"][0] += 300_000

    def wrap(self) -> None:  # the driver is loaded anew
        self.binding.answers["energy_mj"][0] = 50_000

    def fail(self) -> None:
        self.binding.answers.clear()


class ReplayedRapl:
    """One package with its memory, whose counters wrap at 1000 µJ: 300 and 30 µJ of work."""

    gpus = ()
    gives = ((300e-6, "cpu", "rapl", "package"), (30e-6, "ram", "rapl", "dram"))

    def __init__(self, monkeypatch, folder) -> None:
        self.root, self.uj = powercap(folder, p0=100, p0_dram=10), 0
        install_powercap(monkeypatch, self.root)

    @staticmethod
    def take_away(monkeypatch, folder) -> None:
        install_powercap(monkeypatch, folder / "nothing")

    def work(self) -> None:
        self.uj += 300
        set_uj(self.root, p0=100 + self.uj, p0_dram=10 + self.uj // 10)

    def wrap(self) -> None:
        set_uj(self.root, p0=50)

    def fail(self) -> None:
        (self.root / "intel-rapl:0" / "energy_uj").unlink()


REPLAYED = {"nvml": ReplayedNvml, "rapl": ReplayedRapl}


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch, tmp_path):
    """Whatever this machine really has, it has no sensor."""
    for row in REPLAYED.values():
        row.take_away(monkeypatch, tmp_path)


@pytest.fixture(params=SENSORS)
def name(request) -> str:
    return request.param


@pytest.fixture
def replayed(name, bare_machine, monkeypatch, tmp_path):
    return REPLAYED[name](monkeypatch, tmp_path / name)


@pytest.fixture
def sensor(name, replayed):
    return SENSORS[name].find(replayed.gpus)


def parts_of(counted: Counted) -> tuple:
    return tuple((pytest.approx(part.energy_j), part.component, part.source, part.scope) for part in counted.parts)


def check_honest(counted: Counted) -> None:
    """No joules below or at zero, and a reason wherever something is missing."""
    absent = [part for part in counted.parts if part.kind == "absent"]
    assert all(part.energy_j is None for part in absent)
    assert all(part.energy_j > 0 for part in counted.parts if part not in absent)
    assert all(part.source and part.scope for part in counted.parts)
    assert counted.parts or counted.notes


def test_every_sensor_has_its_row():
    assert REPLAYED.keys() == SENSORS.keys()


def test_where_it_is_missing_it_is_not_found_and_doctor_says_what_to_do(name):
    kind = SENSORS[name]
    assert (kind.here(), kind.find(())) == (False, None)
    assert sensors_for(()) == []
    assert energy_sources() == ["cpu_model"]
    assert all(row.remedy and not row.measures for row in kind.found())


def test_where_it_is_there_it_is_found_and_doctor_says_so(name, replayed, sensor):
    kind = SENSORS[name]
    assert kind.here()
    assert energy_sources() == [name]
    assert [type(found) for found in sensors_for(replayed.gpus)] == [type(sensor)]
    assert sensor.period_s is None or sensor.period_s >= POWER_PERIOD_S
    assert {check.part: check.state for check in examine()}["joules of a trial"] == kind.headline


def test_it_counts_the_work_of_its_window(replayed, sensor):
    replayed.work()  # before it
    count = sensor.open()
    replayed.work()
    count.tick()
    counted = count.close(3.0)
    replayed.work()  # after it
    check_honest(counted)
    assert parts_of(counted) == replayed.gives
    assert {part.kind for part in counted.parts} == {"measured"}


def test_two_windows_in_turn_count_apart(replayed, sensor):
    for _ in range(2):
        count = sensor.open()
        replayed.work()
        assert parts_of(count.close(1.0)) == replayed.gives


def test_a_counter_that_starts_again_gives_no_negative_joules(replayed, sensor):
    count = sensor.open()
    replayed.work()
    count.tick()
    replayed.wrap()
    check_honest(count.close(1.0))


def test_a_counter_that_stands_still_gives_no_zero(sensor):
    count = sensor.open()
    count.tick()
    counted = count.close(1.0)
    check_honest(counted)
    assert counted.notes


def test_a_counter_that_fails_is_absent_with_a_reason(replayed, sensor):
    count = sensor.open()
    replayed.fail()
    count.tick()
    counted = count.close(1.0)
    check_honest(counted)
    assert [part.kind for part in counted.parts] == ["absent"]


def test_one_that_fails_between_windows_is_absent_too(replayed, sensor):
    replayed.fail()
    counted = sensor.open().close(1.0)
    check_honest(counted)
    assert [part.kind for part in counted.parts] == ["absent"]


def test_its_joules_are_the_meters(replayed, sensor):
    meter = NodeMeter(sensors_for(replayed.gpus), LinearModel(), "exclusive: node")
    with meter.window("w") as window:
        replayed.work()
    reading = window.reading
    assert (reading.kind, reading.grade) == ("measured", "measured")
    assert reading.energy_j == pytest.approx(sum(joules for joules, *_ in replayed.gives))
    assert reading.scope == "+".join(scope for *_, scope in replayed.gives)
    assert reading.source == " + ".join(dict.fromkeys(source for *_, source, _ in replayed.gives))
