"""Meters, their grades and provenance. Nothing here needs a sensor."""

from __future__ import annotations

import csv
import dataclasses
import logging
import subprocess
import sys
from types import SimpleNamespace

import pytest

from greenprune.energy import (
    AbsentMeter,
    CodeCarbonMeter,
    Reading,
    ReplayMeter,
    machine,
    machine_identity,
    notes_of,
    tracker,
    worst_grade,
    write_emissions,
)
from greenprune.energy.machine import visible_gpus
from greenprune.energy.nvml import Gpu
from greenprune.energy.reading import EMISSIONS_COLUMNS, JOULES_PER_KWH
from greenprune.errors import ConfigError, EnergyError

GPUS = (Gpu(0, "H100", "GPU-aaaa-1"), Gpu(1, "H100", "GPU-bbbb-2"))


def named(class_name: str, **attributes: object) -> object:
    """A stand-in for one of CodeCarbon's hardware objects, which are told apart by class name."""
    return type(class_name, (), attributes)()


def cpu(mode: str) -> object:
    return named("CPU", _mode=mode, _tdp=85)


def gpu(*, polled: bool = False, indices: tuple[int, ...] = (0,)) -> object:
    devices = [SimpleNamespace(gpu_index=index, _use_power_fallback=polled) for index in (0, 1)]
    return named("GPU", _get_gpu_ids=lambda self: indices, devices=SimpleNamespace(devices=devices))


RAM = named("RAM")


# ------------------------------------------------------------------------------------------------- windows


def test_replayed_joules_go_to_windows_in_order():
    meter = ReplayMeter([3.0, 5.0], seconds=[1.0, 2.0], co2e_g_per_kwh=36.0)
    with meter.window("prefill") as first:
        pass
    with meter.window("decode") as second:
        pass
    assert (first.reading.name, first.reading.energy_j, first.reading.seconds) == ("prefill", 3.0, 1.0)
    assert (second.reading.energy_j, second.reading.kind) == (5.0, "measured")
    assert second.reading.co2e_g == pytest.approx(5 * 36 / JOULES_PER_KWH)
    with pytest.raises(EnergyError, match="got none for 'third'"), meter.window("third"):
        pass


def test_an_open_window_has_no_reading():
    with ReplayMeter([1.0]).window("w") as window, pytest.raises(AssertionError, match="has its reading"):
        _ = window.reading


def test_absent_is_none_and_says_why():
    with AbsentMeter("no sensor").window("w") as window:
        pass
    assert window.reading.energy_j is None
    assert (window.reading.kind, window.reading.source) == ("absent", "no sensor")
    with pytest.raises(AssertionError, match="exactly where it is absent"):
        Reading("w", 0.0, 1.0, "absent", "x", "none")


def test_a_figure_is_graded_as_its_worst_part():
    def of(kind, contamination=None):
        energy = None if kind == "absent" else 1.0
        return Reading("w", energy, 1.0, kind, "", "", contamination=contamination, notes=("no sensor",))

    assert worst_grade([of("measured"), of("measured")]) == "measured"
    assert worst_grade([of("measured"), of("estimated")]) == "estimated"
    assert worst_grade([of("constant")]) == "estimated"
    assert worst_grade([of("measured", "PID 7"), of("estimated")]) == "contaminated"
    assert worst_grade([of("absent"), of("measured", "PID 7")]) == "absent"
    assert worst_grade([]) == "absent"
    assert notes_of([of("measured"), of("measured", "PID 7")]) == "no sensor; contaminated in 1 of 2 windows: PID 7"
    assert notes_of([]) is None


# -------------------------------------------------------------------------------------------------- grades


