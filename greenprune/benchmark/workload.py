"""The fixed workload: prefill a prompt, decode a reply; how long, how much memory, how many joules.

Prefill and decode are measured apart, each over windows of at least `min_seconds`, since counters are slow
(NVML's moves every 20 to 100 ms). The windows of both alternate, so that drift (clocks, temperature) falls
on both, and go on until the mean is known well enough or `repeats` is reached. Figures are gross and of the
steady state: model loaded, warmed up, device synchronised at both ends. What the machine takes idle, with the
model loaded, is measured first; figures net of it are columns of their own.

A window in which others worked is measured again, a bounded number of times; then it stays and is marked.

The prompt is random tokens: the work of a dense model doesn't depend on them, and every pruned model of one
vocabulary gets the same ones.

An engine (greenprune/engines) runs the phases, windows.py measures one window, figures.py sums them up.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from greenprune.benchmark.figures import WorkloadFigures, ci95_ratio, joules_a_batch, readings_of, summarise
from greenprune.benchmark.windows import PhaseWindow, Windows
from greenprune.config import EnergyConfig
from greenprune.energy import Meter, Reading
from greenprune.engines import Engine, WorkloadPhases

WARM_UP_S = 1.0
FEWEST_REPEATS = 3  # of which an interval says little less than 2.5 times their variation


@dataclass(frozen=True)
class WorkloadResult:
    """The workload on one model. readings: a window's each; idle: of the machine at rest; discarded: of the windows
    that were measured again. peak_memory_bytes: None where nothing tells it."""

    figures: WorkloadFigures
    peak_memory_bytes: int | None
    idle: Reading
    readings: tuple[Reading, ...]
    discarded: tuple[Reading, ...]

    def to_json(self) -> dict[str, Any]:
        """What energy.json holds of it, but for the readings."""
        return {
            **self.figures.to_json(),
            "idle": self.idle.to_dict(),
            "peak_memory_bytes": self.peak_memory_bytes,
            "energy_windows_discarded": len(self.discarded),
            "discarded": [reading.to_dict() for reading in self.discarded],
        }


def measure_workload(engine: Engine, config: EnergyConfig, meter: Meter) -> WorkloadResult:
    """Time, memory and energy of prefilling and decoding on the engine's device.

    One request is one sequence: `prompt_len` tokens in, `decode_len` tokens out. Raises ModelError beyond learned
    positions.
    """
    windows = Windows(config, meter)
    prefills: list[PhaseWindow] = []
    decodes: list[PhaseWindow] = []
    with engine.serve(config) as phases:
        time.sleep(config.cooldown_seconds)
        phases.synchronise()
        phases.reset_peak_memory()
        idle = windows.once("idle", lambda: time.sleep(config.min_seconds), phases.synchronise)
        warm_up(phases, min(WARM_UP_S, config.min_seconds))
        while not enough(prefills, decodes, config):
            number = f"{len(prefills) + 1} of {config.repeats}"
            prefills.append(windows.measure(f"prefill {number}", phases.prefill, phases.synchronise))
            phases.fill_cache()
            decodes.append(windows.measure(f"decode {number}", phases.decode, phases.synchronise))
        peak_memory_bytes = phases.peak_memory_bytes()
    return WorkloadResult(
        summarise(prefills, decodes, config, idle.reading),
        peak_memory_bytes,
        idle.reading,
        tuple(readings_of(prefills, decodes)),
        tuple(windows.discarded),
    )


def warm_up(phases: WorkloadPhases, seconds: float) -> None:
    """Both phases, for at least so long: memory is allocated, kernels are chosen, clocks are up."""
    ended = time.perf_counter() + seconds
    while True:
        phases.prefill()
        phases.fill_cache()
        phases.decode()
        phases.synchronise()
        if time.perf_counter() >= ended:
            return


def enough(prefills: Sequence[PhaseWindow], decodes: Sequence[PhaseWindow], config: EnergyConfig) -> bool:
    """Whether the energy of a request is known to `target_half_width`, or as often measured as is allowed."""
    done = len(prefills)
    if done < min(FEWEST_REPEATS, config.repeats):
        return False
    batches = joules_a_batch(prefills, decodes)
    interval = ci95_ratio(batches) if batches else 0.0
    return done >= config.repeats or (interval is not None and interval < config.target_half_width)
