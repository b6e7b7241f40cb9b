"""Joules with their provenance: what was read, by which sensor or model, over which window.

    meter = meter_for(device, country="FRA")
    with meter.window("decode") as window:
        ...
    window.reading.energy_j        # None where it couldn't be had, never 0

sensors.py is the table of sensors (nvml.py, rapl.py; counting.py says what a sensor must do), linear.py the declared
model where there is none, charged.py a stage's share of a sensor, carbon.py CodeCarbon; meter.py puts them together
and reading.py is what comes of it. neighbours.py sees who else works on the node, exclusive.py keeps our own stages
away. CodeCarbon, pynvml and torch are loaded when a meter or the machine's identity is first asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from greenprune.energy.costs import break_even_requests
from greenprune.energy.counting import Part
from greenprune.energy.machine import machine_identity
from greenprune.energy.meter import NodeMeter, meter_for, stage_meter
from greenprune.energy.reading import Meter, Reading, Window, notes_of, worst_grade, write_emissions
from greenprune.energy.replay import AbsentMeter, ReplayMeter
from greenprune.energy.sensors import sensors_for
from greenprune.errors import EnergyError

if TYPE_CHECKING:
    import torch

__all__ = [
    "AbsentMeter",
    "Meter",
    "NodeMeter",
    "Part",
    "Reading",
    "ReplayMeter",
    "Window",
    "break_even_requests",
    "machine_identity",
    "meter_for",
    "meter_if_possible",
    "metered_stage",
    "notes_of",
    "stage_meter",
    "worst_grade",
    "write_emissions",
]


log = logging.getLogger("greenprune")
MAX_FOREIGN_LOAD = 0.1


def meter_if_possible(device: torch.device) -> Meter:
    """A meter for work on `device` whose result is wanted with or without joules: absent ones are None.

    Other work on the node counts where a sensor reads the whole node; the model of a process doesn't see it.
    """
    try:
        whole_node = any(sensor.counts_whole_node for sensor in sensors_for(()))
        return meter_for(device, max_foreign_load=MAX_FOREIGN_LOAD if whole_node else None)
    except EnergyError as problem:
        log.warning("energy is absent: %s", problem)
        return AbsentMeter(str(problem))


@contextmanager
def metered_stage(stage: str, device: torch.device) -> Iterator[dict[str, Any]]:
    """What a stage's work on `device` costs, as its manifest has it; the mapping is filled when the `with` ends."""
    try:
        meter: Meter = stage_meter(device)
    except EnergyError as problem:
        meter = AbsentMeter(str(problem))
    cost: dict[str, Any] = {}
    with meter.window(stage) as window:
        yield cost
    reading = window.reading
    cost |= {"energy_j": reading.energy_j, "energy_kind": reading.grade, "energy_source": reading.source}
    cost["machine"] = machine_identity()[0]