@pytest.mark.parametrize(
    ("hardware", "kind", "scope", "components"),
    [
        ([RAM, cpu("cpu_load")], "estimated", "machine", {"cpu", "ram"}),
        ([RAM, cpu("constant")], "estimated", "machine", {"cpu", "ram"}),
        ([RAM, cpu("intel_rapl")], "measured", "package", {"cpu"}),
        ([RAM, cpu("cpu_load"), gpu()], "measured", "device", {"gpu"}),
        ([RAM, cpu("intel_rapl"), gpu()], "measured", "package+device", {"cpu", "gpu"}),
        ([RAM, cpu("intel_rapl"), gpu(polled=True)], "estimated", "machine+package+device", {"cpu", "gpu", "ram"}),
        ([RAM, cpu("cpu_load"), gpu(indices=())], "estimated", "machine", {"cpu", "ram"}),
        ([], "absent", "none", set()),
    ],
    ids=["models", "constant", "rapl", "nvml", "rapl+nvml", "polled", "gpu not counted", "nothing"],
)
def test_grade_sums_sensors_where_there_are_any(hardware, kind, scope, components):
    grade = tracker.grade(SimpleNamespace(_hardware=hardware))
    assert (grade.kind, grade.scope, set(grade.components)) == (kind, scope, components)


# ----------------------------------------------------------------------------------------------- CodeCarbon


@pytest.fixture
def fake_tracker(monkeypatch):
    """A tracker whose results a test sets; its hardware is one NVML counter beside models."""
    fake = SimpleNamespace(_hardware=[RAM, cpu("cpu_load"), gpu()], result=None, stopped=0)
    fake.start_task = lambda name: None

    def stop_task():
        fake.stopped += 1
        return fake.result

    fake.stop_task = stop_task
    monkeypatch.setattr(tracker, "_tracker", lambda country, gpus: fake)
    return fake


def kwh(gpu_j: float, cpu_j: float, ram_j: float) -> SimpleNamespace:
    joules = {"gpu_energy": gpu_j, "cpu_energy": cpu_j, "ram_energy": ram_j}
    values = {name: value / JOULES_PER_KWH for name, value in joules.items()}
    return SimpleNamespace(values={**values, "emissions": 0.004, "country_name": "France"})


def test_the_headline_is_the_graded_components_and_their_share_of_co2(fake_tracker):
    fake_tracker.result = kwh(gpu_j=300.0, cpu_j=60.0, ram_j=40.0)
    with CodeCarbonMeter("FRA").window("w") as window:
        pass
    reading = window.reading
    assert (reading.energy_j, reading.kind, reading.scope) == (pytest.approx(300.0), "measured", "device")
    assert (reading.cpu_j, reading.ram_j) == (pytest.approx(60.0), pytest.approx(40.0))
    assert reading.co2e_g == pytest.approx(4.0 * 300 / 400)
    assert reading.source == "codecarbon nvml_counter"


def test_without_a_country_there_is_energy_but_no_co2(fake_tracker):
    fake_tracker.result = kwh(gpu_j=300.0, cpu_j=60.0, ram_j=40.0)
    with CodeCarbonMeter().window("w") as window:
        pass
    assert window.reading.energy_j == pytest.approx(300.0)
    assert window.reading.co2e_g is None
    assert window.reading.row["country_name"] is None


@pytest.mark.parametrize("result", [None, kwh(gpu_j=0.0, cpu_j=60.0, ram_j=40.0)], ids=["no result", "0 J"])
def test_a_result_that_failed_is_absent_with_cause_and_remedy(fake_tracker, caplog, result):
    fake_tracker.result = result
    with caplog.at_level(logging.WARNING, logger="greenprune"), CodeCarbonMeter().window("decode") as window:
        pass
    assert window.reading.energy_j is None
    assert window.reading.kind == "absent"
    assert "energy of 'decode' is absent" in caplog.text
    assert "greenprune doctor" in caplog.text


