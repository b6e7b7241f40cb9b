"""Joules with their provenance: what was read, by which sensor or model, over which window.

    meter = CodeCarbonMeter(country="FRA")
    with meter.window("decode") as window:
        ...
    window.reading.energy_j        # None where it couldn't be had, never 0

CodeCarbon, pynvml and torch are loaded when a meter or the machine's identity is first asked for.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from greenprune.energy.machine import machine_identity
from greenprune.energy.reading import Meter, Reading, Window, worst_kind, write_emissions
from greenprune.energy.replay import AbsentMeter, ReplayMeter
from greenprune.errors import EnergyError

if TYPE_CHECKING:
    import torch

    from greenprune.energy.tracker import CodeCarbonMeter

__all__ = [
    "AbsentMeter",
    "CodeCarbonMeter",
    "Meter",
    "Reading",
    "ReplayMeter",
    "Window",
    "machine_identity",
    "meter_if_possible",
    "worst_kind",
    "write_emissions",
]


log = logging.getLogger("greenprune")


def meter_if_possible(device: torch.device, country: str | None = None) -> Meter:
    """A meter for work on `device` whose result is wanted with or without joules: absent ones are None."""
    from greenprune.energy.machine import gpus_of
    from greenprune.energy.tracker import CodeCarbonMeter

    try:
        return CodeCarbonMeter(country, gpus=gpus_of(device))
    except EnergyError as problem:
        log.warning("energy is absent: %s", problem)
        return AbsentMeter(str(problem))


def __getattr__(name: str) -> Any:
    if name == "CodeCarbonMeter":
        from greenprune.energy.tracker import CodeCarbonMeter

        return CodeCarbonMeter
    raise AttributeError(f"module 'greenprune.energy' has no attribute {name!r}")
