"""What this machine can do: each part with its state and, where something is missing, the mend."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from dataclasses import dataclass

from greenprune.energy.nvml import Nvml, nvml
from greenprune.energy.rapl import RaplSensor, mend, zones
from greenprune.storage import cache_dir


@dataclass(frozen=True)
class Check:
    part: str
    state: str
    remedy: str = ""


def examine() -> list[Check]:
    """One row a part, cheap to make: no model is loaded and Ray isn't started."""
    return [_python(), _memory(), *_gpus(), _cpu_energy(), _grade(), _cache(), *_packages(), _compiler()]


def _python() -> Check:
    return Check("python", sys.version.split()[0])


def _memory() -> Check:
    import psutil

    return Check("cpu, memory", f"{os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB")


def _gpus() -> list[Check]:
    if importlib.util.find_spec("pynvml") is None:
        return [Check("gpu", "unknown: the NVML binding isn't installed", "pip install 'greenprune[gpu]'")]
    library = nvml()
    gpus = library.gpus() if library else ()
    if library is None or not gpus:
        return [Check("gpu", "none: models run on the CPU", "an NVIDIA GPU with its driver, for models above 1 B")]
    return [_gpu_energy(library, gpu.index, gpu.name) for gpu in gpus]


def _gpu_energy(library: Nvml, index: int, name: str) -> Check:
    part = f"gpu {index}"
    if library.is_split(index):
        return Check(part, f"{name}: cut into MIG slices, no energy of its own", f"sudo nvidia-smi -i {index} -mig 0")
    if library.energy_j(index) is not None:
        return Check(part, f"{name}: energy measured by its counter")
    if library.power_w(index) is not None:
        return Check(part, f"{name}: no energy counter, its power is measured ten times a second")
    return Check(part, f"{name}: tells neither energy nor power", "a driver that does, or another GPU")


def _cpu_energy() -> Check:
    found = zones()
    if not found:
        return Check(
            "cpu energy",
            "estimated: no RAPL counter",
            "bare metal with RAPL; a virtual machine rarely shows it",
        )
    if command := mend():
        return Check("cpu energy", "estimated: RAPL is there but can't be read", command)
    return Check("cpu energy", f"measured by RAPL: {', '.join(zone.name for zone in found)}")


def _grade() -> Check:
    """What the two rows above come to for the joules of a trial."""
    library = nvml()
    if library and any(library.power_w(gpu.index) is not None for gpu in library.gpus()):
        return Check("joules of a trial", "measured on the GPU it runs on; of a model on the CPU, see above")
    if RaplSensor.here():
        return Check("joules of a trial", "measured, over the whole node")
    return Check(
        "joules of a trial",
        "estimated: a declared number of watts per busy core, plus a constant",
        "a sensor (see above); or your machine's own watts in benchmark.energy.watts_per_core, watts_base",
    )


def _cache() -> Check:
    folder = cache_dir()
    parent = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(parent).free / 2**30
    if not os.access(parent, os.W_OK):
        return Check("cache", f"{folder} can't be written", "make it writable or set GREENPRUNE_CACHE")
    return Check("cache", f"{folder}, {free:.0f} GiB free", "" if free > 5 else "free some space: models are large")


def _packages() -> list[Check]:
    parts = {
        "ray": ("sweeps", "pip install 'ray[tune,train]'"),
        "deepspeed": ("sharded calibration", "pip install deepspeed"),
        "bitsandbytes": ("QLoRA", "pip install bitsandbytes"),
        "lm_eval": ("tasks", "pip install lm-eval"),
        "codecarbon": ("CO2e and emissions.csv", "pip install codecarbon"),
        "matplotlib": ("pictures in reports", "pip install 'greenprune[report]'"),
    }
    return [
        Check(name, f"installed ({use})")
        if importlib.util.find_spec(name)
        else Check(name, f"missing: no {use}", remedy)
        for name, (use, remedy) in parts.items()
    ]


def _compiler() -> Check:
    if shutil.which("g++"):
        return Check("c++ compiler", "g++ (DeepSpeed builds its CPU operators with it)")
    return Check("c++ compiler", "missing", "apt install g++, for sharded calibration on CPUs")
