"""The workload's figures from its windows: times, powers, energies, and how far they can be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median, stdev
from typing import Any

from greenprune.benchmark.windows import PhaseWindow
from greenprune.config import ENGINES, EnergyConfig
from greenprune.energy import Reading, notes_of, worst_grade
from greenprune.energy.reading import Grade
from greenprune.energy.units import JOULES_PER_WH

REQUESTS = 1000
PERCENTS = (50, 90, 99)


@dataclass(frozen=True)
class WorkloadEnergy:
    """Energies of the workload; None where one window's was absent.

    One request is one sequence. Net figures have the power of the machine at rest taken off, and are None where that
    isn't known.
    """

    energy_j_per_token: float | None = None
    energy_j_per_token_net: float | None = None
    energy_j_per_prefill_token: float | None = None
    energy_j_per_decode_token: float | None = None
    energy_j_per_request: float | None = None
    energy_wh_per_1k_requests: float | None = None
    energy_delay_product_js: float | None = None
    energy_ci95_ratio: float | None = None
    average_power_w: float | None = None
    co2e_g_per_1k_requests: float | None = None


@dataclass(frozen=True)
class Latencies:
    """Of requests: seconds to the first token, and of a token after it; None where none was timed."""

    ttft_p50_s: float | None = None
    ttft_p90_s: float | None = None
    ttft_p99_s: float | None = None
    tpot_p50_s: float | None = None
    tpot_p90_s: float | None = None
    tpot_p99_s: float | None = None


@dataclass(frozen=True)
class GpuConditions:
    """Over all windows and GPUs: mean clock, lowest power cap, highest temperature, reasons of throttling.

    None without a GPU that tells.
    """

    gpu_sm_clock_mhz: float | None = None
    gpu_power_cap_w: float | None = None
    gpu_temperature_c: float | None = None
    gpu_throttling: str | None = None


@dataclass(frozen=True)
class WorkloadFigures:
    """Latencies are medians over passes (of a token, for decoding), energies means over windows.

    prefill_…, decode_…: None where an engine does both at once. tokens_per_s: prompt and new tokens of all requests.
    energy_engine: name and version; energy_concurrency: requests in flight.
    idle_power_w: at rest with the model loaded. energy_window_s: the shortest window. energy_repeats: windows of each
    phase. energy_kind, _source, _scope, _sharing, _note: how the energies were had.
    """

    prefill_latency_s: float | None
    decode_latency_s: float | None
    prefill_tokens_per_s: float | None
    decode_tokens_per_s: float | None
    tokens_per_s: float
    latencies: Latencies
    energy: WorkloadEnergy
    idle_power_w: float | None
    energy_window_s: float
    energy_repeats: int
    energy_engine: str
    energy_concurrency: int
    energy_kind: Grade
    energy_source: str
    energy_scope: str
    energy_sharing: str
    energy_note: str | None
    gpu: GpuConditions

    def to_json(self) -> dict[str, Any]:
        """The metrics by their names, flat."""
        metrics: dict[str, Any] = {}
        for name, value in asdict(self).items():
            metrics |= value if name in ("energy", "gpu", "latencies") else {name: value}
        return metrics


def summarise(
    prefills: Sequence[PhaseWindow],
    decodes: Sequence[PhaseWindow],
    config: EnergyConfig,
    idle: Reading | None = None,
    concurrency: int = 1,
) -> WorkloadFigures:
    """A batch's figures from its windows, and from one at rest. concurrency: requests in it, for each of
    `config.batch_size`."""
    batch, request = config.batch_size * concurrency, config.request
    prefills_s = [seconds for window in prefills for seconds in window.passes]
    steps_s = [seconds / request.decode for window in decodes for seconds in window.passes]
    prefill_s, step_s = median(prefills_s), median(steps_s)
    readings = readings_of(prefills, decodes)
    idle_w = idle_power_w(idle, readings)
    request_s = prefill_s + step_s * request.decode
    return WorkloadFigures(
        prefill_latency_s=prefill_s,
        decode_latency_s=step_s,
        prefill_tokens_per_s=batch * request.prompt / prefill_s,
        decode_tokens_per_s=batch / step_s,
        tokens_per_s=batch * sum(request) / request_s,
        latencies=latencies(prefills_s, steps_s),
        energy=_energy(prefills, decodes, config, batch, idle_w, delay_s=request_s),
        idle_power_w=idle_w,
        energy_repeats=len(prefills),
        **how_they_were_had(readings, config, concurrency),
    )


def how_they_were_had(readings: Sequence[Reading], config: EnergyConfig, concurrency: int) -> dict[str, Any]:
    """What is said of all figures alike: by which engine, sensors and windows."""
    return {
        "energy_window_s": min(reading.seconds for reading in readings),
        "energy_engine": f"{config.engine} {ENGINES[config.engine].version()}",
        "energy_concurrency": config.batch_size * concurrency,
        "energy_kind": worst_grade(readings),
        "energy_source": "; ".join(dict.fromkeys(reading.source for reading in readings)),
        "energy_scope": "; ".join(dict.fromkeys(reading.scope for reading in readings)),
        "energy_sharing": "; ".join(dict.fromkeys(reading.sharing for reading in readings)),
        "energy_note": notes_of(readings),
        "gpu": _gpu_state(readings),
    }


def latencies(ttft_s: Sequence[float], tpot_s: Sequence[float]) -> Latencies:
    """Percentiles, between two values where they fall there."""
    named = {"ttft": ttft_s, "tpot": tpot_s}
    return Latencies(
        **{
            f"{name}_p{percent}_s": _percentile(values, percent) if values else None
            for name, values in named.items()
            for percent in PERCENTS
        }
    )


def _percentile(values: Sequence[float], percent: int) -> float:
    import numpy as np

    return float(np.percentile(values, percent))


def readings_of(prefills: Sequence[PhaseWindow], decodes: Sequence[PhaseWindow]) -> list[Reading]:
    """What the windows read, as they followed on each other."""
    return [window.reading for pair in zip(prefills, decodes, strict=True) for window in pair]


def idle_power_w(idle: Reading | None, readings: Sequence[Reading]) -> float | None:
    """Mean power at rest; None where it was disturbed, or had in another way than the windows' energy."""
    if idle is None or idle.energy_j is None or idle.contamination:
        return None
    return idle.energy_j / idle.seconds if all(reading.source == idle.source for reading in readings) else None


