"""Where runs and artifacts live: a local or shared directory, or an object store (s3://…, gs://…).

All other code works on local paths. For a directory `local` is that directory and `push`/`pull` do nothing;
for an object store `local` is a mirror in the user's cache, which they keep in step. What the network refuses is tried
again for some seconds.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from greenprune.errors import ConfigError, StorageError
from greenprune.storage.files import cache_dir, whole_file
from greenprune.storage.manifest import MANIFEST

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

T = TypeVar("T")
log = logging.getLogger("greenprune")
CHUNK = 8 << 20
WAITS_S = (0.5, 2.0, 8.0)  # between the attempts of one transfer


def local_folder(uri: str) -> Path:
    """What a storage has on this machine: the folder that it is, or the mirror of an object store."""
    if _has_scheme(uri):
        return cache_dir() / "mirrors" / hashlib.sha256(uri.encode()).hexdigest()[:16]
    return Path(uri).expanduser().resolve()


def _has_scheme(uri: str) -> bool:
    return re.match(r"^[a-z][a-z0-9+.-]*://", uri) is not None


@dataclass(frozen=True)
class FileState:
    """A file's size, and when it was changed last, in seconds since the epoch."""

    bytes: int
    changed: float


class Storage:
    """A root for `runs/NAME` and `_stages`. Raises ConfigError for a URI that can't be opened."""

    def __init__(self, uri: str | Path) -> None:
        self.uri = str(uri)
        self.remote: FileSystem | None = None
        self.local = local_folder(self.uri)
        if not _has_scheme(self.uri):
            self.uri = str(self.local)
            return
        from pyarrow.fs import FileSystem, LocalFileSystem

        try:
            filesystem, self.prefix = FileSystem.from_uri(self.uri)
        except Exception as problem:
            raise ConfigError(
                f"storage must be a path or a URI such as s3://bucket/folder, got {self.uri!r}: {problem}"
            ) from None
        if isinstance(filesystem, LocalFileSystem):
            self.local = Path(self.prefix)
            return
        self.remote = filesystem

    def push(self, relative: str | Path, last: str | None = None, to: str | Path | None = None) -> None:
        """Send a file or folder to the object store, there named `to`; the file named `last` goes after all others.

        Raises StorageError where that can't be done.
        """
        if self.remote is None:
            return
        source = self.local / relative
        target = f"{self.prefix}/{Path(to or relative).as_posix()}"
        for path in sorted(_files(source), key=lambda path: path.name == last):
            self._send(path, target if path == source else f"{target}/{path.relative_to(source).as_posix()}")

    def pull(self, relative: str | Path) -> bool:
        """Bring a file or folder from the object store; False where it isn't there.

        Raises StorageError where the store can't be asked.
        """
        if self.remote is None:
            return (self.local / relative).exists()
        found = self._entries(relative)
        for entry in found:
            self._fetch(entry, self.local / entry.path.removeprefix(self.prefix).lstrip("/"))
        return bool(found)

    def files(self, relative: str | Path) -> dict[str, FileState]:
        """The files at or below a path, here and in the object store, by their names relative to the root."""
        found = {}
        for path in _files(self.local / relative):
            with suppress(FileNotFoundError):  # removed meanwhile
                state = path.stat()
                found[path.relative_to(self.local).as_posix()] = FileState(state.st_size, state.st_mtime)
        for entry in self._entries(relative) if self.remote is not None else ():
            name = entry.path.removeprefix(self.prefix).lstrip("/")
            found[name] = FileState(entry.size, entry.mtime_ns / 1e9)
        return found

    def rename(self, old: str | Path, new: str | Path) -> None:
        """Give a folder another name, here and in the object store, which has to move file by file."""
        if (self.local / old).exists():
            os.rename(self.local / old, self.local / new)
        if self.remote is None:
            return
        root = f"{self.prefix}/{Path(old).as_posix()}"
        # What makes a folder count goes first: half a folder must not look whole.
        for entry in sorted(self._entries(old), key=lambda entry: entry.base_name != MANIFEST):
            target = f"{self.prefix}/{Path(new).as_posix()}{entry.path[len(root) :]}"
            self._persistently(partial(self._move, entry.path, target), f"move {entry.path}")
        self._persistently(partial(self._there.delete_dir_contents, root, missing_dir_ok=True), f"empty {root}")

    def delete(self, relative: str | Path) -> None:
        """Remove a file or folder, here and in the object store."""
        path = self.local / relative
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        self.delete_remote(relative)

    def delete_remote(self, relative: str | Path) -> None:
        """Remove a file or folder in the object store alone."""
        for entry in self._entries(relative) if self.remote is not None else ():
            self._persistently(partial(self._there.delete_file, entry.path), f"delete {entry.path}")

    # ------------------------------------------------------------------------------------------- the network

    @property
    def _there(self) -> FileSystem:
        assert self.remote is not None, "only an object store is on the network"
        return self.remote

    def _entries(self, relative: str | Path) -> list[FileInfo]:
        """The files that are at or below a path of the object store."""
        from pyarrow.fs import FileSelector, FileType

        def ask() -> list[FileInfo]:
            root = f"{self.prefix}/{Path(relative).as_posix()}".removesuffix("/.")
            info = self._there.get_file_info(root)
            if info.type == FileType.NotFound:
                return []
            found = [info] if info.is_file else self._there.get_file_info(FileSelector(root, recursive=True))
            return [entry for entry in found if entry.is_file and not entry.base_name.endswith(".sending")]

        return self._persistently(ask, f"list {relative}")

    def _send(self, path: Path, target: str) -> None:
        folder, _, name = target.rpartition("/")
        # Small files of a run have no manifest that would show a torn one: they get their name when they are whole.
        small = path.stat().st_size <= CHUNK
        sent_as = f"{folder}/.{name}.sending" if small else target

        def send() -> None:
            self._there.create_dir(folder, recursive=True)
            with path.open("rb") as stream, self._there.open_output_stream(sent_as) as sink:
                shutil.copyfileobj(stream, sink, CHUNK)
            if (size := self._there.get_file_info(sent_as).size) != path.stat().st_size:
                raise OSError(f"{size} bytes arrived of {path.stat().st_size}")
            if small:
                self._there.move(sent_as, target)

        self._persistently(send, f"take {target}")

    def _fetch(self, entry: FileInfo, target: Path) -> None:
        def fetch() -> None:
            with whole_file(target) as sink, self._there.open_input_stream(entry.path) as stream:
                shutil.copyfileobj(stream, sink, CHUNK)
                if sink.tell() != entry.size:
                    raise OSError(f"{sink.tell()} bytes came of {entry.size}")

        self._persistently(fetch, f"give {entry.path}")

    def _move(self, old: str, new: str) -> None:
        self._there.create_dir(new.rpartition("/")[0], recursive=True)
        self._there.move(old, new)

    def _persistently(self, action: Callable[[], T], what: str) -> T:
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


def _files(source: Path) -> list[Path]:
    return [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
