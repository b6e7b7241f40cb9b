"""One model under one load, measured round by round: a batch whose phases are apart, or requests in flight.

A round is one window of each phase. What it took, a token, is a figure of its own, so that rounds of two models can be
compared in pairs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Protocol

from greenprune.benchmark.figures import (
    WorkloadEnergy,
    WorkloadFigures,
    ci95_ratio,
    how_they_were_had,
    idle_power_w,
    joules_of,
    latencies,
    of_requests,
    readings_of,
    summarise,
)
from greenprune.benchmark.windows import PhaseWindow, Windows
from greenprune.config import ENGINES, EnergyConfig
from greenprune.energy import Reading
from greenprune.engines import RequestsInFlight, WorkloadPhases
from greenprune.engines.steady import Served


class Load(Protocol):
    """driver: the served model, which may be another one each round. name: of its windows."""

    def warm_up(self, driver: Any, seconds: float) -> None: ...

    def measure(self, driver: Any, windows: Windows, number: str) -> None:
        """One more round."""

    @property
    def rounds(self) -> int: ...

    def readings(self) -> list[Reading]: ...

    def joules(self) -> Mapping[str, Sequence[float]]:
        """By column, joules a token of each round; a column is missing where one of its windows was absent."""

    def figures(self, idle: Reading | None) -> WorkloadFigures: ...


class BatchLoad:
    """Prefill and decode of one batch, each in windows of its own that alternate."""

    def __init__(self, config: EnergyConfig, concurrency: int, mark: str = "") -> None:
        self.config, self.concurrency, self.mark = config, concurrency, mark
        self.prefills: list[PhaseWindow] = []
        self.decodes: list[PhaseWindow] = []

    def warm_up(self, driver: WorkloadPhases, seconds: float) -> None:
        """Both phases, for at least so long: memory is allocated, kernels are chosen, clocks are up."""
        ended = time.perf_counter() + seconds
        while True:
            driver.prefill()
            driver.fill_cache()
            driver.decode()
            driver.synchronise()
            if time.perf_counter() >= ended:
                return

    def measure(self, driver: WorkloadPhases, windows: Windows, number: str) -> None:
        at = self.mark
        self.prefills.append(windows.measure(f"prefill{at} {number}", driver.prefill, driver.synchronise))
        driver.fill_cache()
        self.decodes.append(windows.measure(f"decode{at} {number}", driver.decode, driver.synchronise))

    @property
    def rounds(self) -> int:
        return len(self.decodes)

    def readings(self) -> list[Reading]:
        return readings_of(self.prefills, self.decodes)

    def joules(self) -> dict[str, list[float]]:
        of_prefill, of_decode = joules_of(self.prefills), joules_of(self.decodes)
        if of_prefill is None or of_decode is None:
            return {}
        batch, request = self.config.batch_size * self.concurrency, self.config.request
        pairs = zip(of_prefill, of_decode, strict=True)
        return {
            "energy_j_per_token": [(prefill + decode) / (batch * sum(request)) for prefill, decode in pairs],
            "energy_j_per_prefill_token": [joules / (batch * request.prompt) for joules in of_prefill],
            "energy_j_per_decode_token": [joules / (batch * request.decode) for joules in of_decode],
        }

    def figures(self, idle: Reading | None) -> WorkloadFigures:
        return summarise(self.prefills, self.decodes, self.config, idle, self.concurrency)


@dataclass(frozen=True)
class ServedWindow:
    """One window of requests in flight: what the meter read, and what was done."""

    reading: Reading
    served: Served

    @property
    def tokens(self) -> int:
        return self.served.prompt_tokens + self.served.decode_tokens


class ServerLoad:
    """Requests that come and go on an engine of its own continuous batching."""

    def __init__(self, config: EnergyConfig, concurrency: int, mark: str = "") -> None:
        self.config, self.concurrency, self.mark = config, concurrency, mark
        self.windows: list[ServedWindow] = []

    def warm_up(self, driver: RequestsInFlight, seconds: float) -> None:
        driver.warm_up(seconds)

    def measure(self, driver: RequestsInFlight, windows: Windows, number: str) -> None:
        found: list[Served] = []
        name, seconds = f"serve{self.mark} {number}", self.config.min_seconds
        window = windows.measure(name, lambda: found.append(driver.run(seconds)), lambda: None)
        self.windows.append(ServedWindow(window.reading, found[-1]))

    @property
    def rounds(self) -> int:
        return len(self.windows)

    def readings(self) -> list[Reading]:
        return [window.reading for window in self.windows]

    def joules(self) -> dict[str, list[float]]:
        found = [window.reading.energy_j for window in self.windows]
        known = [energy for energy in found if energy is not None]
        if len(known) < len(found):
            return {}
        tokens = [window.tokens for window in self.windows]
        return {"energy_j_per_token": [energy / count for energy, count in zip(known, tokens, strict=True)]}

    def figures(self, idle: Reading | None) -> WorkloadFigures:
        readings = self.readings()
        ttft_s = [seconds for window in self.windows for seconds in window.served.ttft_s]
        tpot_s = [seconds for window in self.windows for seconds in window.served.tpot_s]
        idle_w = idle_power_w(idle, readings)
        return WorkloadFigures(
            prefill_latency_s=None,
            decode_latency_s=None,
            prefill_tokens_per_s=None,
            decode_tokens_per_s=None,
            tokens_per_s=sum(window.tokens for window in self.windows) / self._seconds(),
            latencies=latencies(ttft_s, tpot_s),
            energy=self._energy(idle_w),
            idle_power_w=idle_w,
            energy_repeats=len(readings),
            **how_they_were_had(readings, self.config, self.concurrency),
        )

    def _seconds(self) -> float:
        return sum(window.served.seconds for window in self.windows)

    def _energy(self, idle_w: float | None) -> WorkloadEnergy:
        a_token = self.joules().get("energy_j_per_token")
        if not a_token:
            return WorkloadEnergy()
        lengths = self.config.lengths
        a_request = fmean(sum(length) for length in lengths)  # tokens
        token_s = self._seconds() / sum(window.tokens for window in self.windows)
        delay_s = token_s * a_request * self.concurrency  # Little's law
        joules = fmean(a_token) * a_request
        return WorkloadEnergy(
            energy_j_per_token=fmean(a_token),
            energy_j_per_token_net=None if idle_w is None else fmean(a_token) - idle_w * token_s,
            **of_requests(joules, delay_s, ci95_ratio(a_token), self.readings()),
        )


def load_for(config: EnergyConfig, concurrency: int, mark: str = "") -> Load:
    """What measures the engine of a configuration."""
    return (BatchLoad if ENGINES[config.engine].batches else ServerLoad)(config, concurrency, mark)