def _energy(
    prefills: Sequence[PhaseWindow],
    decodes: Sequence[PhaseWindow],
    config: EnergyConfig,
    batch: int,
    idle_w: float | None,
    delay_s: float,
) -> WorkloadEnergy:
    of_prefill, of_decode = joules_of(prefills), joules_of(decodes)
    batches = joules_a_batch(prefills, decodes)
    if of_prefill is None or of_decode is None or batches is None:
        return WorkloadEnergy()
    a_request = fmean(batches) / batch
    readings = [window.reading for window in (*prefills, *decodes)]
    tokens = sum(config.request)
    busy_s = fmean(w.seconds_a_pass for w in prefills) + fmean(w.seconds_a_pass for w in decodes)
    net = None if idle_w is None else (fmean(batches) - idle_w * busy_s) / batch
    return WorkloadEnergy(
        energy_j_per_token=a_request / tokens,
        energy_j_per_token_net=None if net is None else net / tokens,
        energy_j_per_prefill_token=fmean(of_prefill) / (batch * config.request.prompt),
        energy_j_per_decode_token=fmean(of_decode) / (batch * config.request.decode),
        **of_requests(a_request, delay_s, ci95_ratio(batches), readings),
    )


def of_requests(
    joules: float, delay_s: float, interval: float | None, readings: Sequence[Reading]
) -> dict[str, float | None]:
    """What is known of energies once those of a request, its time, and the windows' interval are."""
    total = sum(reading.energy_j or 0.0 for reading in readings)
    carbon = [reading.co2e_g for reading in readings if reading.co2e_g is not None]
    known = len(carbon) == len(readings)
    return {
        "energy_j_per_request": joules,
        "energy_wh_per_1k_requests": REQUESTS * joules / JOULES_PER_WH,
        "energy_delay_product_js": joules * delay_s,
        "energy_ci95_ratio": interval,
        "average_power_w": total / sum(reading.seconds for reading in readings),
        "co2e_g_per_1k_requests": REQUESTS * joules * sum(carbon) / total if known else None,
    }


def joules_a_batch(prefills: Sequence[PhaseWindow], decodes: Sequence[PhaseWindow]) -> list[float] | None:
    """Joules of one batch of requests, a figure for each pair of windows; None where one is absent."""
    of_prefill, of_decode = joules_of(prefills), joules_of(decodes)
    if of_prefill is None or of_decode is None:
        return None
    return [prefill + decode for prefill, decode in zip(of_prefill, of_decode, strict=True)]


def _gpu_state(readings: Sequence[Reading]) -> GpuConditions:
    states = [state for reading in readings for state in reading.gpus]

    def known(name: str) -> list[float]:
        return [state[name] for state in states if state[name] is not None]

    reasons = sorted({reason for state in states for reason in state["throttling"]})
    return GpuConditions(
        gpu_sm_clock_mhz=fmean(known("sm_clock_mhz")) if known("sm_clock_mhz") else None,
        gpu_power_cap_w=min(known("power_cap_w"), default=None),
        gpu_temperature_c=max(known("temperature_c"), default=None),
        gpu_throttling=(", ".join(reasons) or "none") if states else None,
    )


def joules_of(windows: Sequence[PhaseWindow]) -> list[float] | None:
    """Joules of one pass, a figure a window; None where one is absent."""
    passes = [window.joules_a_pass for window in windows]
    found = [joules for joules in passes if joules is not None]
    return found if len(found) == len(passes) else None


def ci95_ratio(values: Sequence[float]) -> float | None:
    """Half-width of the 95 % confidence interval of the mean (Student's t) / mean; None for one value."""
    if len(values) < 2:
        return None
    from scipy.stats import t

    half_width = t.ppf(0.975, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return float(half_width / fmean(values))
