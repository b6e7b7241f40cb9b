"""CodeCarbon beside the sensors: a window's row of emissions.csv, from which CO2e and the model of RAM are taken.

    beside = CodeCarbon("FRA", gpus=())
    with beside.window("decode") as window:
        ...
    reading = with_carbon(reading, window.row)       # an empty row where CodeCarbon failed

It gives no headline: its own sum mixes sensors and models without saying so. CodeCarbon swallows exceptions when it
starts and stops and takes any country code; here a missing result is told and an unknown country refused.

One tracker a process and country, used with start_task and stop_task only: mixed with start() it drops the
energy before a task. Its cold start (about 2 s) is kept out of the first window.
"""

from __future__ import annotations

import csv
import functools
import io
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any

from greenprune.energy.counting import Part
from greenprune.energy.machine import visible_gpus
from greenprune.energy.nvml import nvml_gpus
from greenprune.energy.reading import Reading
from greenprune.energy.units import JOULES_PER_KWH
from greenprune.errors import ConfigError, EnergyError, nearest

log = logging.getLogger("greenprune")
ANY_COUNTRY = "FRA"  # CodeCarbon needs one; without a configured country its emissions are thrown away
CARBON_COLUMNS = ("emissions", "emissions_rate", "country_name", "country_iso_code", "region")
_one_window = Lock()


@dataclass
class CarbonWindow:
    """row: CodeCarbon's figures in its units (kWh, kg, W), there once the `with` has ended; empty where it failed."""

    row: dict[str, Any] = field(default_factory=dict)


class CodeCarbon:
    """CodeCarbon's rows of windows.

    country: ISO 3166 alpha-3 code; None gives energy without CO2e. gpus: NVML indices that count, () for a
    CPU's work; None takes those that CUDA_VISIBLE_DEVICES leaves. Raises ConfigError for a country that
    CodeCarbon has no electricity mix of, EnergyError for GPUs that can't be counted.
    """

    def __init__(self, country: str | None = None, gpus: Sequence[int] | None = None) -> None:
        if country is not None:
            check_country(country)
        self.country = country
        self.gpus = visible_gpus(nvml_gpus()) if gpus is None else tuple(gpus)

    @contextmanager
    def window(self, name: str) -> Iterator[CarbonWindow]:
        """Let CodeCarbon count what runs inside. Raises EnergyError when another window of this process is open."""
        tracker = _tracker(self.country or ANY_COUNTRY, self.gpus)
        if not _one_window.acquire(blocking=False):
            raise EnergyError(
                f"a process must have one energy window open at a time, got {name!r} inside another; close that first"
            )
        try:
            window = CarbonWindow()
            started = tracker is not None and _start(tracker, name)
            clock = time.perf_counter()
            try:
                yield window
            except BaseException:
                if tracker is not None:
                    _stop(tracker, name)
                raise
            seconds = time.perf_counter() - clock
            if started:
                window.row = self._row(name, seconds, _stop(tracker, name))
        finally:
            _one_window.release()

    def _row(self, name: str, seconds: float, row: dict[str, Any]) -> dict[str, Any]:
        """What CodeCarbon found, without emissions where no country is configured."""
        if row and _joules(row) <= 0:
            log.warning(
                "CodeCarbon counted 0 J over %r (%.2f s): its columns of emissions.csv are 0 and CO2e is empty; make "
                "the window longer (benchmark.energy.min_seconds), or run `greenprune doctor`",
                name,
                seconds,
            )
        return row | dict.fromkeys(CARBON_COLUMNS) if row and self.country is None else row


def with_carbon(reading: Reading, row: Mapping[str, Any]) -> Reading:
    """The reading with CodeCarbon's row, its RAM model where nothing better is known, and the headline's CO2e."""
    if not row:
        return reading
    ram_j, parts, co2e_g = reading.ram_j, reading.parts, None
    if ram_j is None and row["ram_energy"] > 0:
        ram_j = row["ram_energy"] * JOULES_PER_KWH
        parts = (*parts, Part("ram", ram_j, "constant", "codecarbon ram model", "machine"))
    if reading.energy_j is not None and row["emissions"] is not None and _joules(row) > 0:
        co2e_g = reading.energy_j * (row["emissions"] * 1000 / _joules(row))
    return replace(reading, ram_j=ram_j, parts=parts, co2e_g=co2e_g, row=row)


