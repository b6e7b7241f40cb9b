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
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

from greenprune.errors import ConfigError, StorageError

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

T = TypeVar("T")
log = logging.getLogger("greenprune")
CHUNK = 8 << 20
WAITS_S = (0.5, 2.0, 8.0)  # between the attempts of one transfer


def cache_dir() -> Path:
    """`$GREENPRUNE_CACHE`, else `greenprune` below the XDG cache."""
    if chosen := os.environ.get("GREENPRUNE_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "greenprune"


def local_folder(uri: str) -> Path:
    """What a storage has on this machine: the folder that it is, or the mirror of an object store."""
    if _has_scheme(uri):
        return cache_dir() / "mirrors" / hashlib.sha256(uri.encode()).hexdigest()[:16]
    return Path(uri).expanduser().resolve()


def _has_scheme(uri: str) -> bool:
    return re.match(r"^[a-z][a-z0-9+.-]*://", uri) is not None


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

    def remote_names(self, relative: str | Path) -> set[str]:
        """The files below a folder of the object store, relative to it."""
        root = f"{self.prefix}/{Path(relative).as_posix()}"
        return {entry.path.rpartition(f"{root}/")[2] for entry in self._entries(relative)}

    def rename(self, old: str | Path, new: str | Path) -> None:
        """Give a folder another name, here and in the object store, which has to move file by file."""
        if (self.local / old).exists():
            os.rename(self.local / old, self.local / new)
        if self.remote is None:
            return
        root = f"{self.prefix}/{Path(old).as_posix()}"
        # What makes a folder count goes first: half a folder must not look whole.
        for entry in sorted(self._entries(old), key=lambda entry: entry.base_name != "manifest.json"):
            target = f"{self.prefix}/{Path(new).as_posix()}/{entry.path.rpartition(f'{root}/')[2]}"
            self._persistently(lambda entry=entry, target=target: self._move(entry.path, target), f"move {entry.path}")
        self._persistently(lambda: self.remote.delete_dir_contents(root, missing_dir_ok=True), f"empty {root}")

    def delete(self, relative: str | Path) -> None:
        """Remove a file or folder, here and in the object store."""
        path = self.local / relative
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        self.delete_remote(relative)

    def delete_remote(self, relative: str | Path) -> None:
        """Remove a file or folder in the object store alone."""
        for entry in self._entries(relative) if self.remote is not None else ():
            self._persistently(lambda path=entry.path: self.remote.delete_file(path), f"delete {entry.path}")

    # ------------------------------------------------------------------------------------------- the network

    def _entries(self, relative: str | Path) -> list[FileInfo]:
        """The files that are at or below a path of the object store."""
        from pyarrow.fs import FileSelector, FileType

        def ask() -> list[FileInfo]:
            assert self.remote is not None, "only an object store is asked"
            root = f"{self.prefix}/{Path(relative).as_posix()}"
            info = self.remote.get_file_info(root)
            if info.type == FileType.NotFound:
                return []
            found = [info] if info.is_file else self.remote.get_file_info(FileSelector(root, recursive=True))
            return [entry for entry in found if entry.is_file]

        return self._persistently(ask, f"list {relative}")

    def _send(self, path: Path, target: str) -> None:
        def send() -> None:
            assert self.remote is not None, "only an object store is sent to"
            self.remote.create_dir(target.rpartition("/")[0], recursive=True)
            with path.open("rb") as stream, self.remote.open_output_stream(target) as sink:
                shutil.copyfileobj(stream, sink, CHUNK)
            if (size := self.remote.get_file_info(target).size) != path.stat().st_size:
                raise OSError(f"{size} bytes arrived of {path.stat().st_size}")

        self._persistently(send, f"take {target}")

    def _fetch(self, entry: FileInfo, target: Path) -> None:
        def fetch() -> None:
            assert self.remote is not None, "only an object store is fetched from"
            with whole_file(target) as sink, self.remote.open_input_stream(entry.path) as stream:
                shutil.copyfileobj(stream, sink, CHUNK)
                if sink.tell() != entry.size:
                    raise OSError(f"{sink.tell()} bytes came of {entry.size}")

        self._persistently(fetch, f"give {entry.path}")

    def _move(self, old: str, new: str) -> None:
        assert self.remote is not None, "only an object store moves file by file"
        self.remote.create_dir(new.rpartition("/")[0], recursive=True)
        self.remote.move(old, new)

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


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a whole file or nothing, also through a power cut."""
    with whole_file(path) as sink:
        sink.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that takes the place of `path` when the `with` ends well: it is on the disk, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("wb") as sink:
            yield sink
            sink.flush()
            os.fsync(sink.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Bring a folder's entries to the disk: without it a power cut may undo a rename."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
