"""The meter of a node: its sensors, or a declared model where there is none, beside CodeCarbon.

    meter = meter_for(device, country="FRA")
    with meter.window("decode") as window:
        ...
    window.reading.energy_j

The headline is the sum of what was measured and belongs to the window: the GPUs in use and, where no other
stage shares the node, its CPU packages and memory. Without any sensor it is the linear model's. What is known
besides (a shared package's joules, CodeCarbon's models) stays in its own column.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from greenprune.energy.linear import LinearModel
from greenprune.energy.machine import gpus_of
from greenprune.energy.nvml import NvmlCount, NvmlSensor, nvml
from greenprune.energy.processes import Neighbours, Watch, node_cpu_s, own_cpu_s
from greenprune.energy.rapl import RaplSensor, mend, zones
from greenprune.energy.reading import JOULES_PER_KWH, Part, Reading, Sharing, Window

if TYPE_CHECKING:
    import torch

    from greenprune.energy.tracker import CodeCarbonMeter

log = logging.getLogger("greenprune")


class Count(Protocol):
    """A sensor's count over one window."""

    notes: list[str]

    def tick(self) -> None:
        """Called every `period_s` while the window is open."""

    def close(self, seconds: float) -> list[Part]:
        """The components' joules since the count was opened."""


class Sensor(Protocol):
    """A source of joules; period_s: how often its counts must look in between, None: not at all."""

    @property
    def period_s(self) -> float | None: ...

    def open(self) -> Count: ...


@dataclass(frozen=True)
class NodeMeter:
    """Sensors over one window; `model` counts where they don't say what the CPU took.

    why_not: why there is no sensor, if there is none. carbon: CodeCarbon beside it, for CO2e, the CPU and RAM
    models and emissions.csv. neighbours: None doesn't look who else works here. sharing decides what belongs
    to the headline: on a shared node, or with only the device to itself, the packages' joules are also
    others'.
    """

    sensors: Sequence[Sensor]
    model: LinearModel
    sharing: Sharing = "shared"
    why_not: str = ""
    carbon: CodeCarbonMeter | None = None
    neighbours: Neighbours | None = None

    @contextmanager
    def window(self, name: str) -> Iterator[Window]:
        """Measure what runs inside. Raises EnergyError when another window with CodeCarbon is open."""
        window = Window(name)
        beside = self.carbon.window(name) if self.carbon else contextlib.nullcontext()
        began = time.time()
        with beside as of_carbon:
            watch = self.neighbours.open() if self.neighbours else None
            counts = [sensor.open() for sensor in (*self.sensors, self.model)]
            looking = [(count, sensor.period_s) for count, sensor in zip(counts, self.sensors, strict=False)]
            with _ticking([*looking, *([(watch, watch.to.period_s)] if watch else [])]):
                started = time.perf_counter()
                yield window
                seconds = time.perf_counter() - started
            parts = [part for count in counts for part in count.close(seconds)]
            contamination = watch.close(seconds) if watch else None
        reading = self._reading(name, seconds, parts)
        notes = [*reading.notes, *(note for count in counts for note in count.notes)]
        states = [state for count in counts if isinstance(count, NvmlCount) for state in count.states()]
        reading = replace(reading, contamination=contamination, notes=tuple(notes), began=began, gpus=tuple(states))
        window.close(_with_carbon(reading, of_carbon.reading if of_carbon else None))
        for note in notes if reading.kind == "measured" else ():
            log.warning("energy of %r: %s", name, note)

    def _reading(self, name: str, seconds: float, parts: Sequence[Part]) -> Reading:
        """The headline from the parts: sensors first, the model for what they leave out."""
        *sensed, modelled = parts
        known = {part.component for part in sensed}
        every = (*sensed, *([modelled] if "cpu" not in known else []))
        absent = [part for part in sensed if part.kind == "absent"]
        own = [part for part in sensed if part.component == "gpu" or self.sharing == "exclusive: node"]
        if not own:
            own = [part for part in sensed if "gpu" not in known] or [modelled]
        columns = {f"{part.component}_j": part.energy_j for part in every}
        common: dict[str, Any] = {"parts": every, "sharing": self.sharing, **columns}
        if absent:
            cause = ", ".join(part.source for part in absent)
            log.warning("energy of %r is absent: %s; run `greenprune doctor`", name, cause)
            return Reading(name, None, seconds, "absent", cause, "none", **common)
        return Reading(
            name,
            sum(part.energy_j or 0.0 for part in own),
            seconds,
            "measured" if all(part.kind == "measured" for part in own) else "estimated",
            " + ".join(dict.fromkeys(part.source for part in own)),
            "+".join(dict.fromkeys(part.scope for part in own)),
            notes=(self.why_not,) if self.why_not and own == [modelled] else (),
            **common,
        )