def _joules(row: Mapping[str, Any]) -> float:
    return sum(row[f"{component}_energy"] for component in ("cpu", "gpu", "ram")) * JOULES_PER_KWH


def check_country(code: str) -> None:
    """Refuse a country that CodeCarbon has no electricity mix of: it would silently take another figure."""
    from codecarbon.input import DataSource

    known = DataSource().get_global_energy_mix_data()
    if code not in known:
        raise ConfigError(
            f"benchmark.energy.country must be an ISO 3166 alpha-3 code that CodeCarbon knows, got {code!r}; "
            f"{nearest(code, known)}"
        )


@functools.cache
def grams_per_kwh(country: str) -> float:
    """CO2e of a kWh from a country's electricity mix, as CodeCarbon counts a window there. ConfigError as above."""
    from codecarbon.core.emissions import Emissions
    from codecarbon.core.units import Energy
    from codecarbon.external.geography import GeoMetadata
    from codecarbon.input import DataSource

    check_country(country)
    return float(Emissions(DataSource()).get_country_emissions(Energy(kWh=1.0), GeoMetadata(country))) * 1000


def in_country(table: str, country: str) -> str:
    """An emissions.csv whose windows were read without a country, with its emissions in `country`.

    Of the same energy as in a row that was read with one (CodeCarbon's own); such rows stay as they are. Raises
    ConfigError as `check_country`.
    """
    from codecarbon.input import DataSource

    grams, name = grams_per_kwh(country), DataSource().get_global_energy_mix_data()[country]["country_name"]
    rows = csv.DictReader(io.StringIO(table))
    text = io.StringIO()
    written = csv.DictWriter(text, rows.fieldnames or (), lineterminator="\n")
    written.writeheader()
    for row in rows:
        if row["energy_consumed"] and not row["emissions"]:
            kilograms = float(row["energy_consumed"]) * grams / 1000
            rate = kilograms / float(row["duration"])
            row |= dict(zip(CARBON_COLUMNS[:4], (str(kilograms), str(rate), name, country), strict=True))
        written.writerow(row)
    return text.getvalue()


@functools.cache
def _tracker(country: str, gpus: tuple[int, ...]) -> Any | None:
    """This process's tracker, its hardware already probed; None, with a warning, where it can't be made."""
    from codecarbon import OfflineEmissionsTracker

    logging.getLogger("codecarbon").setLevel(logging.CRITICAL)  # its constructor talks before log_level counts
    try:
        tracker = OfflineEmissionsTracker(
            country_iso_code=country,
            gpu_ids=list(gpus),
            project_name="greenprune",
            output_methods=[],
            output_dir=tempfile.gettempdir(),  # unused, but a missing folder would silently break the tracker
            emissions_endpoint=None,
            tracking_mode="machine",
            log_level="critical",
            allow_multiple_runs=True,
        )
        tracker.get_detected_hardware()
    except Exception as problem:
        _say_no_result("any window", f"{type(problem).__name__}: {problem}")
        return None
    return tracker


def _start(tracker: Any, name: str) -> bool:
    try:
        tracker.start_task(name)
    except Exception as problem:
        _say_no_result(repr(name), f"{type(problem).__name__}: {problem}")
        return False
    return True


def _stop(tracker: Any, name: str) -> dict[str, Any]:
    """What CodeCarbon found, {} where it failed."""
    try:
        data = tracker.stop_task()
    except Exception as problem:
        _say_no_result(repr(name), f"{type(problem).__name__}: {problem}")
        return {}
    if data is None:
        _say_no_result(repr(name), "an error that it kept to itself")
        return {}
    return dict(data.values)


def _say_no_result(window: str, cause: str) -> None:
    log.warning(
        "CodeCarbon gave no result for %s: CO2e and its columns of emissions.csv are empty (%s); check its "
        ".codecarbon.config and run `greenprune doctor`",
        window,
        cause,
    )
