"""Turns on a node: while an energy window is open, nothing else of ours runs on that device or node.

Every stage holds its node's lock, shared; an energy stage holds it alone (`node`), or shares it and holds its
GPUs' locks alone (`device`). Ray's resources keep most stages apart already, but not those of nodes of other
sizes, of other sweeps on the same storage, or of trials run by hand.

Nobody starves: whoever waits keeps a gate closed behind which later ones queue. Nobody deadlocks: the order
is always node then GPUs in their order, and whoever holds a lock waits for no other stage. The locks are
`flock`s on the node's own disk: the kernel drops them when a process dies, however it dies.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

Exclusive = Literal["none", "device", "node"]
log = logging.getLogger("greenprune")


@contextmanager
def turn(storage_uri: str, exclusive: Exclusive, gpus: Sequence[str] = ()) -> Iterator[None]:
    """Inside, this node's share of `storage_uri`'s work is ours as far as `exclusive` says.

    exclusive none: beside others that also said none; device: alone on `gpus`, on the whole node where there
    are none; node: alone on the node.
    """
    folder = lock_folder(storage_uri)
    alone_on_node = exclusive == "node" or (exclusive == "device" and not gpus)
    with ExitStack() as held:
        held.enter_context(_fair_lock(folder / "node", alone_on_node))
        for gpu in sorted(set(gpus)):
            held.enter_context(_fair_lock(folder / f"gpu-{gpu}", exclusive == "device"))
        yield


def node_is_taken(storage_uri: str) -> bool:
    """Whether somebody has this node alone, or waits for that: no time to start processes here."""
    folder = lock_folder(storage_uri)
    with ExitStack() as opened:
        for name in ("node.gate", "node.lock"):
            handle = opened.enter_context(open(folder / name, "a"))
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    return False


def lock_folder(storage_uri: str) -> Path:
    """Where this node keeps the locks of one storage."""
    name = hashlib.sha256(storage_uri.encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"greenprune-{os.getuid()}" / name
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def gpus_here() -> tuple[str, ...]:
    """Names of the GPUs that this process works on, the same in every process: UUIDs where NVML tells."""
    import torch

    from greenprune.energy.machine import nvml_gpus, visible_gpus
    from greenprune.errors import EnergyError

    if not torch.cuda.is_available():
        return ()
    gpus = nvml_gpus()
    try:
        visible = visible_gpus(gpus)
    except EnergyError:  # slices and unknown ids, as they are written
        visible = ()
    if visible:
        return tuple(gpu.uuid for gpu in gpus if gpu.index in visible)
    return tuple(filter(None, map(str.strip, os.environ.get("CUDA_VISIBLE_DEVICES", "").split(","))))


@contextmanager
def _fair_lock(path: Path, alone: bool) -> Iterator[None]:
    """A readers' and writers' lock; a waiting writer keeps later readers out."""
    with open(f"{path}.gate", "a") as gate, open(f"{path}.lock", "a") as lock:
        kind = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
        try:
            fcntl.flock(gate, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for %s of this node", "the other stages" if alone else "an energy window")
            fcntl.flock(gate, fcntl.LOCK_EX)
            fcntl.flock(lock, kind)
        fcntl.flock(gate, fcntl.LOCK_UN)
        yield