def _with_carbon(reading: Reading, carbon: Reading | None) -> Reading:
    """The reading with CodeCarbon's row, its RAM model where nothing better is known, and the headline's CO2e."""
    if carbon is None or not carbon.row:
        return reading
    total = sum(carbon.row[f"{part}_energy"] for part in ("cpu", "gpu", "ram")) * JOULES_PER_KWH
    emitted = carbon.row["emissions"]
    per_joule = emitted * 1000 / total if emitted is not None and total > 0 else None
    ram = reading.ram_j
    parts = reading.parts
    if ram is None and carbon.ram_j is not None:
        ram = carbon.ram_j
        parts = (*parts, Part("ram", ram, "constant", "codecarbon ram model", "machine"))
    known = reading.energy_j is not None and per_joule is not None
    co2e = reading.energy_j * per_joule if known else None  # type: ignore[operator]
    return replace(reading, ram_j=ram, parts=parts, co2e_g=co2e, row=carbon.row)


@contextmanager
def _ticking(looking: Sequence[tuple[Count | Watch, float | None]]) -> Iterator[None]:
    """Inside, a thread lets each count look every so many seconds."""
    rhythm = [(count, period) for count, period in looking if period]
    if not rhythm:
        yield
        return
    ended = threading.Event()
    due = [time.perf_counter() + period for _, period in rhythm]

    def run() -> None:
        while not ended.wait(max(0.0, min(due) - time.perf_counter())):
            now = time.perf_counter()
            for i, (count, period) in enumerate(rhythm):
                if now >= due[i]:
                    due[i] = now + period
                    count.tick()

    thread = threading.Thread(target=run, name="greenprune-energy", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


# ------------------------------------------------------------------------------------------- which meter


def meter_for(
    device: torch.device,
    country: str | None = None,
    *,
    sharing: Sharing = "shared",
    model: LinearModel | None = None,
    max_foreign_load: float | None = None,
) -> NodeMeter:
    """The meter for work on `device`, with CodeCarbon beside it.

    country: ISO 3166 alpha-3 code; None gives energy without CO2e. max_foreign_load: share of the node's cores
    that others may use before a window counts as contaminated; None doesn't look at them. Raises ConfigError
    for an unknown country, EnergyError for a GPU whose energy can't be told from others'.
    """
    from greenprune.energy.tracker import CodeCarbonMeter

    gpus = gpus_of(device)
    carbon = CodeCarbonMeter(country, gpus=gpus)
    plain = node_meter(gpus, sharing=sharing, model=model)
    cpu_counts = not gpus or "package" in _scopes(plain)
    neighbours = Neighbours(nvml(), gpus, max_foreign_load if cpu_counts else None)
    return replace(plain, carbon=carbon, neighbours=neighbours)


def node_meter(gpus: Sequence[int], sharing: Sharing = "shared", model: LinearModel | None = None) -> NodeMeter:
    """Sensors and model alone. Raises EnergyError for a GPU that is cut into MIG slices."""
    sensors: list[Sensor] = []
    if gpus:
        library = nvml()
        assert library is not None, "GPUs are known from NVML"
        sensors.append(NvmlSensor(library, gpus))
    if rapl := RaplSensor.here():
        sensors.append(rapl)
    return NodeMeter(sensors, model or LinearModel(), sharing, why_not="" if sensors else no_sensor())


def _scopes(meter: NodeMeter) -> set[str]:
    rapl = any(isinstance(sensor, RaplSensor) for sensor in meter.sensors)
    return {"package"} if rapl and meter.sharing == "exclusive: node" else set()


def no_sensor() -> str:
    """Why work on the CPU isn't measured here, and what would mend it."""
    if command := mend():
        return f"estimated: RAPL is there but can't be read: {command}"
    if not zones():
        return "estimated: no sensor, this machine shows no RAPL counter (a virtual machine rarely does)"
    return "estimated: no sensor"


def stage_meter(device: torch.device) -> NodeMeter:
    """What a whole stage costs, without CodeCarbon, so that the stage may open windows of its own inside.

    Stages share a node: of its packages' joules each is charged its share of the CPU time. Raises EnergyError
    as `meter_for`.
    """
    plain = node_meter(gpus_of(device))
    charged: list[Sensor] = [Charged(s) if isinstance(s, RaplSensor) else s for s in plain.sensors]
    return replace(plain, sensors=charged)


@dataclass(frozen=True)
class Charged:
    """A node's sensor of which this process is charged its share of the node's CPU time."""

    sensor: Sensor

    @property
    def period_s(self) -> float | None:
        return self.sensor.period_s

    def open(self) -> ChargedCount:
        return ChargedCount(self.sensor.open(), own_cpu_s(), node_cpu_s())


@dataclass
class ChargedCount:
    """One window of a charged sensor."""

    count: Count
    own_s: float
    node_s: float | None
    notes: list[str] = field(default_factory=list)

    def tick(self) -> None:
        self.count.tick()

    def close(self, seconds: float) -> list[Part]:
        node = node_cpu_s()
        if node is None or self.node_s is None or node <= self.node_s:
            return self.count.close(seconds)
        share = min(1.0, (own_cpu_s() - self.own_s) / (node - self.node_s))
        return [
            replace(part, energy_j=None if part.energy_j is None else part.energy_j * share, kind="estimated",
                    source=f"{part.source} × share of CPU time", scope="process")
            for part in self.count.close(seconds)
        ]  # fmt: skip
