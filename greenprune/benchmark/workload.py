"""The fixed workload: prefill a prompt, decode a reply; how long, how much memory, how many joules.

Prefill and decode are measured apart, each over windows of at least `min_seconds`, since counters are slow
(NVML's moves every 20 to 100 ms). The windows of both alternate, so that drift (clocks, temperature) falls
on both, and go on until the mean is known well enough or `repeats` is reached. Figures are gross and of the
steady state: model loaded, warmed up, device synchronised at both ends. What the machine takes idle, with the
model loaded, is measured first; figures net of it are columns of their own.

A window in which others worked is measured again, a bounded number of times; then it stays and is marked.

The prompt is random tokens: the work of a dense model doesn't depend on them, and every pruned model of one
vocabulary gets the same ones.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from greenprune.benchmark.positions import check_length
from greenprune.config import EnergyConfig
from greenprune.energy import Meter, Reading, notes_of, worst_grade
from greenprune.energy.reading import JOULES_PER_WH

log = logging.getLogger("greenprune")
WARM_UP_S = 1.0
REQUESTS = 1000
FEWEST_REPEATS = 3  # of which an interval says little less than 2.5 times their variation
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


def measure_workload(model: PreTrainedModel, config: EnergyConfig, meter: Meter) -> dict[str, Any]:
    """Time, memory and energy of prefilling and decoding on `model`'s device.

    One request is one sequence: `prompt_len` tokens in, `decode_len` tokens out. Latencies are medians over
    passes; energies are means over windows. Returns the metrics of README's table (None where not measured),
    under "readings" each window's Reading, under "idle" that of the machine at rest, and under "discarded"
    those that were measured again. Raises ModelError beyond learned positions.
    """
    check_length(model, config.prompt_len + config.decode_len, "benchmark.energy prompt_len + decode_len")
    workload, windows = Workload(model, config), Windows(config, meter)
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            time.sleep(config.cooldown_seconds)
            workload.synchronise()
            peak_memory = PeakMemory(model.device)
            idle = windows.once("idle", lambda: time.sleep(config.min_seconds), workload.synchronise)
            workload.warm_up(min(WARM_UP_S, config.min_seconds))
            prefills: list[PhaseWindow] = []
            decodes: list[PhaseWindow] = []
            while not enough(prefills, decodes, config):
                number = f"{len(prefills) + 1} of {config.repeats}"
                prefills.append(windows.measure(f"prefill {number}", workload.prefill, workload.synchronise))
                workload.fill_cache()
                decodes.append(windows.measure(f"decode {number}", workload.decode, workload.synchronise))
            peak_memory_bytes = peak_memory.bytes()
    finally:
        model.train(training)
    return {
        **summarise(prefills, decodes, config, idle.reading),
        "peak_memory_bytes": peak_memory_bytes,
        "energy_windows_discarded": len(windows.discarded),
        "discarded": windows.discarded,
    }


def enough(prefills: Sequence[PhaseWindow], decodes: Sequence[PhaseWindow], config: EnergyConfig) -> bool:
    """Whether the energy of a request is known to `target_half_width`, or as often measured as is allowed."""
    done = len(prefills)
    if done < min(FEWEST_REPEATS, config.repeats):
        return False
    batches = _batches(prefills, decodes)
    interval = ci95_ratio(batches) if batches else 0.0
    return done >= config.repeats or (interval is not None and interval < config.target_half_width)


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


class Workload:
    """The two phases on one model; every pass of a phase does the same work."""

    def __init__(self, model: PreTrainedModel, config: EnergyConfig) -> None:
        self.model = model
        self.config = config
        vocabulary = model.config.get_text_config().vocab_size
        generator = torch.Generator().manual_seed(config.seed)
        shape = (config.batch_size, config.prompt_len)
        self.prompt = torch.randint(vocabulary, shape, generator=generator).to(model.device)
        self._first_token = self.prompt[:, -1:]
        self._cache = DynamicCache()

    def warm_up(self, seconds: float) -> None:
        """Both phases, for at least so long: memory is allocated, kernels are chosen, clocks are up."""
        ended = time.perf_counter() + seconds
        while True:
            self.prefill()
            self.fill_cache()
            self.decode()
            self.synchronise()
            if time.perf_counter() >= ended:
                return

    def prefill(self) -> None:
        """The prompt through the model, with a new KV cache."""
        self._forward(self.prompt, DynamicCache())

    def fill_cache(self) -> None:
        """What decoding starts from.

        The cache is made without the model's config, so sliding-window layers keep all their states: a window
        that has slid can't be cropped back. The mask still limits what is attended to.
        """
        self._cache = DynamicCache()
        self._first_token = self._forward(self.prompt, self._cache)

    def decode(self) -> None:
        """The greedy reply, a token a step; afterwards the cache holds the prompt alone again."""
        token = self._first_token
        for _ in range(self.config.decode_len):
            token = self._forward(token, self._cache)
        for layer in self._cache.layers:  # Cache.crop means different things in different transformers 5.x
            if layer.is_initialized:
                layer.keys = layer.keys[..., : self.config.prompt_len, :]
                layer.values = layer.values[..., : self.config.prompt_len, :]

    def _forward(self, ids: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
        """The next token of each sequence, [batch, 1]; it stays on the device."""
        logits = self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        return logits[:, -1:].argmax(dim=-1)

    def synchronise(self) -> None:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)


# ------------------------------------------------------------------------------------------------ figures

ENERGIES = (
    "energy_j_per_token",
    "energy_j_per_token_net",
    "energy_j_per_prefill_token",
    "energy_j_per_decode_token",
    "energy_wh_per_1k_requests",
    "energy_delay_product_js",
    "energy_ci95_ratio",
    "average_power_w",
    "co2e_g_per_1k_requests",
)


def summarise(
    prefills: Sequence[PhaseWindow],
    decodes: Sequence[PhaseWindow],
    config: EnergyConfig,
    idle: Reading | None = None,
) -> dict[str, Any]:
    """The workload's metrics from its windows; every energy is None where one window's was absent."""
    prefill_s = median(seconds for window in prefills for seconds in window.passes)
    step_s = median(seconds for window in decodes for seconds in window.passes) / config.decode_len
    readings = [window.reading for pair in zip(prefills, decodes, strict=True) for window in pair]
    idle_w = _idle_power_w(idle, readings)
    return {
        "prefill_latency_s": prefill_s,
        "decode_latency_s": step_s,
        "prefill_tokens_per_s": config.batch_size * config.prompt_len / prefill_s,
        "decode_tokens_per_s": config.batch_size / step_s,
        **dict.fromkeys(ENERGIES),
        **_energies(prefills, decodes, config, idle_w, delay_s=prefill_s + step_s * config.decode_len),
        "idle_power_w": idle_w,
        "energy_window_s": min(reading.seconds for reading in readings),
        "energy_repeats": len(prefills),
        "energy_kind": worst_grade(readings),
        "energy_source": "; ".join(dict.fromkeys(reading.source for reading in readings)),
        "energy_scope": "; ".join(dict.fromkeys(reading.scope for reading in readings)),
        "energy_sharing": "; ".join(dict.fromkeys(reading.sharing for reading in readings)),
        "energy_note": notes_of(readings),
        **_gpu_state(readings),
        "idle": idle,
        "readings": readings,
    }


def _idle_power_w(idle: Reading | None, readings: Sequence[Reading]) -> float | None:
    """Mean power at rest; None where it was disturbed, or had in another way than the windows' energy."""
    if idle is None or idle.energy_j is None or idle.contamination:
        return None
    return idle.energy_j / idle.seconds if all(reading.source == idle.source for reading in readings) else None


