"""A shared folder as a place for small marks, with what NFS promises: a file is made by one client (O_EXCL), a folder
or file that is opened is asked for anew (close-to-open), and nothing else. Nobody waits for a rename to be seen, and no
file is appended to by two nodes.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from greenprune.storage.bucket import FileState


@dataclass(frozen=True)
class SharedFolder:
    """The calls of a Bucket that leases make."""

    root: Path

    def listing(self, below: str) -> dict[str, FileState]:
        found = {}
        folder = self.root / below
        with suppress(FileNotFoundError):
            for name in os.listdir(folder):
                with suppress(FileNotFoundError), (folder / name).open("rb") as stream:  # opened: the server's answer
                    state = os.fstat(stream.fileno())
                    tag = f"{state.st_ino}-{state.st_mtime_ns}-{state.st_size}"
                    found[f"{below}/{name}"] = FileState(state.st_size, state.st_mtime, tag)
        return found

    def read(self, name: str, start: int, length: int) -> bytes:
        with (self.root / name).open("rb") as stream:
            return os.pread(stream.fileno(), length, start)

    def write(self, name: str, content: bytes) -> None:
        """Into a file that is there."""
        with (self.root / name).open("r+b") as stream:
            stream.write(content)

    def create(self, name: str, content: bytes) -> bool:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with path.open("xb") as stream:
                stream.write(content)
        except FileExistsError:
            return False
        return True

    def delete(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)


def is_there(path: Path) -> bool:
    """Whether a file is there now: an NFS client that once looked in vain believes it until it opens the folders."""
    for folder in (path.parent.parent, path.parent):
        with suppress(OSError):
            os.close(os.open(folder, os.O_RDONLY))
    return path.exists()
