"""CodeCarbon's rows: what they give to a reading, and that its failures are told without touching the energy."""

from __future__ import annotations

import csv
import io
import logging
import time
from types import SimpleNamespace

import pytest

from greenprune.energy import Reading, carbon, write_emissions
from greenprune.energy.carbon import CodeCarbon, check_country, grams_per_kwh, in_country, with_carbon
from greenprune.energy.counting import Counted, Part
from greenprune.energy.linear import LinearModel
from greenprune.energy.meter import NodeMeter
from greenprune.energy.units import JOULES_PER_KWH
from greenprune.errors import ConfigError, EnergyError

MEASURED = Reading("w", 300.0, 1.0, "measured", "nvml_counter", "device", gpu_j=300.0)
NO_RESULT = "CodeCarbon gave no result for 'decode': CO2e and its columns of emissions.csv are empty"


@pytest.fixture
def fake_tracker(monkeypatch):
    """A tracker whose results a test sets."""
    fake = SimpleNamespace(result=None, stopped=0)
    fake.start_task = lambda name: None

    def stop_task():
        fake.stopped += 1
        return fake.result

    fake.stop_task = stop_task
    monkeypatch.setattr(carbon, "_tracker", lambda country, gpus: fake)
    return fake


def kwh(gpu_j: float, cpu_j: float, ram_j: float) -> SimpleNamespace:
    joules = {"gpu_energy": gpu_j, "cpu_energy": cpu_j, "ram_energy": ram_j}
    values = {name: value / JOULES_PER_KWH for name, value in joules.items()}
    return SimpleNamespace(values={**values, "emissions": 0.004, "country_name": "France"})


def row_of(meter: CodeCarbon) -> dict:
    with meter.window("decode") as window:
        assert window.row == {}
    return window.row


def test_a_reading_gets_the_row_the_model_of_ram_and_its_share_of_the_co2(fake_tracker):
    fake_tracker.result = kwh(gpu_j=300.0, cpu_j=60.0, ram_j=40.0)
    row = row_of(CodeCarbon("FRA"))
    reading = with_carbon(MEASURED, row)
    assert reading.row == row == fake_tracker.result.values
    assert (reading.energy_j, reading.kind, reading.scope) == (300.0, "measured", "device")
    assert reading.ram_j == pytest.approx(40.0)
    assert reading.parts == (Part("ram", reading.ram_j, "constant", "codecarbon ram model", "machine"),)
    assert reading.co2e_g == pytest.approx(4.0 * 300 / 400)


def test_what_a_sensor_told_of_ram_stays(fake_tracker):
    fake_tracker.result = kwh(gpu_j=300.0, cpu_j=60.0, ram_j=40.0)
    sensed = Reading("w", 7.0, 1.0, "measured", "rapl", "dram", ram_j=7.0)
    reading = with_carbon(sensed, row_of(CodeCarbon("FRA")))
    assert (reading.ram_j, reading.parts) == (7.0, ())


def test_without_a_country_there_is_energy_but_no_co2(fake_tracker):
    fake_tracker.result = kwh(gpu_j=300.0, cpu_j=60.0, ram_j=40.0)
    reading = with_carbon(MEASURED, row_of(CodeCarbon()))
    assert reading.energy_j == pytest.approx(300.0)
    assert reading.co2e_g is None
    assert reading.row["country_name"] is None
    assert reading.row["gpu_energy"] == pytest.approx(300.0 / JOULES_PER_KWH)


class Counter:
    """A sensor of a GPU that took 300 J."""

    period_s, counts_whole_node = None, False

    def open(self):
        return self

    def close(self, seconds):
        return Counted((Part("gpu", 300.0, "measured", "nvml_counter", "device"),))


@pytest.mark.parametrize("cause", ["no result", "stop failed", "start failed"])
def test_codecarbons_failure_is_told_and_leaves_the_energy_measured(fake_tracker, caplog, cause):
    def fail(name: str = "") -> None:
        raise OSError("its disk is full")

    if cause != "no result":
        setattr(fake_tracker, "stop_task" if cause == "stop failed" else "start_task", fail)
    meter = NodeMeter([Counter()], LinearModel(), carbon=CodeCarbon("FRA"))
    with caplog.at_level(logging.WARNING, logger="greenprune"), meter.window("decode") as window:
        pass
    reading = window.reading
    assert (reading.energy_j, reading.grade, reading.co2e_g, reading.row) == (300.0, "measured", None, {})
    assert NO_RESULT in caplog.text
    assert ("its disk is full" in caplog.text) == (cause != "no result")
    assert "greenprune doctor" in caplog.text
    assert "is absent" not in caplog.text


