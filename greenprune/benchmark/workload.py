"""The workload: requests of fixed or drawn lengths; how long, how much memory, how many joules.

Each number of requests in flight is measured by itself, in rounds of windows of at least `min_seconds`, since counters
are slow (NVML's moves every 20 to 100 ms). A batch has its prefill and its decode measured apart, in windows that
alternate; an engine of its own continuous batching is measured while requests come and go. Rounds go on until the mean
is known well enough or `repeats` is reached. Figures are gross and of the steady state: model loaded, warmed up, device
synchronised at both ends. What the machine takes idle, with the model loaded, is measured first; figures net of it are
columns of their own.

In pairs the dense model has a round for each of the trial's, before or after it in turns, so that drift (clocks,
temperature, other guests of a host) falls on both.

A window in which others worked is measured again, a bounded number of times; then it stays and is marked. An engine
whose process dies is started again, once.

The prompt is random tokens: the work of a dense model doesn't depend on them, and every pruned model of one
vocabulary gets the same ones.

An engine (greenprune/engines) runs the requests, windows.py measures one window, loads.py the rounds of one model,
figures.py sums them up.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from greenprune.benchmark.figures import WorkloadFigures, ci95_ratio
from greenprune.benchmark.loads import load_for
from greenprune.benchmark.windows import Windows
from greenprune.columns import COLUMNS
from greenprune.config import EnergyConfig
from greenprune.energy import Meter, Reading, notes_of, worst_grade
from greenprune.engines import Engine
from greenprune.errors import EngineDied

log = logging.getLogger("greenprune")
WARM_UP_S = 1.0
FEWEST_REPEATS = 3  # of which an interval says little less than 2.5 times their variation


@dataclass(frozen=True)
class Measured:
    """The workload on one model, at one number of requests in flight.

    ratios: to the dense model, by column, of pairs. readings: a window's each; dense: of the dense model's windows in
    pairs; idle: of the machine at rest. peak_memory_bytes: None where nothing tells it.
    """

    figures: WorkloadFigures
    peak_memory_bytes: int | None
    idle: Reading
    readings: tuple[Reading, ...]
    dense: tuple[Reading, ...] = ()
    ratios: Mapping[str, float | None] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {**self.figures.to_json(), **self.ratios, "peak_memory_bytes": self.peak_memory_bytes}


@dataclass(frozen=True)
class WorkloadResult:
    """by: what was measured, by requests in flight, in the configuration's order. discarded: the readings of windows
    that were measured again."""

    by: Mapping[int, Measured]
    discarded: tuple[Reading, ...]

    @property
    def first(self) -> Measured:
        return next(iter(self.by.values()))

    @property
    def figures(self) -> WorkloadFigures:
        return self.first.figures

    @property
    def readings(self) -> tuple[Reading, ...]:
        return tuple(reading for measured in self.by.values() for reading in measured.readings)

    def to_json(self) -> dict[str, Any]:
        """What energy.json holds of it, but for the readings; the first number's figures have the plain names."""
        found = {
            **self.first.to_json(),
            "idle": self.first.idle.to_dict(),
            "energy_windows_discarded": len(self.discarded),
            "discarded": [reading.to_dict() for reading in self.discarded],
        }
        if [*self.by] != [1]:
            found["at"] = {str(number): measured.to_json() for number, measured in self.by.items()}
        if dense := [reading.to_dict() for measured in self.by.values() for reading in measured.dense]:
            found["dense_readings"] = dense
        return found


class Side:
    """One model of a comparison. keep: it stays loaded; else it is loaded for each of its rounds, and `close`d."""

    def __init__(self, make: Callable[[], Engine], keep: bool = True) -> None:
        self.make, self.keep = make, keep
        self.engine: Engine | None = None

    @contextmanager
    def serve(self, config: EnergyConfig, concurrency: int) -> Iterator[Any]:
        engine = self.engine or self.make()
        if self.keep:
            self.engine = engine
        try:
            with engine.serve(config, concurrency) as driver:
                yield driver
        finally:
            if not self.keep:
                engine.close()

    def close(self) -> None:
        if self.engine is not None:
            self.engine.close()
            self.engine = None


def measure_workload(
    engine: Engine | Side, config: EnergyConfig, meter: Meter, dense: Side | None = None
) -> WorkloadResult:
    """Time, memory and energy of the workload on the engine's device, at each of `config.concurrency`.

    One request is one sequence: so many tokens in, so many out. dense: measured beside it where `config.paired` says
    so. Raises ModelError beyond learned positions, EngineDied for an engine whose process dies twice.
    """
    side = engine if isinstance(engine, Side) else Side(lambda: engine)
    windows = Windows(config, meter)
    found: dict[int, Measured] = {}
    for concurrency in config.concurrency:
        try:
            found[concurrency] = _measure(side, dense, config, windows, concurrency)
        except EngineDied as problem:
            log.warning("energy: %s; it is started again", problem)
            found[concurrency] = _measure(side, dense, config, windows, concurrency)
    return WorkloadResult(found, tuple(windows.discarded))


