"""Windows of one phase of the workload: long enough for a counter, and measured again where others worked."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from greenprune.config import EnergyConfig
from greenprune.energy import Meter, Reading

log = logging.getLogger("greenprune")
MEASURED_AGAIN = 3  # windows of one workload in which others worked


@dataclass(frozen=True)
class PhaseWindow:
    """One window of one phase: what the meter read, and the seconds of each pass in it."""

    reading: Reading
    passes: tuple[float, ...]

    @property
    def joules_a_pass(self) -> float | None:
        energy = self.reading.energy_j
        return None if energy is None else energy / len(self.passes)

    @property
    def seconds_a_pass(self) -> float:
        return self.reading.seconds / len(self.passes)


class Windows:
    """Measures windows, and those that others disturbed once more, `MEASURED_AGAIN` of them in all."""

    def __init__(self, config: EnergyConfig, meter: Meter) -> None:
        self.config, self.meter = config, meter
        self.discarded: list[Reading] = []

    def measure(self, name: str, run: Callable[[], None], synchronise: Callable[[], None]) -> PhaseWindow:
        while True:
            window = self.once(name, run, synchronise)
            disturbance = window.reading.contamination
            if not disturbance or len(self.discarded) == MEASURED_AGAIN:
                return window
            self.discarded.append(window.reading)
            log.info("energy: %s is measured again: %s", name, disturbance)
            time.sleep(max(self.config.cooldown_seconds, min(1.0, self.config.min_seconds)))

    def once(self, name: str, run: Callable[[], None], synchronise: Callable[[], None]) -> PhaseWindow:
        """Repeat a phase until the window is long enough."""
        passes: list[float] = []
        synchronise()
        with self.meter.window(name.split(" of ")[0]) as window:
            started = ended = time.perf_counter()
            while not passes or ended - started < self.config.min_seconds:
                run()
                synchronise()
                passes.append(time.perf_counter() - ended)
                ended = time.perf_counter()
        reading = window.reading
        energy = "energy absent" if reading.energy_j is None else f"{reading.energy_j:.1f} J {reading.grade}"
        log.info("energy: %s: %.1f s, %s", name, reading.seconds, energy)
        return PhaseWindow(reading, tuple(passes))
