"""Where runs and artifacts live: a local or shared directory, or an object store (s3://…, gs://…).

All other code works on local paths. For a directory `local` is that directory and `push`/`pull` do nothing;
for an object store `local` is a mirror in the user's cache, which they keep in step.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from greenprune.errors import ConfigError

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem


def cache_dir() -> Path:
    """`$GREENPRUNE_CACHE`, else `greenprune` below the XDG cache."""
    if chosen := os.environ.get("GREENPRUNE_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "greenprune"


class Storage:
    """A root for `runs/NAME` and `_stages`. Raises ConfigError for a URI that can't be opened."""

    def __init__(self, uri: str | Path) -> None:
        self.uri = str(uri)
        self.remote: FileSystem | None = None
        if not re.match(r"^[a-z][a-z0-9+.-]*://", self.uri):
            self.local = Path(self.uri).expanduser().resolve()
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
        self.local = cache_dir() / "mirrors" / hashlib.sha256(self.uri.encode()).hexdigest()[:16]

    def push(self, relative: str | Path, last: str | None = None) -> None:
        """Send a file or folder to the object store; the file named `last` goes after all others."""
        if self.remote is None:
            return
        source = self.local / relative
        files = [source] if source.is_file() else sorted(p for p in source.rglob("*") if p.is_file())
        for path in sorted(files, key=lambda p: p.name == last):
            target = f"{self.prefix}/{path.relative_to(self.local).as_posix()}"
            self.remote.create_dir(target.rsplit("/", 1)[0], recursive=True)
            with path.open("rb") as stream, self.remote.open_output_stream(target) as sink:
                shutil.copyfileobj(stream, sink, 8 << 20)

    def pull(self, relative: str | Path) -> bool:
        """Bring a file or folder from the object store; False where it isn't there."""
        if self.remote is None:
            return (self.local / relative).exists()
        from pyarrow.fs import FileSelector, FileType

        root = f"{self.prefix}/{Path(relative).as_posix()}"
        info = self.remote.get_file_info(root)
        if info.type == FileType.NotFound:
            return False
        found = [info] if info.is_file else self.remote.get_file_info(FileSelector(root, recursive=True))
        for entry in found:
            if entry.is_file:
                target = self.local / entry.path.removeprefix(self.prefix).lstrip("/")
                with self.remote.open_input_stream(entry.path) as stream:
                    write_atomically(target, stream.read())
        return True

    def rename(self, old: str, new: str) -> None:
        """Give a folder another name, here and in the object store, which has to move file by file."""
        if (self.local / old).exists():
            os.rename(self.local / old, self.local / new)
        if self.remote is None:
            return
        from pyarrow.fs import FileSelector

        root = f"{self.prefix}/{old}"
        for entry in self.remote.get_file_info(FileSelector(root, allow_not_found=True, recursive=True)):
            if entry.is_file:
                target = f"{self.prefix}/{new}/{entry.path.rpartition(f'{root}/')[2]}"
                self.remote.create_dir(target.rpartition("/")[0], recursive=True)
                self.remote.move(entry.path, target)
        self.remote.delete_dir_contents(root, missing_dir_ok=True)


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a whole file or nothing: a temporary file beside it, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
