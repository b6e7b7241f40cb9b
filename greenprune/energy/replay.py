"""Meters without a sensor: one that replays given joules (for tests), one that says there is none."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from greenprune.energy.counting import Kind
from greenprune.energy.reading import Reading, Window
from greenprune.energy.units import JOULES_PER_KWH
from greenprune.errors import EnergyError


class ReplayMeter:
    """Gives the joules it was made with, one figure a window; None replays a window that couldn't be read.

    A Reading in their place is replayed whole, under the window's name. Raises EnergyError when more windows
    are opened than figures were given.
    """

    def __init__(
        self,
        joules: Iterable[float | Reading | None],
        kind: Kind = "measured",
        seconds: Iterable[float] | None = None,
        co2e_g_per_kwh: float | None = None,
    ) -> None:
        self._joules = iter(joules)
        self._seconds = iter(seconds) if seconds is not None else None
        self._kind = kind
        self._intensity = co2e_g_per_kwh
        self.readings: list[Reading] = []

    @contextmanager
    def window(self, name: str) -> Iterator[Window]:
        try:
            joules = next(self._joules)
            replayed_s = None if self._seconds is None else next(self._seconds)
        except StopIteration:
            raise EnergyError(
                f"a replayed meter must have a figure for each window, got none for {name!r} after "
                f"{len(self.readings)} windows; give it more"
            ) from None
        window, started = Window(name), time.perf_counter()
        yield window
        seconds = time.perf_counter() - started if replayed_s is None else replayed_s
        if isinstance(joules, Reading):
            window.close(replace(joules, name=name))
            self.readings.append(window.reading)
            return
        co2e = None if joules is None or self._intensity is None else joules / JOULES_PER_KWH * self._intensity
        kind: Kind = "absent" if joules is None else self._kind
        window.close(Reading(name, joules, seconds, kind, "replay", "replay", co2e_g=co2e))
        self.readings.append(window.reading)


class AbsentMeter:
    """Times windows and says of each that its energy is absent, and why."""

    def __init__(self, reason: str) -> None:
        self.reason = reason

    @contextmanager
    def window(self, name: str) -> Iterator[Window]:
        window, started = Window(name), time.perf_counter()
        yield window
        window.close(Reading(name, None, time.perf_counter() - started, "absent", self.reason, "none"))
