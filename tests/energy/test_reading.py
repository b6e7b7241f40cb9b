"""Readings: their grade, their notes, their line of emissions.csv."""

from __future__ import annotations

import csv
import dataclasses

import pytest

from greenprune.energy import AbsentMeter, Reading, ReplayMeter, notes_of, worst_grade, write_emissions
from greenprune.energy.reading import EMISSIONS_COLUMNS
from greenprune.energy.units import JOULES_PER_KWH
from greenprune.errors import EnergyError


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


def test_energy_kind_is_the_grade_in_emissions_csv_as_everywhere_else(tmp_path):
    readings = [
        Reading("disturbed", 1.0, 1.0, "measured", "nvml_counter", "device", contamination="PID 7"),
        Reading("declared", 1.0, 1.0, "constant", "model", "machine"),
        Reading("sensor", 1.0, 1.0, "measured", "nvml_counter", "device"),
    ]
    write_emissions(tmp_path / "emissions.csv", readings)
    with (tmp_path / "emissions.csv").open() as lines:
        kinds = [row["energy_kind"] for row in csv.DictReader(lines)]
    assert kinds == [reading.grade for reading in readings] == ["contaminated", "estimated", "measured"]
