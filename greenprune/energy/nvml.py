"""NVIDIA's management library: joules, watts, state and users of GPUs.

The energy counter moves every 20 to 100 ms, so windows last seconds and the device is synchronised at both
ends. Power, read ten times a second and integrated, checks the counter, and takes its place on GPUs older
than Volta, which have none. Power alone is a one-second average, on some GPUs over a part of the time only.
"""

from __future__ import annotations

import functools
import importlib.util
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from greenprune.energy.counting import Counted, Found, Part
from greenprune.errors import EnergyError

POWER_PERIOD_S = 0.1
STATE_EVERY = 10  # power samples
DISAGREEMENT = 0.10
CHECKED_FROM_S = 2.0  # shorter windows end before the averaged power has followed
THROTTLING = {
    "nvmlClocksEventReasonSwPowerCap": "power cap",
    "nvmlClocksThrottleReasonHwSlowdown": "hardware slowdown",
    "nvmlClocksEventReasonSwThermalSlowdown": "temperature",
    "nvmlClocksThrottleReasonHwThermalSlowdown": "hardware temperature",
    "nvmlClocksThrottleReasonHwPowerBrakeSlowdown": "power brake",
}


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU as NVML numbers it."""

    index: int
    name: str
    uuid: str


@dataclass(frozen=True)
class Use:
    """One look at one process: percent of the time until `at_us` (microseconds since the epoch) that it computed."""

    pid: int
    at_us: int
    percent: int


@dataclass(frozen=True)
class GpuState:
    """A GPU over a window; None where its driver doesn't tell."""

    index: int
    name: str
    sm_clock_mhz: float | None  # mean
    power_cap_w: float | None
    temperature_c: float | None  # highest
    throttling: tuple[str, ...]


class Nvml:
    """The calls that are needed, over pynvml or a stand-in; None where a GPU doesn't answer one."""

    def __init__(self, module: Any) -> None:
        self.module = module
        module.nvmlInit()

    def gpus(self) -> tuple[Gpu, ...]:
        count = self.module.nvmlDeviceGetCount()
        return tuple(
            Gpu(i, _text(self._ask("nvmlDeviceGetName", i)), _text(self._ask("nvmlDeviceGetUUID", i)))
            for i in range(count)
        )

    def driver(self) -> str | None:
        with suppress(self.module.NVMLError):
            return _text(self.module.nvmlSystemGetDriverVersion())
        return None

    def energy_j(self, index: int) -> float | None:
        """Joules since the driver was loaded; None before Volta."""
        millijoules = self._ask("nvmlDeviceGetTotalEnergyConsumption", index)
        return None if millijoules is None else millijoules / 1000

    def power_w(self, index: int) -> float | None:
        milliwatts = self._ask("nvmlDeviceGetPowerUsage", index)
        return None if milliwatts is None else milliwatts / 1000

    def power_cap_w(self, index: int) -> float | None:
        milliwatts = self._ask("nvmlDeviceGetEnforcedPowerLimit", index)
        return None if milliwatts is None else milliwatts / 1000

    def power_limit_w(self, index: int) -> float | None:
        """The cap that was set. The enforced one may change while a GPU works (laptops share power with the CPU)."""
        milliwatts = self._ask("nvmlDeviceGetPowerManagementLimit", index)
        return None if milliwatts is None else milliwatts / 1000

    def sm_clock_mhz(self, index: int) -> float | None:
        return self._ask("nvmlDeviceGetClockInfo", index, getattr(self.module, "NVML_CLOCK_SM", 1))

    def temperature_c(self, index: int) -> float | None:
        return self._ask("nvmlDeviceGetTemperature", index, getattr(self.module, "NVML_TEMPERATURE_GPU", 0))

    def throttling(self, index: int) -> set[str]:
        mask = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons", index) or 0
        return {reason for name, reason in THROTTLING.items() if mask & getattr(self.module, name, 0)}

    def pids(self, index: int) -> set[int]:
        """Processes that compute on a GPU, numbered as the host numbers them."""
        return {process.pid for process in self._ask("nvmlDeviceGetComputeRunningProcesses", index) or ()}

    def use(self, index: int, since_us: int) -> list[Use] | None:
        """Who used a GPU's processors after `since_us` (microseconds since the epoch); None where it isn't told.

        The driver gives one sample a process and call, of its last period of up to a second, so it must be asked as
        often. A process that did nothing has none. Samples of no process and shares above 100 % are slips that some
        drivers make.
        """
        try:
            handle = self.module.nvmlDeviceGetHandleByIndex(index)
            samples = self.module.nvmlDeviceGetProcessUtilization(handle, since_us)
        except getattr(self.module, "NVMLError_NotFound", ()):  # nobody did anything
            return []
        except (self.module.NVMLError, AttributeError):
            return None
        told = [Use(sample.pid, sample.timeStamp, sample.smUtil) for sample in samples]
        return [use for use in told if use.pid and use.at_us > since_us and use.percent <= 100]

    def is_split(self, index: int) -> bool:
        """Whether the GPU is cut into MIG slices, which have no counter of their own."""
        modes = self._ask("nvmlDeviceGetMigMode", index)
        return bool(modes and modes[0])

    def _ask(self, question: str, index: int, *more: Any) -> Any:
        try:
            handle = self.module.nvmlDeviceGetHandleByIndex(index)
            return getattr(self.module, question)(handle, *more)
        except (self.module.NVMLError, AttributeError):  # the latter: an older binding
            return None


