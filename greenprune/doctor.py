"""What this machine can do: each part with its state and, where something is missing, the mend."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from greenprune.storage import cache_dir

RAPL = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Check:
    part: str
    state: str
    remedy: str = ""


def examine() -> list[Check]:
    """One row a part, cheap to make: no model is loaded and Ray isn't started."""
    return [_python(), _memory(), _gpu(), _cpu_energy(), _cache(), *_packages(), _compiler()]


def _python() -> Check:
    return Check("python", sys.version.split()[0])


def _memory() -> Check:
    import psutil

    return Check("cpu, memory", f"{os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB")


def _gpu() -> Check:
    if importlib.util.find_spec("pynvml") is None:
        return Check("gpu", "unknown: the NVML binding isn't installed", "pip install 'greenprune[gpu]'")
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return Check("gpu", "none: models run on the CPU", "an NVIDIA GPU with its driver, for models above 1 B")
    names = []
    for index in range(pynvml.nvmlDeviceGetCount()):
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        try:
            pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
            counter = "energy counter"
        except pynvml.NVMLError:
            counter = "no energy counter: polled power"
        names.append(f"{pynvml.nvmlDeviceGetName(handle)} ({counter})")
    return Check("gpu", ", ".join(names) or "none")


def _cpu_energy() -> Check:
    counters = sorted(RAPL.glob("intel-rapl:*/energy_uj")) if RAPL.is_dir() else []
    if not counters:
        return Check(
            "cpu energy",
            "estimated: no RAPL counter",
            "bare metal with RAPL; a virtual machine rarely shows it",
        )
    if not os.access(counters[0], os.R_OK):
        return Check("cpu energy", "RAPL is there but can't be read", f"sudo chmod -R a+r {RAPL}")
    return Check("cpu energy", "measured by RAPL")


def _cache() -> Check:
    folder = cache_dir()
    parent = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(parent).free / 2**30
    if not os.access(parent, os.W_OK):
        return Check("cache", f"{folder} can't be written", "make it writable or set GREENPRUNE_CACHE")
    return Check("cache", f"{folder}, {free:.0f} GiB free", "" if free > 5 else "free some space: models are large")


def _packages() -> list[Check]:
    parts = {
        "ray": "sweeps: pip install 'ray[tune,train]'",
        "deepspeed": "sharded calibration: pip install deepspeed",
        "bitsandbytes": "QLoRA: pip install bitsandbytes",
        "lm_eval": "tasks: pip install lm-eval",
        "codecarbon": "energy: pip install codecarbon",
        "matplotlib": "pictures in reports: pip install 'greenprune[report]'",
    }
    return [
        Check(name, "installed") if importlib.util.find_spec(name) else Check(name, "missing", remedy)
        for name, remedy in parts.items()
    ]


def _compiler() -> Check:
    if shutil.which("g++"):
        return Check("c++ compiler", "g++ (DeepSpeed builds its CPU operators with it)")
    return Check("c++ compiler", "missing", "apt install g++, for sharded calibration on CPUs")
