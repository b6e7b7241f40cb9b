"""A quick workload, and windows of it that nobody measured."""

from __future__ import annotations

from greenprune.benchmark.windows import PhaseWindow
from greenprune.config import EnergyConfig
from greenprune.energy import Reading

QUICK = EnergyConfig(prompt_len=12, decode_len=4, min_seconds=0.02, repeats=2, batch_size=2, max_foreign_load=1.0)


def replayed(joules: float, **more: object) -> Reading:
    """A window of two seconds."""
    return Reading("w", joules, 2.0, "measured", "s", "device", **more)


def window(joules: float | None, *passes: float, co2e_g: float | None = None) -> PhaseWindow:
    kind = "absent" if joules is None else "measured"
    return PhaseWindow(Reading("w", joules, sum(passes), kind, "s", "device", co2e_g=co2e_g), passes)
