"""What an object store's mirror holds on this machine: artifacts in use, and others within a bound.

The bound is $GREENPRUNE_CACHE_GB, else half of the disk that holds the cache; it is for all mirrors of the user's cache
together. What was used longest ago goes first, and nothing goes that a process works with: that one holds a lock, which
the kernel drops when it dies.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from greenprune.errors import ConfigError
from greenprune.storage.files import cache_dir
from greenprune.storage.locks import locked, shared, taken_if_free
from greenprune.storage.manifest import MANIFEST

log = logging.getLogger("greenprune")
BOUND = "GREENPRUNE_CACHE_GB"
GB = 10**9


def bound_bytes() -> int:
    """What the mirrors may take. Raises ConfigError for a setting that isn't a number above 0."""
    if not (said := os.environ.get(BOUND)):
        place = cache_dir()
        place.mkdir(parents=True, exist_ok=True)
        return shutil.disk_usage(place).total // 2
    try:
        if (bound := float(said)) > 0:
            return int(bound * GB)
    except ValueError:
        pass
    raise ConfigError(f"{BOUND} must be a number of gigabytes above 0, got {said!r}; set it, or leave it out")


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Inside, the folder isn't removed to make room; from now on it is the one used last."""
    lock = _lock(folder)
    with shared(lock):
        os.utime(lock)
        yield


@contextmanager
def brought_by_one(folder: Path) -> Iterator[None]:
    """One process of this machine at a time brings a folder here."""
    with locked(folder.with_suffix(".bringing"), f"{folder.name[:8]}, which another process brings here"):
        yield


def make_room(coming_bytes: int = 0) -> None:
    """Remove folders, the longest unused first, until the mirrors and what is coming are within the bound.

    What isn't removed because it is in use may leave them above it.
    """
    bound = bound_bytes()
    sizes = {manifest.parent: _bytes(manifest.parent) for manifest in _mirrored()}
    excess = sum(sizes.values()) + coming_bytes - bound
    for folder in sorted(sizes, key=_used):
        if excess <= 0:
            return
        with taken_if_free(_lock(folder)) as free:
            if free:
                _remove(folder)
                excess -= sizes[folder]
                log.info("%s leaves this machine's mirror, which may hold %.1f GB", folder, bound / GB)


def _mirrored() -> Iterator[Path]:
    return (path for path in (cache_dir() / "mirrors").glob(f"*/_stages/*/*/{MANIFEST}") if "." not in path.parent.name)


def _bytes(folder: Path) -> int:
    found = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            found += path.stat().st_size
    return found


def _used(folder: Path) -> float:
    for path in (_lock(folder), folder):
        with suppress(FileNotFoundError):
            return path.stat().st_mtime
    return time.time()


def _remove(folder: Path) -> None:
    """Half a folder must not look whole, so it goes under another name."""
    aside = folder.with_name(f"{folder.name}.gone.{uuid.uuid4().hex[:8]}")
    with suppress(FileNotFoundError):  # another process was faster
        os.rename(folder, aside)
        shutil.rmtree(aside, ignore_errors=True)


def _lock(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.use")
