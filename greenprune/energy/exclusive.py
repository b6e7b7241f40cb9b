"""Who works on a node: while an energy window is open, nothing else of ours runs on that device or node.

Every stage holds its node's lock, shared; an energy stage holds it alone (`node`), or shares it and holds its
GPUs' locks alone (`device`). Ray's resources keep most stages apart already, but not those of nodes of other
sizes, of other sweeps on the same storage, or of trials run by hand.

Nobody starves: the locks are fair (greenprune/locks.py). Nobody deadlocks: the node's lock is always taken first,
then the GPUs' in the order of their names, and whoever holds a lock waits for no other stage. The locks lie on
the node's own disk.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Literal

from greenprune.locks import fair_lock, must_wait

Exclusive = Literal["none", "device", "node"]


@contextmanager
def hold_node(storage_uri: str, exclusive: Exclusive, gpus: Sequence[str] = ()) -> Iterator[None]:
    """Inside, no other stage of `storage_uri` works on this node or on `gpus`, as far as `exclusive` says.

    none: beside others that also said none; device: alone on `gpus`, on the whole node where there are none;
    node: alone on the node. Waits until that is so.
    """
    folder = lock_folder(storage_uri)
    alone_on_node = exclusive == "node" or (exclusive == "device" and not gpus)
    with ExitStack() as held:
        held.enter_context(_hold(folder / "node", alone_on_node))
        for gpu in sorted(set(gpus)):
            held.enter_context(_hold(folder / f"gpu-{gpu}", exclusive == "device"))
        yield


def _hold(path: Path, alone: bool) -> AbstractContextManager[None]:
    return fair_lock(path, alone, f"{'the other stages' if alone else 'an energy window'} of this node")


def node_is_taken(storage_uri: str) -> bool:
    """Whether somebody has this node alone, or waits for that: no time to start processes here."""
    return must_wait(lock_folder(storage_uri) / "node")


def lock_folder(storage_uri: str) -> Path:
    """Where this node keeps the locks of one storage."""
    name = hashlib.sha256(storage_uri.encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"greenprune-{os.getuid()}" / name
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def gpus_here() -> tuple[str, ...]:
    """Names of the GPUs that this process works on, the same in every process: UUIDs where NVML tells."""
    import torch

    from greenprune.energy.machine import visible_gpus
    from greenprune.energy.nvml import nvml_gpus
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
