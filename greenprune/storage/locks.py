"""Locks between the processes of one node: `flock`s, which the kernel drops when a process dies, however it dies.

with locked(path): …                 one process at a time; the others wait
with fair_lock(path, alone=True): …             alone, or together with all who asked for alone=False
"""

from __future__ import annotations

import errno
import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from greenprune.errors import StorageError

# What file systems say that have no locks: some network mounts, FUSE.
WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
log = logging.getLogger("greenprune")


@contextmanager
def locked(path: Path, waiting_for: str = "") -> Iterator[None]:
    """Only one process at a time is inside; the others wait, and log `waiting_for` where it is given."""
    with _opened(path) as handle:
        if not _taken_at_once(handle, fcntl.LOCK_EX):
            if waiting_for:
                log.info("waiting for %s", waiting_for)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def shared(path: Path) -> Iterator[None]:
    """Inside together with others; `taken_if_free` isn't meanwhile."""
    with _opened(path) as handle:
        fcntl.flock(handle, fcntl.LOCK_SH)
        yield


@contextmanager
def taken_if_free(path: Path) -> Iterator[bool]:
    """Inside alone, or with False where somebody is inside."""
    with _opened(path) as handle:
        yield _taken_at_once(handle, fcntl.LOCK_EX)


@contextmanager
def fair_lock(path: Path, alone: bool, waiting_for: str = "") -> Iterator[None]:
    """Inside with others who came with alone=False, or alone. Nobody starves.

    Whoever waits to be alone keeps a gate closed, behind which all later ones queue. The two files are `path`
    with .gate and .lock appended.
    """
    kind = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
    with _opened(_gate(path)) as gate, _opened(_lock(path)) as lock:
        if not (_taken_at_once(gate, fcntl.LOCK_EX) and _taken_at_once(lock, kind)):
            if waiting_for:
                log.info("waiting for %s", waiting_for)
            fcntl.flock(gate, fcntl.LOCK_EX)
            fcntl.flock(lock, kind)
        fcntl.flock(gate, fcntl.LOCK_UN)
        yield


def must_wait(path: Path) -> bool:
    """Whether fair_lock(path, alone=False) would wait now: somebody is inside alone, or waits to be."""
    with _opened(_gate(path)) as gate, _opened(_lock(path)) as lock:
        return not (_taken_at_once(gate, fcntl.LOCK_SH) and _taken_at_once(lock, fcntl.LOCK_SH))


def _gate(path: Path) -> Path:
    return path.with_name(f"{path.name}.gate")


def _lock(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")


def _opened(path: Path) -> IO[str]:
    """The lock's file, made where it isn't there. Closing it lets go of the lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("a")


def _taken_at_once(handle: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as problem:
        if problem.errno not in WITHOUT_LOCKS:
            raise
        raise StorageError(
            f"the file system of {handle.name} must have flock locks, got {problem.strerror}; mount it with them "
            "(NFS: without nolock; Lustre: -o flock), or take another folder or an object store (s3://…) as storage"
        ) from problem
    return True
