"""Who works on a node: while an energy window is open, nothing else of ours runs on that device or node.

Every stage holds its node's lock, shared; an energy stage holds it alone (`node`), or shares it and holds its
GPUs' locks alone (`device`). Ray's resources keep most stages apart already, but not those of nodes of other
sizes, of other sweeps on the same storage, or of trials run by hand.

Nobody starves: the locks are fair (storage/locks.py). Nobody deadlocks: the node's lock is always taken first, then
the GPUs' in the order of their names, and whoever holds a lock waits for no other stage. The locks lie on the node's
own disk.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Literal

from greenprune.errors import StorageError
from greenprune.storage import Storage, local_folder, write_atomically
from greenprune.storage.locks import fair_lock, must_wait

Exclusive = Literal["none", "device", "node"]
SECRET = "_stages/.locks"


@contextmanager
def hold_node(storage_uri: str, exclusive: Exclusive, gpus: Sequence[str] = ()) -> Iterator[None]:
    """Inside, no other stage of `storage_uri` works on this node or on `gpus`, as far as `exclusive` says.

    none: beside others that also said none; device: alone on `gpus`, on the whole node where there are none;
    node: alone on the node. Waits until that is so.
    """
    folder = lock_folder(storage_uri)
    alone_on_node = effective(exclusive, bool(gpus)) == "node"
    with ExitStack() as held:
        held.enter_context(_hold(folder / "node", alone_on_node))
        for gpu in sorted(set(gpus)):
            held.enter_context(_hold(folder / f"gpu-{gpu}", exclusive == "device"))
        yield


def effective(exclusive: Exclusive, on_gpus: bool) -> Exclusive:
    """What is kept in truth: a CPU can't be had alone without its node."""
    return "node" if exclusive == "device" and not on_gpus else exclusive


def _hold(path: Path, alone: bool) -> AbstractContextManager[None]:
    return fair_lock(path, alone, f"{'the other stages' if alone else 'an energy window'} of this node")


def node_is_taken(storage_uri: str) -> bool:
    """Whether somebody has this node alone, or waits for that: no time to start processes here."""
    return must_wait(lock_folder(storage_uri) / "node")


def lock_folder(storage_uri: str) -> Path:
    """Where this node keeps a user's locks of one storage.

    Its name is derived from a secret that lies in the storage, so nobody who can't read that can take it first. Raises
    StorageError where somebody has.
    """
    name = hashlib.sha256(f"{os.getuid()}:{storage_mark(storage_uri)}".encode()).hexdigest()[:32]
    folder = Path(tempfile.gettempdir()) / f"greenprune-{name}"
    folder.mkdir(exist_ok=True, mode=0o700)
    state = folder.lstat()
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid():
        raise StorageError(f"{folder} must be a folder of this user, got somebody else's; set TMPDIR to another place")
    return folder


def storage_mark(storage_uri: str) -> str:
    """A storage's own random text: the same for every process of every node that sees it, and for no other.

    Raises StorageError or ConfigError where the storage can't be had.
    """
    path = local_folder(storage_uri) / SECRET
    if not path.exists():
        storage = Storage(storage_uri)
        if storage.remote is not None:
            bucket = storage.remote
            storage.persistently(lambda: bucket.create(SECRET, secrets.token_hex().encode()), f"take {SECRET}")
            storage.pull(SECRET)
            return path.read_text()
        proposal = path.with_name(f".locks.{uuid.uuid4().hex}")
        write_atomically(proposal, secrets.token_hex())
        with suppress(FileExistsError):  # another process was faster: its secret counts
            os.link(proposal, path)
        proposal.unlink()
    return path.read_text()


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