def test_an_error_inside_a_window_stops_the_task_and_frees_the_meter(fake_tracker):
    meter = CodeCarbonMeter()
    with pytest.raises(ZeroDivisionError), meter.window("w"):
        _ = 1 / 0
    assert fake_tracker.stopped == 1
    fake_tracker.result = kwh(1.0, 1.0, 1.0)
    with meter.window("again") as window:
        pass
    assert window.reading.energy_j == pytest.approx(1.0)


def test_windows_do_not_nest(fake_tracker):
    meter = CodeCarbonMeter()
    fake_tracker.result = kwh(1.0, 1.0, 1.0)
    with meter.window("outer"), pytest.raises(EnergyError, match="'inner' inside another"), meter.window("inner"):
        pass


def test_an_unknown_country_is_refused():
    with pytest.raises(ConfigError, match=r"must be an ISO 3166 .* got 'DEX'"):
        CodeCarbonMeter("DEX")


def test_codecarbon_measures_here_and_says_how(capfd):
    meter = CodeCarbonMeter("DEU", gpus=())
    readings = []
    for name in ("first", "second"):
        with meter.window(name) as window:
            _busy(0.3)
        readings.append(window.reading)
    first, second = readings
    assert first.kind in ("measured", "estimated")
    assert first.energy_j > 0
    assert first.co2e_g > 0
    assert 0.3 <= first.seconds < 1, "the cold start isn't in the first window"
    assert 0.3 <= second.row["duration"] < 1, "a window starts from nothing"
    assert first.source.startswith("codecarbon ")
    assert capfd.readouterr() == ("", ""), "CodeCarbon is silent"


def _busy(seconds: float) -> None:
    import time

    ended = time.perf_counter() + seconds
    while time.perf_counter() < ended:
        pass


def test_a_tracker_that_cannot_be_made_gives_absent(monkeypatch, caplog):
    import codecarbon

    def broken(**_):
        raise OSError("no such folder")

    monkeypatch.setattr(codecarbon, "OfflineEmissionsTracker", broken)
    tracker._tracker.cache_clear()
    try:
        with caplog.at_level(logging.WARNING, logger="greenprune"), CodeCarbonMeter(gpus=()).window("w") as window:
            pass
    finally:
        tracker._tracker.cache_clear()
    assert window.reading.kind == "absent"
    assert "no such folder" in caplog.text


# -------------------------------------------------------------------------------------------- emissions.csv


def test_emissions_columns_are_codecarbons_own():
    from codecarbon.output_methods.emissions_data import EmissionsData

    assert [field.name for field in dataclasses.fields(EmissionsData)] == list(EMISSIONS_COLUMNS)


def test_emissions_csv_has_a_line_a_window_and_blanks_for_absent(tmp_path):
    readings = [
        Reading("piqa", 7.2e6, 9.0, "estimated", "model", "machine", co2e_g=500.0),
        Reading("boolq", None, 1.0, "absent", "why", "none"),
    ]
    write_emissions(tmp_path / "emissions.csv", readings)
    with (tmp_path / "emissions.csv").open() as lines:
        piqa, boolq = csv.DictReader(lines)
    assert (float(piqa["energy_consumed"]), float(piqa["emissions"])) == (2.0, 0.5)
    assert (piqa["task_name"], piqa["energy_kind"]) == ("piqa", "estimated")
    assert (boolq["energy_consumed"], boolq["energy_kind"]) == ("", "absent")


# -------------------------------------------------------------------------------------------------- machine


def test_machine_identity_is_stable_and_tells_hardware_apart(monkeypatch):
    identity, facts = machine_identity()
    assert machine_identity()[0] == identity
    assert {"cpu", "cores", "memory_gib", "gpus", "energy_sources", "hostname", "os", "driver"} <= set(facts)
    monkeypatch.setattr(machine, "nvml_gpus", lambda: GPUS)
    monkeypatch.setattr(machine, "_driver", lambda: "580")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with_gpus, facts = machine_identity()
    assert with_gpus != identity
    assert facts["gpus"] == ["H100", "H100"]
    assert "nvml" in facts["energy_sources"]


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
