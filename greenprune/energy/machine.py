"""Which hardware this is, and which of its GPUs a process uses.

Joules are only compared on one machine identity. Its class is what can be bought again: CPU model, cores, memory,
models of the GPUs, energy sources. Without a GPU that is the identity too. With GPUs it also holds which cards they
are, their power caps and their driver: cards of one model differ by several percent, so each is a machine of its own.

GPUs are named by NVML index, since CodeCarbon silently counts nothing for the UUIDs and MIG ids that
CUDA_VISIBLE_DEVICES may hold, and counts every GPU where that variable is empty.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from greenprune.energy.nvml import Gpu, nvml, nvml_gpus
from greenprune.energy.sensors import SENSORS
from greenprune.errors import EnergyError

if TYPE_CHECKING:
    import torch

ORDER = "CUDA_DEVICE_ORDER"


def machine_identity() -> tuple[str, dict[str, Any]]:
    """A short hash of this machine, and the facts: those hashed, the hash of its class, and hostname, OS, driver."""
    of_class = {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": _memory_gib(),
        "gpus": _visible_names(),
        "energy_sources": energy_sources(),
    }
    machine_class, cards, driver = _short_hash(of_class), _visible_cards(), _driver()
    identity = _short_hash({**of_class, "cards": cards, "driver": driver}) if cards else machine_class
    here = {"hostname": socket.gethostname(), "os": platform.platform(), "driver": driver}
    return identity, {**of_class, "cards": cards, "machine_class": machine_class, **here}


def machine_class_of(row: Mapping[str, Any]) -> str | None:
    """The class that a trial's row or a stage's file names; in those of before, the machine itself was one."""
    named = (row.get("machine_class"), row.get("machine"))
    return next((name for name in named if isinstance(name, str)), None)


def _short_hash(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


@functools.cache
def cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_gib() -> int:
    import psutil

    return round(psutil.virtual_memory().total / 2**30)


def energy_sources() -> list[str]:
    """The sensors that can be read here, `["nvml", "rapl"]` at best; `["cpu_model"]` where there is none."""
    return [name for name, kind in SENSORS.items() if kind.here()] or ["cpu_model"]


def _driver() -> str | None:
    library = nvml()
    return library.driver() if library else None


def _visible_names() -> list[str]:
    try:
        return [gpu.name for gpu in nvml_gpus() if gpu.index in visible_gpus(nvml_gpus())]
    except EnergyError:
        return [f"{gpu.name} (part)" for gpu in nvml_gpus()]


def _visible_cards() -> list[dict[str, Any]]:
    """UUID and power cap (watts, None where it isn't told) of each visible GPU; slices as they are named."""
    library, gpus = nvml(), nvml_gpus()
    try:
        visible = visible_gpus(gpus)
    except EnergyError:
        return [{"uuid": os.environ.get("CUDA_VISIBLE_DEVICES")}]
    return [
        {"uuid": gpu.uuid, "power_cap_w": library.power_limit_w(gpu.index) if library else None}
        for gpu in gpus
        if gpu.index in visible
    ]


def visible_gpus(gpus: Sequence[Gpu], mask: str | None = None) -> tuple[int, ...]:
    """The NVML indices that CUDA_VISIBLE_DEVICES (or `mask`) leaves; all of them where it isn't set.

    Raises EnergyError for a MIG device or an unknown id (a part of a GPU has no energy counter), and for an index
    where GPUs differ and CUDA numbers them by speed instead of NVML's order.
    """
    mask = os.environ.get("CUDA_VISIBLE_DEVICES") if mask is None else mask
    if mask is None or not gpus:
        return tuple(gpu.index for gpu in gpus)
    chosen = []
    for entry in filter(None, map(str.strip, mask.split(","))):
        if entry == "-1":  # CUDA reads no further
            break
        found = [gpu.index for gpu in gpus if entry == str(gpu.index) or gpu.uuid.startswith(entry)]
        if len(found) != 1:
            raise EnergyError(
                f"CUDA_VISIBLE_DEVICES must name whole GPUs by index or UUID for their energy to be read, "
                f"got {entry!r}, which matches {len(found)} of {len(gpus)}; a MIG slice has no counter: "
                "use a whole GPU"
            )
        if entry.isdigit() and len({gpu.name for gpu in gpus}) > 1 and os.environ.get(ORDER) != "PCI_BUS_ID":
            raise EnergyError(
                f"CUDA_VISIBLE_DEVICES must name GPUs of several models so that CUDA and NVML agree, got {entry!r} "
                f"without {ORDER}=PCI_BUS_ID; set that, or use UUIDs"
            )
        chosen += found
    return tuple(chosen)


def gpus_of(device: torch.device) -> tuple[int, ...]:
    """The NVML index of a torch device; of "cuda" without a number, those of all GPUs that the process sees; () for the
    CPU. Raises EnergyError for a GPU unknown to NVML."""
    if device.type != "cuda":
        return ()
    import torch

    if device.index is None and torch.cuda.device_count() > 1:
        each = (torch.device("cuda", number) for number in range(torch.cuda.device_count()))
        return tuple(index for gpu in each for index in gpus_of(gpu))
    uuid = str(torch.cuda.get_device_properties(device).uuid).removeprefix("GPU-")
    found = [gpu.index for gpu in nvml_gpus() if gpu.uuid.removeprefix("GPU-") == uuid]
    if len(found) != 1:
        raise EnergyError(
            f"the energy of {device} ({torch.cuda.get_device_name(device)}) must be readable through NVML, "
            f"got {len(nvml_gpus())} GPUs there and none with UUID {uuid}; install nvidia-ml-py "
            "(greenprune[gpu]), and use a whole GPU instead of a MIG slice"
        )
    return tuple(found)
