"""Where runs and artifacts live: a local or shared directory, or an object store (s3://…, gs://…, az://…).

All other code works on local paths. For a directory `local` is that directory and `push`/`pull` do nothing;
for an object store `local` is a mirror in the user's cache, which they keep in step: several small files at a time, a
large one in several chunks, a few of which are in memory. What the network refuses is tried again for some seconds.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlsplit

from greenprune.errors import StorageError
from greenprune.storage import bucket
from greenprune.storage.bucket import CHUNK, Bucket, FileState
from greenprune.storage.files import cache_dir, whole_file
from greenprune.storage.folder import SharedFolder
from greenprune.storage.manifest import MANIFEST
from greenprune.storage.mirror import bound_bytes

T = TypeVar("T")
log = logging.getLogger("greenprune")
WAITS_S = (0.5, 2.0, 8.0)  # between the attempts of one transfer
AT_ONCE = 8  # files or chunks that travel together


def local_folder(uri: str) -> Path:
    """What a storage has on this machine: the folder that it is, or the mirror of an object store."""
    if uri.startswith("file://"):
        return Path(unquote(urlsplit(uri).path))
    if _has_scheme(uri):
        return cache_dir() / "mirrors" / hashlib.sha256(uri.encode()).hexdigest()[:16]
    return Path(uri).expanduser().resolve()


def _has_scheme(uri: str) -> bool:
    return re.match(r"^[a-z][a-z0-9+.-]*://", uri) is not None


class Storage:
    """A root for `runs/NAME` and `_stages`. Raises ConfigError for a URI that can't be opened, or a bound of its mirror
    that is none (mirror.py)."""

    def __init__(self, uri: str | Path) -> None:
        self.uri = str(uri)
        self.remote: Bucket | None = None
        self.local = local_folder(self.uri)
        if not _has_scheme(self.uri):
            self.uri = str(self.local)
        elif not self.uri.startswith("file://"):
            bound_bytes()  # refused now, not when the first artifact comes
            self.remote = bucket.open_bucket(self.uri)

    def push(self, relative: str | Path, last: str | None = None, to: str | Path | None = None) -> None:
        """Send a file or folder to the object store, there named `to`; the file named `last` goes after all others.

        Raises StorageError where that can't be done.
        """
        if self.remote is None:
            return
        source, target = self.local / relative, Path(to or relative)
        files = {path: (target / path.relative_to(source)).as_posix() for path in _files(source)}
        at_last = [path for path in files if path.name == last]
        large = [path for path in files if path not in at_last and path.stat().st_size > CHUNK]
        at_once([path for path in files if path not in (*at_last, *large)], lambda path: self._send(path, files[path]))
        for path in (*large, *at_last):  # a large one goes in several parts at once by itself
            self._send(path, files[path])

    def pull(self, relative: str | Path) -> bool:
        """Bring a file or folder from the object store; False where it isn't there.

        Raises StorageError where the store can't be asked.
        """
        if self.remote is None:
            return (self.local / relative).exists()
        found = self._entries(relative)
        large = [name for name, state in found.items() if state.bytes > CHUNK]
        at_once([name for name in found if name not in large], lambda name: self._fetch(name, found[name]))
        for name in large:
            self._fetch(name, found[name])
        return bool(found)

    def files(self, relative: str | Path) -> dict[str, FileState]:
        """The files at or below a path, here and in the object store, by their names relative to the root."""
        found = {}
        for path in _files(self.local / relative):
            with suppress(FileNotFoundError):  # removed meanwhile
                state = path.stat()
                found[path.relative_to(self.local).as_posix()] = FileState(state.st_size, state.st_mtime)
        return found | (self._entries(relative) if self.remote is not None else {})

    def rename(self, old: str | Path, new: str | Path) -> None:
        """Give a folder another name, here and in the object store, which has to move file by file."""
        if (self.local / old).exists():
            os.rename(self.local / old, self.local / new)
        if self.remote is None:
            return
        # What makes a folder count goes first: half a folder must not look whole.
        for name in sorted(self._entries(old), key=lambda name: Path(name).name != MANIFEST):
            target = (Path(new) / Path(name).relative_to(_relative(old))).as_posix()
            self.persistently(partial(self._move, name, target), f"move {name}")

    def delete(self, relative: str | Path) -> None:
        """Remove a file or folder, here and in the object store."""
        path = self.local / relative
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        self.delete_remote(relative)

    def delete_remote(self, relative: str | Path) -> None:
        """Remove a file or folder in the object store alone."""
        for name in self._entries(relative) if self.remote is not None else ():
            self.persistently(partial(self._there.delete, name), f"delete {name}")

    @property
    def shared(self) -> Bucket | SharedFolder:
        """Where a small mark is made by one process of all nodes, and seen by all others."""
        return self.remote or SharedFolder(self.local)

    # ------------------------------------------------------------------------------------------- the network

    @property
    def _there(self) -> Bucket:
        assert self.remote is not None, "only an object store is on the network"
        return self.remote

    def _entries(self, relative: str | Path) -> dict[str, FileState]:
        """The files that are at or below a path of the object store."""
        name = _relative(relative)

        def ask() -> dict[str, FileState]:
            if name and (state := self._there.head(name)):
                return {name: state}
            found = self._there.listing(name)
            return {name: state for name, state in found.items() if not name.endswith(".sending")}

        return self.persistently(ask, f"list {relative}")

    def _send(self, path: Path, target: str) -> None:
        folder, _, name = target.rpartition("/")
        # Small files of a run have no manifest that would show a torn one: they get their name when they are whole.
        small = path.stat().st_size <= CHUNK
        sent_as = f"{folder}/.{name}.sending".lstrip("/") if small else target

        def send() -> None:
            self._there.send(path, sent_as)
            state = self._there.head(sent_as)
            if (size := state.bytes if state else 0) != path.stat().st_size:
                raise OSError(f"{size} bytes arrived of {path.stat().st_size}")
            if small:
                self._move(sent_as, target)

        self.persistently(send, f"take {target}")

    def _fetch(self, name: str, state: FileState) -> None:
        with whole_file(self.local / name) as sink:

            def bring(start: int) -> None:
                length = min(CHUNK, state.bytes - start)
                chunk = self._there.read(name, start, length)
                if len(chunk) != length:
                    raise OSError(f"{len(chunk)} bytes came of {length}")
                os.pwrite(sink.fileno(), chunk, start)

            starts = range(0, state.bytes, CHUNK)
            at_once(starts, lambda start: self.persistently(partial(bring, start), f"give {name}"))

    def _move(self, old: str, new: str) -> None:
        try:
            self._there.move(old, new)
        except FileNotFoundError:
            if self._there.head(new) is None:  # else an attempt whose answer was lost
                raise

    def persistently(self, action: Callable[[], T], what: str) -> T:
        """Do something over the network, again where it fails. Raises StorageError in the end."""
        for wait in (*WAITS_S, None):
            try:
                return action()
            except OSError as problem:
                if wait is None:
                    raise StorageError(
                        f"the store {self.uri} must {what}, got {type(problem).__name__}: {problem} "
                        f"({1 + len(WAITS_S)} times); check the network and the store's permissions, then run the "
                        "same command again: what is finished here is sent then"
                    ) from problem
                log.info("the store %s didn't %s (%s): again in %s s", self.uri, what, problem, wait)
                time.sleep(wait)
        raise AssertionError("the last attempt returns or raises")


def at_once(items: Iterable[T], action: Callable[[T], None]) -> None:
    """Do something with every item, a few at a time. Raises the first error; what hasn't begun then isn't done."""
    items = list(items)
    if len(items) < 2:
        for item in items:
            action(item)
        return
    with ThreadPoolExecutor(min(AT_ONCE, len(items))) as pool:
        list(pool.map(action, items))


def _relative(path: str | Path) -> str:
    return "" if Path(path) == Path() else Path(path).as_posix()


def _files(source: Path) -> list[Path]:
    return [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
