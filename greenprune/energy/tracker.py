"""CodeCarbon as a meter, with its silent failures made audible.

CodeCarbon swallows exceptions when it starts and stops, takes any country code, and mixes sensors and models
in one sum without saying so. Here each result is checked, an unknown country is refused, and `grade` says
which components make up the figure.

One tracker a process and country, used with start_task and stop_task only: mixed with start() it drops the
energy before a task. Its cold start (about 2 s) is kept out of the first window.
"""

from __future__ import annotations

import functools
import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any

from greenprune.energy.machine import nvml_gpus, visible_gpus
from greenprune.energy.reading import JOULES_PER_KWH, Kind, Reading, Window
from greenprune.errors import ConfigError, EnergyError, nearest

log = logging.getLogger("greenprune")
ANY_COUNTRY = "FRA"  # CodeCarbon needs one; without a configured country its emissions are thrown away
CARBON_COLUMNS = ("emissions", "emissions_rate", "country_name", "country_iso_code", "region")
_one_window = Lock()


@dataclass(frozen=True)
class Part:
    """One component of a tracker: `cpu`, `gpu` or `ram`."""

    component: str
    kind: Kind
    source: str
    scope: str


@dataclass(frozen=True)
class Grade:
    """How good a tracker's figure is, and which components it sums."""

    kind: Kind
    source: str
    scope: str
    components: tuple[str, ...]


def grade(tracker: Any) -> Grade:
    """The rule by which a tracker's joules are graded.

    Where a sensor is read, the headline is the sum of the sensors alone and is `measured`: NVML's energy
    counter (scope device), RAPL (scope package). The models that CodeCarbon adds to them (RAM always, the CPU
    without RAPL) stay in their own columns. Where no sensor is read, or the GPU that works has no counter
    (its power is then polled each second), the headline is the sum of all components and is `estimated`.
    """
    parts = [part for hardware in tracker._hardware if (part := _part(hardware)) is not None]
    sensors = [part for part in parts if part.kind == "measured"]
    blind = any(part.component == "gpu" and part.kind != "measured" for part in parts)
    chosen = parts if blind or not sensors else sensors
    if not chosen:
        return Grade("absent", "codecarbon found no component", "none", ())
    scopes = dict.fromkeys(part.scope for part in chosen)
    return Grade(
        kind="estimated" if chosen is parts and len(sensors) < len(parts) else "measured",
        source="codecarbon " + " + ".join(part.source for part in chosen),
        scope="+".join(scopes),
        components=tuple(dict.fromkeys(part.component for part in chosen)),
    )


def _part(hardware: Any) -> Part | None:
    name = type(hardware).__name__
    if name == "RAM":
        return Part("ram", "estimated", "ram model", "machine")
    if name == "CPU":
        if hardware._mode == "intel_rapl":
            return Part("cpu", "measured", "rapl", "package")
        return Part("cpu", "estimated", f"{hardware._mode} model (TDP {hardware._tdp:g} W)", "machine")
    if name == "GPU":
        chosen = set(hardware._get_gpu_ids())
        devices = [device for device in hardware.devices.devices if device.gpu_index in chosen]
        if not devices:
            return None
        if any(device._use_power_fallback for device in devices):
            return Part("gpu", "estimated", "nvml_power", "device")
        return Part("gpu", "measured", "nvml_counter", "device")
    component = getattr(hardware, "chip_part", "CPU").lower()
    return Part(component, "estimated", name, "machine")


class CodeCarbonMeter:
    """Energy of windows by CodeCarbon.

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
    def window(self, name: str) -> Iterator[Window]:
        """Measure what runs inside. Raises EnergyError when another window of this process is open."""
        tracker = _tracker(self.country or ANY_COUNTRY, self.gpus)
        if not _one_window.acquire(blocking=False):
            raise EnergyError(
                f"a process must have one energy window open at a time, got {name!r} inside another; close that first"
            )
        try:
            window = Window(name)
            started = _start(tracker, name)
            clock = time.perf_counter()
            try:
                yield window
            except BaseException:
                _stop(tracker)
                raise
            seconds = time.perf_counter() - clock
            data = _stop(tracker) if started else None
            window.close(self._reading(name, seconds, tracker, data))
        finally:
            _one_window.release()

    def _reading(self, name: str, seconds: float, tracker: Any, data: Any) -> Reading:
        if data is None:
            return _absent(name, seconds, "codecarbon gave no result", "run `greenprune doctor`")
        row = dict(data.values)
        if self.country is None:
            row.update(dict.fromkeys(CARBON_COLUMNS))
        how = grade(tracker)
        joules = {part: row[f"{part}_energy"] * JOULES_PER_KWH for part in ("cpu", "gpu", "ram")}
        energy, total = sum(joules[part] for part in how.components), sum(joules.values())
        if energy <= 0:
            remedy = "make the window longer (benchmark.energy.min_seconds), or run `greenprune doctor`"
            return _absent(name, seconds, f"{how.source} read {energy:g} J in {seconds:.2f} s", remedy, row)
        co2e = None if self.country is None else row["emissions"] * 1000 * energy / total
        present = {part for part in ("cpu", "gpu", "ram") if joules[part] > 0}
        parts: dict[str, Any] = {f"{part}_j": joules[part] if part in present else None for part in joules}
        return Reading(name, energy, seconds, how.kind, how.source, how.scope, co2e_g=co2e, row=row, **parts)


def _absent(name: str, seconds: float, cause: str, remedy: str, row: dict[str, Any] | None = None) -> Reading:
    log.warning("energy of %r is absent: %s; %s", name, cause, remedy)
    return Reading(name, None, seconds, "absent", cause, "none", row=row or {})


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
        log.warning(
            "CodeCarbon can't measure here, so energies are absent: %s: %s; check its .codecarbon.config and "
            "run `greenprune doctor`",
            type(problem).__name__,
            problem,
        )
        return None
    return tracker


def _start(tracker: Any | None, name: str) -> bool:
    if tracker is None:
        return False
    try:
        tracker.start_task(name)
    except Exception as problem:
        log.warning("CodeCarbon didn't start %r: %s: %s", name, type(problem).__name__, problem)
        return False
    return True


def _stop(tracker: Any | None) -> Any | None:
    if tracker is None:
        return None
    try:
        return tracker.stop_task()
    except Exception as problem:
        log.warning("CodeCarbon didn't stop its task: %s: %s", type(problem).__name__, problem)
        return None
