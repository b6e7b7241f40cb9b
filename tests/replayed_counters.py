"""Sensors that answer from a script: an NVML of some GPUs, a powercap tree of files."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from greenprune.energy import rapl


class FakeNvml:
    """pynvml of some GPUs; each method answers from lists, the last value stays."""

    class NVMLError(Exception):
        pass

    class NVMLError_NotFound(NVMLError):
        pass

    __spec__ = "as a module has one"
    NVML_CLOCK_SM, NVML_TEMPERATURE_GPU = 1, 0
    nvmlClocksEventReasonSwPowerCap = 4

    def __init__(self, gpus: int = 1, **answers: list) -> None:
        self.count, self.answers = gpus, answers

    def _next(self, name: str, gpu: int):
        values = self.answers.get(f"{name}{gpu}", self.answers.get(name))
        if values is None:
            raise self.NVMLError(f"{name} isn't supported")
        return values.pop(0) if len(values) > 1 else values[0]

    def nvmlInit(self):
        pass

    def nvmlSystemGetDriverVersion(self):
        return b"580"

    def nvmlDeviceGetCount(self):
        return self.count

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetName(self, gpu):
        return b"H100"

    def nvmlDeviceGetUUID(self, gpu):
        return f"GPU-{gpu}"

    def nvmlDeviceGetTotalEnergyConsumption(self, gpu):
        return self._next("energy_mj", gpu)

    def nvmlDeviceGetPowerUsage(self, gpu):
        return self._next("power_mw", gpu)

    def nvmlDeviceGetEnforcedPowerLimit(self, gpu):
        return self._next("cap_mw", gpu)

    def nvmlDeviceGetPowerManagementLimit(self, gpu):
        return self._next("limit_mw", gpu)

    def nvmlDeviceGetClockInfo(self, gpu, which):
        return self._next("clock_mhz", gpu)

    def nvmlDeviceGetTemperature(self, gpu, sensor):
        return self._next("temperature", gpu)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, gpu):
        return self._next("throttling", gpu)

    def nvmlDeviceGetComputeRunningProcesses(self, gpu):
        return [SimpleNamespace(pid=pid) for pid in self._next("pids", gpu)]

    def nvmlDeviceGetProcessUtilization(self, gpu, since_us):
        """The samples after `since_us` of [(PID, microseconds, percent of the SMs' time), …]."""
        samples = [sample for sample in self._next("use", gpu) if sample[1] > since_us]
        if not samples:
            raise self.NVMLError_NotFound("no sample since then")
        return [SimpleNamespace(pid=pid, timeStamp=at, smUtil=percent) for pid, at, percent in samples]

    def nvmlDeviceGetMigMode(self, gpu):
        return self._next("mig", gpu)


def install_nvml(monkeypatch: pytest.MonkeyPatch, binding: FakeNvml | None) -> None:
    """For one test this machine's NVML is `binding`; None: it isn't installed."""
    monkeypatch.setitem(sys.modules, "pynvml", binding)


class Clock:
    """Moves by a fixed step at each look."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def powercap(root: Path, **counters: int | str) -> Path:
    """A powercap tree: `powercap(tmp_path, p0=1, p0_dram=2)`; each zone wraps at 1000 µJ."""
    for number, (key, value) in enumerate(counters.items()):
        package, _, inner = key.partition("_")
        folder = root / f"intel-rapl:{package[1:]}"
        if inner:
            folder = folder / f"intel-rapl:{package[1:]}:{number}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "name").write_text(f"{inner or f'package-{package[1:]}'}\n")
        (folder / "energy_uj").write_text(str(value))
        (folder / "max_energy_range_uj").write_text("1000")
    return root


def set_uj(root: Path, **counters: int) -> None:
    for zone in rapl.zones(root):
        key = f"p{zone.folder.name.split(':')[1]}" + ("" if zone.component == "cpu" else f"_{zone.name}")
        if key in counters:
            zone.counter.write_text(str(counters[key]))


def install_powercap(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    """For one test this machine's RAPL counters are those of a tree; an empty folder has none."""
    monkeypatch.setattr(rapl, "POWERCAP", root)
