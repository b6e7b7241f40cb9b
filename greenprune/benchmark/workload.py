"""The fixed workload: prefill a prompt, decode a reply; how long, how much memory, how many joules.

Prefill and decode are measured apart, each over windows of at least `min_seconds`, since counters are slow
(NVML's moves every 20 to 100 ms). The windows of both alternate, so that drift (clocks, temperature) falls
on both. All figures are gross and of the steady state: model loaded, warmed up, device synchronised at both
ends.

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
from greenprune.energy import Meter, Reading, worst_kind
from greenprune.energy.reading import JOULES_PER_WH

log = logging.getLogger("greenprune")
WARM_UP_S = 1.0
REQUESTS = 1000


@dataclass(frozen=True)
class PhaseWindow:
    """One window of one phase: what the meter read, and the seconds of each pass in it."""

    reading: Reading
    passes: tuple[float, ...]

    @property
    def joules_a_pass(self) -> float | None:
        energy = self.reading.energy_j
        return None if energy is None else energy / len(self.passes)


def measure_workload(model: PreTrainedModel, config: EnergyConfig, meter: Meter) -> dict[str, Any]:
    """Time, memory and energy of prefilling and decoding on `model`'s device.

    One request is one sequence: `prompt_len` tokens in, `decode_len` tokens out. Latencies are medians over
    passes; energies are means over windows. Returns the metrics of README's table (None where not measured)
    and under "readings" each window's Reading. Raises ModelError beyond learned positions.
    """
    check_length(model, config.prompt_len + config.decode_len, "benchmark.energy prompt_len + decode_len")
    workload = Workload(model, config)
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            time.sleep(config.cooldown_seconds)
            peak_memory = PeakMemory(model.device)
            workload.warm_up(min(WARM_UP_S, config.min_seconds))
            prefills, decodes = [], []
            for number in range(1, config.repeats + 1):
                prefills.append(_window(f"prefill {number}", workload.prefill, workload, config, meter))
                workload.fill_cache()
                decodes.append(_window(f"decode {number}", workload.decode, workload, config, meter))
            peak_memory_bytes = peak_memory.bytes()
    finally:
        model.train(training)
    return {**summarise(prefills, decodes, config), "peak_memory_bytes": peak_memory_bytes}


def _window(name: str, run: Callable[[], None], workload: Workload, config: EnergyConfig, meter: Meter) -> PhaseWindow:
    """Repeat a phase until the window is long enough."""
    passes: list[float] = []
    workload.synchronise()
    with meter.window(name) as window:
        started = ended = time.perf_counter()
        while not passes or ended - started < config.min_seconds:
            run()
            workload.synchronise()
            passes.append(time.perf_counter() - ended)
            ended = time.perf_counter()
    reading = window.reading
    energy = "energy absent" if reading.energy_j is None else f"{reading.energy_j:.1f} J {reading.kind}"
    log.info("energy: %s of %d: %.1f s, %s", name, config.repeats, reading.seconds, energy)
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
    "energy_j_per_prefill_token",
    "energy_j_per_decode_token",
    "energy_wh_per_1k_requests",
    "energy_ci95_ratio",
    "average_power_w",
    "co2e_g_per_1k_requests",
)


def summarise(prefills: Sequence[PhaseWindow], decodes: Sequence[PhaseWindow], config: EnergyConfig) -> dict[str, Any]:
    """The workload's metrics from its windows; every energy is None where one window's was absent."""
    prefill_s = median(seconds for window in prefills for seconds in window.passes)
    step_s = median(seconds for window in decodes for seconds in window.passes) / config.decode_len
    readings = [window.reading for pair in zip(prefills, decodes, strict=True) for window in pair]
    return {
        "prefill_latency_s": prefill_s,
        "decode_latency_s": step_s,
        "prefill_tokens_per_s": config.batch_size * config.prompt_len / prefill_s,
        "decode_tokens_per_s": config.batch_size / step_s,
        **dict.fromkeys(ENERGIES),
        **_energies(prefills, decodes, config),
        "energy_window_s": min(reading.seconds for reading in readings),
        "energy_repeats": config.repeats,
        "energy_kind": worst_kind(readings),
        "energy_source": "; ".join(dict.fromkeys(reading.source for reading in readings)),
        "energy_scope": "; ".join(dict.fromkeys(reading.scope for reading in readings)),
        "readings": readings,
    }


def _energies(
    prefills: Sequence[PhaseWindow], decodes: Sequence[PhaseWindow], config: EnergyConfig
) -> dict[str, float | None]:
    of_prefill, of_decode = _joules(prefills), _joules(decodes)
    if of_prefill is None or of_decode is None:
        return {}
    batches = [prefill + decode for prefill, decode in zip(of_prefill, of_decode, strict=True)]
    a_request = fmean(batches) / config.batch_size
    readings = [window.reading for window in (*prefills, *decodes)]
    joules = sum(reading.energy_j or 0.0 for reading in readings)
    carbon = [reading.co2e_g for reading in readings if reading.co2e_g is not None]
    known = len(carbon) == len(readings)
    return {
        "energy_j_per_token": a_request / (config.prompt_len + config.decode_len),
        "energy_j_per_prefill_token": fmean(of_prefill) / (config.batch_size * config.prompt_len),
        "energy_j_per_decode_token": fmean(of_decode) / (config.batch_size * config.decode_len),
        "energy_wh_per_1k_requests": REQUESTS * a_request / JOULES_PER_WH,
        "energy_ci95_ratio": ci95_ratio(batches),
        "average_power_w": joules / sum(reading.seconds for reading in readings),
        "co2e_g_per_1k_requests": REQUESTS * a_request * sum(carbon) / joules if known else None,
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
