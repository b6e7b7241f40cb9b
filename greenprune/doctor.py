"""What this machine can do: each part with its state and, where something is missing, the mend."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from dataclasses import dataclass

from greenprune.config import ENGINES
from greenprune.energy.sensors import SENSORS
from greenprune.storage import cache_dir


@dataclass(frozen=True)
class Check:
    part: str
    state: str
    remedy: str = ""


def examine() -> list[Check]:
    """One row a part, cheap to make: no model is loaded and Ray isn't started."""
    return [_python(), _memory(), *_sensors(), _cache(), *_packages(), *_engines(), _compiler()]


def _python() -> Check:
    return Check("python", sys.version.split()[0])


def _memory() -> Check:
    import psutil

    return Check("cpu, memory", f"{os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB")


def _sensors() -> list[Check]:
    """Each sensor's rows, and what they come to for the joules of a trial."""
    joules = Check(
        "joules of a trial",
        "estimated: a declared number of watts per busy core, plus a constant",
        "a sensor (see above); or your machine's own watts in benchmark.energy.watts_per_core, watts_base",
    )
    rows = {name: kind.found() for name, kind in SENSORS.items()}
    measuring = [SENSORS[name].headline for name, found in rows.items() if any(row.measures for row in found)]
    if measuring:
        joules = Check("joules of a trial", measuring[0])
    checks = [Check(row.part, row.state, row.remedy) for found in rows.values() for row in found]
    return [*checks, joules]


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


def _engines() -> list[Check]:
    """What may serve the energy workload beside Transformers."""
    return [
        Check(name, f"installed, {kind.version()} (benchmark.energy.engine)")
        if kind.installed()
        else Check(name, f"missing: no benchmark.energy.engine {name}", f"scripts/engines {kind.extra}")
        for name, kind in ENGINES.items()
        if kind.extra
    ]


def _compiler() -> Check:
    if shutil.which("g++"):
        return Check("c++ compiler", "g++ (DeepSpeed builds its CPU operators with it)")
    return Check("c++ compiler", "missing", "apt install g++, for sharded calibration on CPUs")