def _text(value: str | bytes | None) -> str:
    return value.decode() if isinstance(value, bytes) else value or "unknown"


_opened = functools.cache(Nvml)  # once a process


def nvml() -> Nvml | None:
    """NVIDIA's library on this machine; None without it, its binding or a driver."""
    try:
        import pynvml

        return _opened(pynvml)
    except Exception:  # pynvml's errors exist only where pynvml does, and none of them matters here
        return None


def nvml_gpus() -> tuple[Gpu, ...]:
    """The GPUs of this machine; empty without NVIDIA's library or driver."""
    library = nvml()
    return library.gpus() if library else ()


class NvmlSensor:
    """Joules of whole GPUs, by NVML index. Raises EnergyError for a GPU that is cut into MIG slices."""

    period_s: float | None = POWER_PERIOD_S
    counts_whole_node = False

    def __init__(self, library: Nvml, indices: Sequence[int], clock: Callable[[], float] = time.perf_counter) -> None:
        for index in indices:
            if library.is_split(index):
                raise EnergyError(
                    f"a GPU's energy must be that of one user, got GPU {index}, which is cut into MIG slices that "
                    "share one counter; use a whole GPU, or `sudo nvidia-smi -i "
                    f"{index} -mig 0` where nobody else needs it"
                )
        self.library, self.indices, self.clock = library, tuple(indices), clock

    def open(self) -> NvmlCount:
        return NvmlCount(self)


class NvmlCount:
    """One window's reading of NVML."""

    def __init__(self, sensor: NvmlSensor) -> None:
        self.sensor = sensor
        self.tracks = [_Track(sensor.library, index) for index in sensor.indices]
        self.ticks = 0
        self.tick()
        for track in self.tracks:
            track.start()

    def tick(self) -> None:
        for track in self.tracks:
            track.sample(self.sensor.clock(), with_state=self.ticks % STATE_EVERY == 0)
        self.ticks += 1

    def close(self, seconds: float) -> Counted:
        ends = [track.counted_j() for track in self.tracks]
        self.ticks = 0  # a last look at the state
        self.tick()
        notes: list[str] = []
        joules: list[float] = []
        sources: dict[str, None] = {}
        for track, counted in zip(self.tracks, ends, strict=True):
            energy, source = _joules(track, counted, seconds, notes)
            sources[source] = None
            joules += [] if energy is None else [energy]
        source, known = " + ".join(sources), len(joules) == len(self.tracks)
        part = Part("gpu", sum(joules) if known else None, "measured" if known else "absent", source, "device")
        return Counted((part,), tuple(notes), tuple(asdict(track.state()) for track in self.tracks))