def _energies(
    prefills: Sequence[PhaseWindow],
    decodes: Sequence[PhaseWindow],
    config: EnergyConfig,
    idle_w: float | None,
    delay_s: float,
) -> dict[str, float | None]:
    of_prefill, of_decode = _joules(prefills), _joules(decodes)
    batches = _batches(prefills, decodes)
    if of_prefill is None or of_decode is None or batches is None:
        return {}
    a_request = fmean(batches) / config.batch_size
    windows = (*prefills, *decodes)
    readings = [window.reading for window in windows]
    joules = sum(reading.energy_j or 0.0 for reading in readings)
    carbon = [reading.co2e_g for reading in readings if reading.co2e_g is not None]
    known = len(carbon) == len(readings)
    tokens = config.prompt_len + config.decode_len
    busy_s = fmean(w.seconds_a_pass for w in prefills) + fmean(w.seconds_a_pass for w in decodes)
    net = None if idle_w is None else (fmean(batches) - idle_w * busy_s) / config.batch_size
    return {
        "energy_j_per_token": a_request / tokens,
        "energy_j_per_token_net": None if net is None else net / tokens,
        "energy_j_per_prefill_token": fmean(of_prefill) / (config.batch_size * config.prompt_len),
        "energy_j_per_decode_token": fmean(of_decode) / (config.batch_size * config.decode_len),
        "energy_wh_per_1k_requests": REQUESTS * a_request / JOULES_PER_WH,
        "energy_delay_product_js": a_request * delay_s,
        "energy_ci95_ratio": ci95_ratio(batches),
        "average_power_w": joules / sum(reading.seconds for reading in readings),
        "co2e_g_per_1k_requests": REQUESTS * a_request * sum(carbon) / joules if known else None,
    }


def _batches(prefills: Sequence[PhaseWindow], decodes: Sequence[PhaseWindow]) -> list[float] | None:
    """Joules of one batch of requests, a figure for each pair of windows; None where one is absent."""
    of_prefill, of_decode = _joules(prefills), _joules(decodes)
    if of_prefill is None or of_decode is None:
        return None
    return [prefill + decode for prefill, decode in zip(of_prefill, of_decode, strict=True)]


def _gpu_state(readings: Sequence[Reading]) -> dict[str, Any]:
    """Clocks, power cap, temperature and throttling over all windows and GPUs; None without a GPU that tells."""
    states = [state for reading in readings for state in reading.gpus]

    def known(name: str) -> list[float]:
        return [state[name] for state in states if state[name] is not None]

    reasons = sorted({reason for state in states for reason in state["throttling"]})
    return {
        "gpu_sm_clock_mhz": fmean(known("sm_clock_mhz")) if known("sm_clock_mhz") else None,
        "gpu_power_cap_w": min(known("power_cap_w"), default=None),
        "gpu_temperature_c": max(known("temperature_c"), default=None),
        "gpu_throttling": (", ".join(reasons) or "none") if states else None,
    }


def _joules(windows: Sequence[PhaseWindow]) -> list[float] | None:
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


# ------------------------------------------------------------------------------------------------- memory


class PeakMemory:
    """Peak memory from its making on: the allocator's on a GPU, the process's resident set on Linux.

    The resident set holds Python and its libraries too, some hundreds of MB that all models share.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        gc.collect()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self.resettable = device.type == "cpu" and _reset_high_water_mark()

    def bytes(self) -> int | None:
        """None where the system doesn't tell."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        if not self.resettable:
            return None
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return None


def _reset_high_water_mark() -> bool:
    """Set Linux's VmHWM to what is resident now, freed memory given back first (proc(5), clear_refs 5)."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True
