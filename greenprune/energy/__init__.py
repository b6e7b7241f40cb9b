"""Joules with their provenance: what was read, by which sensor or model, over which window.

    meter = meter_for(device, country="FRA")
    with meter.window("decode") as window:
        ...
    window.reading.energy_j        # None where it couldn't be had, never 0

nvml.py and rapl.py read sensors, linear.py is the declared model where there is none, tracker.py is CodeCarbon,
meter.py puts them together. processes.py sees who else works on the node, exclusive.py keeps our own stages away.
CodeCarbon, pynvml and torch are loaded when a meter or the machine's identity is first asked for.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from greenprune.energy.costs import break_even_requests
from greenprune.energy.machine import machine_identity
from greenprune.energy.meter import NodeMeter, meter_for, stage_meter
from greenprune.energy.rapl import RaplSensor
from greenprune.energy.reading import Meter, Part, Reading, Window, notes_of, worst_grade, write_emissions
from greenprune.energy.replay import AbsentMeter, ReplayMeter
from greenprune.errors import EnergyError

if TYPE_CHECKING:
    import torch

    from greenprune.energy.tracker import CodeCarbonMeter

__all__ = [
    "AbsentMeter",
    "CodeCarbonMeter",
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
    "notes_of",
    "stage_meter",
    "worst_grade",
    "write_emissions",
]


log = logging.getLogger("greenprune")
MAX_FOREIGN_LOAD = 0.1


def meter_if_possible(device: torch.device, country: str | None = None) -> Meter:
    """A meter for work on `device` whose result is wanted with or without joules: absent ones are None.

    Other work on the node counts where a package's joules are read; the model of a process doesn't see it.
    """
    try:
        return meter_for(device, country, max_foreign_load=MAX_FOREIGN_LOAD if RaplSensor.here() else None)
    except EnergyError as problem:
        log.warning("energy is absent: %s", problem)
        return AbsentMeter(str(problem))


def __getattr__(name: str) -> Any:
    if name == "CodeCarbonMeter":
        from greenprune.energy.tracker import CodeCarbonMeter

        return CodeCarbonMeter
    raise AttributeError(f"module 'greenprune.energy' has no attribute {name!r}")