def _joules(track: _Track, counted: float | None, seconds: float, notes: list[str]) -> tuple[float | None, str]:
    """A GPU's joules and their source: the counter's, else integrated power. What is odd is added to `notes`."""
    if counted is not None and counted <= 0:
        notes.append(f"GPU {track.index}'s counter stood still for {seconds:.2f} s: power was integrated")
        counted = None
    power = track.integrated_j
    if counted is None:
        return (power, "nvml_power") if power else (None, f"GPU {track.index} told neither energy nor power")
    if power and seconds >= CHECKED_FROM_S and abs(counted - power) > DISAGREEMENT * counted:
        notes.append(
            f"GPU {track.index}'s counter ({counted:.0f} J) and its integrated power ({power:.0f} J) "
            f"disagree by {abs(counted - power) / counted:.0%}"
        )
    return counted, "nvml_counter"


class _Track:
    """One GPU over one window."""

    def __init__(self, library: Nvml, index: int) -> None:
        self.library, self.index = library, index
        self.integrated_j = 0.0
        self._last: tuple[float, float] | None = None
        self._clocks: list[float] = []
        self._temperatures: list[float] = []
        self._throttling: set[str] = set()
        self._begin_j: float | None = None

    def start(self) -> None:
        self._begin_j = self.library.energy_j(self.index)

    def counted_j(self) -> float | None:
        end_j = self.library.energy_j(self.index)
        return None if end_j is None or self._begin_j is None else end_j - self._begin_j

    def sample(self, now: float, with_state: bool) -> None:
        watts = self.library.power_w(self.index)
        if watts is not None:
            if self._last is not None:
                self.integrated_j += (watts + self._last[1]) / 2 * (now - self._last[0])
            self._last = (now, watts)
        if with_state:
            self._throttling |= self.library.throttling(self.index)
            if (clock := self.library.sm_clock_mhz(self.index)) is not None:
                self._clocks.append(clock)
            if (temperature := self.library.temperature_c(self.index)) is not None:
                self._temperatures.append(temperature)

    def state(self) -> GpuState:
        return GpuState(
            index=self.index,
            name=self.library.gpus()[self.index].name,
            sm_clock_mhz=sum(self._clocks) / len(self._clocks) if self._clocks else None,
            power_cap_w=self.library.power_cap_w(self.index),
            temperature_c=max(self._temperatures, default=None),
            throttling=tuple(sorted(self._throttling)),
        )


# -------------------------------------------------------------------------------------- on this machine (sensors.py)


def here() -> bool:
    return bool(nvml_gpus())


def find(gpus: Sequence[int]) -> NvmlSensor | None:
    """Raises EnergyError for a GPU that is cut into MIG slices."""
    if not gpus:
        return None
    library = nvml()
    assert library is not None, "GPUs are known from NVML"
    return NvmlSensor(library, gpus)


def found() -> list[Found]:
    if importlib.util.find_spec("pynvml") is None:
        return [Found("gpu", "unknown: the NVML binding isn't installed", "pip install 'greenprune[gpu]'")]
    library = nvml()
    gpus = library.gpus() if library else ()
    if library is None or not gpus:
        return [Found("gpu", "none: models run on the CPU", "an NVIDIA GPU with its driver, for models above 1 B")]
    return [_found(library, gpu) for gpu in gpus]


def _found(library: Nvml, gpu: Gpu) -> Found:
    part = f"gpu {gpu.index}"
    if library.is_split(gpu.index):
        remedy = f"sudo nvidia-smi -i {gpu.index} -mig 0"
        return Found(part, f"{gpu.name}: cut into MIG slices, no energy of its own", remedy)
    if library.energy_j(gpu.index) is not None:
        return Found(part, f"{gpu.name}: energy measured by its counter", measures=True)
    if library.power_w(gpu.index) is not None:
        state = f"{gpu.name}: no energy counter, its power is measured ten times a second"
        return Found(part, state, measures=True)
    return Found(part, f"{gpu.name}: tells neither energy nor power", "a driver that does, or another GPU")
