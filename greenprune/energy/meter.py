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
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from greenprune.energy.carbon import CodeCarbon, with_carbon
from greenprune.energy.charged import charged
from greenprune.energy.counting import Count, Counted, Part, Sensor
from greenprune.energy.linear import LinearModel
from greenprune.energy.machine import gpus_of
from greenprune.energy.neighbours import NeighbourCount, Neighbours
from greenprune.energy.nvml import nvml
from greenprune.energy.reading import Reading, Sharing, Window
from greenprune.energy.sensors import sensors_for, why_no_sensor

if TYPE_CHECKING:
    import torch

log = logging.getLogger("greenprune")


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
    carbon: CodeCarbon | None = None
    neighbours: Neighbours | None = None

    @contextmanager
    def window(self, name: str) -> Iterator[Window]:
        """Measure what runs inside. Raises EnergyError when another window with CodeCarbon is open."""
        window = Window(name)
        beside = self.carbon.window(name) if self.carbon else contextlib.nullcontext()
        began = time.time()
        with beside as of_carbon:
            others = self.neighbours.open() if self.neighbours else None
            counts = [sensor.open() for sensor in self.sensors]
            modelled = self.model.open()
            looking = [(count, sensor.period_s) for count, sensor in zip(counts, self.sensors, strict=True)]
            with _ticking([*looking, *([(others, others.neighbours.period_s)] if others else [])]):
                started = time.perf_counter()
                yield window
                seconds = time.perf_counter() - started
            counted = [count.close(seconds) for count in counts]
            (model_part,) = modelled.close(seconds).parts
            contamination = others.close(seconds) if others else None
        reading = self._reading(name, seconds, counted, model_part)
        notes = (*reading.notes, *(note for found in counted for note in found.notes))
        gpus = tuple(state for found in counted for state in found.gpus)
        reading = replace(reading, contamination=contamination, notes=notes, began=began, gpus=gpus)
        window.close(with_carbon(reading, of_carbon.row) if of_carbon else reading)
        for note in notes if reading.kind == "measured" else ():
            log.warning("energy of %r: %s", name, note)

    def _reading(self, name: str, seconds: float, counted: Sequence[Counted], modelled: Part) -> Reading:
        """The headline from the parts: sensors first, the model for what they leave out."""
        parts = [part for found in counted for part in found.parts]
        every = (*parts, *([modelled] if "cpu" not in {part.component for part in parts} else []))
        own = self._own(counted) or parts or [modelled]
        columns = {f"{part.component}_j": part.energy_j for part in every}
        common: dict[str, Any] = {"parts": every, "sharing": self.sharing, **columns}
        if absent := [part for part in own if part.kind == "absent"]:
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

    def _own(self, counted: Sequence[Counted]) -> list[Part]:
        """The parts that hold no other stage's joules."""
        alone = self.sharing == "exclusive: node"
        pairs = zip(self.sensors, counted, strict=True)
        return [part for sensor, found in pairs if alone or not sensor.counts_whole_node for part in found.parts]


@contextmanager
def _ticking(looking: Sequence[tuple[Count | NeighbourCount, float | None]]) -> Iterator[None]:
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
    gpus = gpus_of(device)
    carbon = CodeCarbon(country, gpus=gpus)
    plain = node_meter(gpus, sharing=sharing, model=model)
    whole_node = any(sensor.counts_whole_node for sensor in plain.sensors)
    cpu_counts = not gpus or (whole_node and sharing == "exclusive: node")
    neighbours = Neighbours(nvml(), gpus, max_foreign_load if cpu_counts else None)
    return replace(plain, carbon=carbon, neighbours=neighbours)


def node_meter(gpus: Sequence[int], sharing: Sharing = "shared", model: LinearModel | None = None) -> NodeMeter:
    """Sensors and model alone. Raises EnergyError for a GPU that is cut into MIG slices."""
    sensors = sensors_for(gpus)
    return NodeMeter(sensors, model or LinearModel(), sharing, why_not="" if sensors else why_no_sensor())


def stage_meter(device: torch.device) -> NodeMeter:
    """What a whole stage costs, without CodeCarbon, so that the stage may open windows of its own inside.

    Stages share a node: of its packages' joules each is charged its share of the CPU time, and of a GPU that others
    compute on its share of that (charged.py). Raises EnergyError as `meter_for`.
    """
    plain = node_meter(gpus_of(device))
    return replace(plain, sensors=[share for sensor in plain.sensors for share in charged(sensor)])