def test_a_row_of_nothing_gives_no_co2_and_says_so(fake_tracker, caplog):
    fake_tracker.result = kwh(gpu_j=0.0, cpu_j=0.0, ram_j=0.0)
    with caplog.at_level(logging.WARNING, logger="greenprune"):
        reading = with_carbon(MEASURED, row_of(CodeCarbon("FRA")))
    assert (reading.energy_j, reading.co2e_g, reading.ram_j) == (300.0, None, None)
    assert "CodeCarbon counted 0 J over 'decode'" in caplog.text
    assert "CO2e is empty" in caplog.text
    assert "is absent" not in caplog.text


def test_an_error_inside_a_window_stops_the_task_and_frees_the_meter(fake_tracker):
    meter = CodeCarbon()
    with pytest.raises(ZeroDivisionError), meter.window("w"):
        _ = 1 / 0
    assert fake_tracker.stopped == 1
    fake_tracker.result = kwh(1.0, 1.0, 1.0)
    assert row_of(meter)["gpu_energy"] == pytest.approx(1.0 / JOULES_PER_KWH)


def test_windows_do_not_nest(fake_tracker):
    meter = CodeCarbon()
    fake_tracker.result = kwh(1.0, 1.0, 1.0)
    with meter.window("outer"), pytest.raises(EnergyError, match="'inner' inside another"), meter.window("inner"):
        pass


def test_an_unknown_country_is_refused():
    for refuse in (CodeCarbon, check_country):
        with pytest.raises(ConfigError, match=r"must be an ISO 3166 .* got 'DEX'"):
            refuse("DEX")


def test_codecarbon_counts_here_and_is_silent(capfd):
    meter = CodeCarbon("DEU", gpus=())
    rows = []
    for name in ("first", "second"):
        with meter.window(name) as window:
            started = time.perf_counter()
            while time.perf_counter() < started + 0.3:
                pass
        rows.append(window.row)
    first, second = rows
    assert first["energy_consumed"] > 0
    assert first["emissions"] > 0
    assert 0.3 <= first["duration"] < 1, "the cold start isn't in the first window"
    assert 0.3 <= second["duration"] < 1, "a window starts from nothing"
    assert capfd.readouterr() == ("", ""), "CodeCarbon is silent"


def test_a_tracker_that_cannot_be_made_gives_no_row(monkeypatch, caplog):
    import codecarbon

    def broken(**_):
        raise OSError("no such folder")

    monkeypatch.setattr(codecarbon, "OfflineEmissionsTracker", broken)
    carbon._tracker.cache_clear()
    try:
        with caplog.at_level(logging.WARNING, logger="greenprune"):
            assert row_of(CodeCarbon(gpus=())) == {}
    finally:
        carbon._tracker.cache_clear()
    assert "no such folder" in caplog.text
    assert "CO2e and its columns of emissions.csv are empty" in caplog.text


@pytest.mark.parametrize("country", ["FRA", "USA", "DEU"])
def test_a_country_s_factor_is_that_of_a_window(country):
    with CodeCarbon(country, gpus=()).window("w") as window:
        time.sleep(0.05)
    of_window = with_carbon(MEASURED, window.row).co2e_g / MEASURED.energy_j * JOULES_PER_KWH
    assert grams_per_kwh(country) == pytest.approx(of_window)


def test_a_table_without_a_country_gets_its_emissions_later(tmp_path):
    """As if its windows had been read with one; what was is left as it is."""
    readings = []
    for country in (None, "USA"):
        with CodeCarbon(country, gpus=()).window("w") as window:
            time.sleep(0.05)
        readings.append(with_carbon(MEASURED, window.row))
    unread = Reading("piqa", None, 1.0, "absent", "no sensor", "none")
    write_emissions(tmp_path / "emissions.csv", [*readings, unread])
    table = (tmp_path / "emissions.csv").read_text()
    without, with_one, absent = csv.DictReader(io.StringIO(in_country(table, "FRA")))
    kilograms = float(without["energy_consumed"]) * grams_per_kwh("FRA") / 1000
    assert float(without["emissions"]) == pytest.approx(kilograms)
    assert float(without["emissions_rate"]) == pytest.approx(kilograms / float(without["duration"]))
    assert (without["country_iso_code"], without["country_name"]) == ("FRA", "France")
    before = list(csv.DictReader(io.StringIO(table)))
    assert with_one == before[1]
    assert absent == before[2]