def _measure(side: Side, dense: Side | None, config: EnergyConfig, windows: Windows, concurrency: int) -> Measured:
    mark = "" if config.concurrency == [1] else f"@{concurrency}"
    load = load_for(config, concurrency, mark)
    with ExitStack() as kept:
        driver = kept.enter_context(side.serve(config, concurrency))
        time.sleep(config.cooldown_seconds)
        driver.synchronise()
        driver.reset_peak_memory()
        idle = windows.once(f"idle{mark}", lambda: time.sleep(config.min_seconds), driver.synchronise).reading
        load.warm_up(driver, _warm_up_s(config))
        if dense is None or not (config.paired is True or (config.paired == "auto" and idle.kind != "measured")):
            while not enough(load.joules().get("energy_j_per_token", ()), load.rounds, config):
                load.measure(driver, windows, f"{load.rounds + 1} of {config.repeats}")
            peak_memory_bytes = driver.peak_memory_bytes()
            if dense is None or config.paired is False or _narrow(load.joules().get("energy_j_per_token"), config):
                return Measured(load.figures(idle), peak_memory_bytes, idle, tuple(load.readings()))
        peak_memory_bytes = driver.peak_memory_bytes()  # before there is another model
        if not side.keep:
            kept.close()
        pair = Pair((side, dense), config, concurrency, mark)
        return pair.measure(windows, idle, peak_memory_bytes, driver if side.keep else None)


class Pair:
    """A model and the dense one, measured in alternation; `sides` in this order."""

    def __init__(self, sides: tuple[Side, Side], config: EnergyConfig, concurrency: int, mark: str) -> None:
        self.sides, self.config, self.concurrency = sides, config, concurrency
        self.loads = (load_for(config, concurrency, mark), load_for(config, concurrency, f"{mark}:dense"))

    def measure(self, windows: Windows, idle: Reading, peak_memory_bytes: int | None, driver: Any) -> Measured:
        """driver: of the model where it stays loaded."""
        own, other = self.loads
        with ExitStack() as kept:
            drivers = [driver, self._stay(kept) if self.sides[1].keep else None]
            while not enough(self.ratios().get("energy_ratio", ()), own.rounds, self.config):
                order = (0, 1) if own.rounds % 2 else (1, 0)  # so that a steady drift falls on both alike
                number = f"{own.rounds + 1} of {self.config.repeats}"
                for place in order:
                    with self._turn(place, drivers[place]) as up:
                        self.loads[place].measure(up, windows, number)
        readings, dense = tuple(own.readings()), tuple(other.readings())
        both = (*readings, *dense)
        figures = replace(own.figures(idle), energy_kind=worst_grade(both), energy_note=notes_of(both))
        return Measured(figures, peak_memory_bytes, idle, readings, dense, self._summary())

    def ratios(self) -> dict[str, list[float]]:
        """By column, that of each pair."""
        own, other = (load.joules() for load in self.loads)
        return {
            str(COLUMNS[name].ratio): [mine / dense for mine, dense in zip(own[name], other[name], strict=True)]
            for name in own
            if name in other
        }

    def _summary(self) -> dict[str, float | None]:
        found = self.ratios()
        interval = ci95_ratio(found.get("energy_ratio", ()))
        means: dict[str, float | None] = {name: fmean(ratios) for name, ratios in found.items() if ratios}
        mean = means.get("energy_ratio")
        return means | {"energy_ratio_ci95": None if mean is None or interval is None else mean * interval}

    def _stay(self, kept: ExitStack) -> Any:
        driver = kept.enter_context(self.sides[1].serve(self.config, self.concurrency))
        self.loads[1].warm_up(driver, _warm_up_s(self.config))
        return driver

    @contextmanager
    def _turn(self, place: int, driver: Any) -> Iterator[Any]:
        """The driver that stays, or one for this turn alone."""
        if driver is not None:
            yield driver
            return
        with self.sides[place].serve(self.config, self.concurrency) as own:
            self.loads[place].warm_up(own, _warm_up_s(self.config))
            yield own


def _warm_up_s(config: EnergyConfig) -> float:
    return min(WARM_UP_S, config.min_seconds)


def enough(values: Sequence[float], done: int, config: EnergyConfig) -> bool:
    """Whether the mean of these is known to `target_half_width`, or as often measured as is allowed; where there are
    none, nothing is learned by more rounds than the fewest."""
    if done < min(FEWEST_REPEATS, config.repeats):
        return False
    return done >= config.repeats or _narrow(values, config)


def _narrow(values: Sequence[float] | None, config: EnergyConfig) -> bool:
    interval = ci95_ratio(values) if values else 0.0
    return interval is not None and interval < config.target_half_width
