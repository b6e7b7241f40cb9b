"""A power cut at the n-th file operation below a folder, and every folder left as a disk may then be.

    with PowerCut(root, at=17) as cut:
        ...                       # raises Crash at the 17th operation, and at every later one
    cut.operations                # how many there were

Seen are opening, creating, renaming, removing and syncing (Python's audit events, and os.fsync). What was written to a
file and never synced is lost from its half on when the power goes.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, ClassVar

WATCHED = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "shutil.rmtree", "shutil.copyfile"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND


class Crash(BaseException):
    """The process is gone: nothing may catch this and go on."""


class PowerCut:
    """at: the operation that doesn't happen any more; None only counts."""

    _now: ClassVar[PowerCut | None] = None
    _hooked: ClassVar[bool] = False

    def __init__(self, root: Path, at: int | None = None) -> None:
        self.root, self.at, self.operations, self.gone = str(root), at, 0, False
        self.unsynced: set[str] = set()

    def __enter__(self) -> PowerCut:
        if not PowerCut._hooked:  # an audit hook stays for ever
            sys.addaudithook(_hook)
            PowerCut._hooked = True
        PowerCut._now, self.fsync = self, os.fsync
        os.fsync = self._fsync
        return self

    def __exit__(self, *_: Any) -> None:
        PowerCut._now, os.fsync = None, self.fsync
        for name in self.unsynced if self.gone else ():
            path = Path(name)
            if path.is_file():
                os.truncate(path, path.stat().st_size // 2)

    def _fsync(self, descriptor: int) -> None:
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        if name.startswith(self.root):
            self._count()
            self.unsynced.discard(name)
        self.fsync(descriptor)

    def _count(self) -> None:
        self.operations += 1
        if self.gone or self.operations == self.at:
            self.gone = True
            raise Crash(f"the power went at operation {self.operations}")

    def see(self, event: str, arguments: tuple[Any, ...]) -> None:
        names = [os.fspath(name) for name in arguments[:2] if isinstance(name, str | os.PathLike)]
        if event not in WATCHED or not any(str(name).startswith(self.root) for name in names):
            return
        if event == "open" and not (arguments[2] or 0) & WRITES:
            return
        self._count()
        if event == "open":
            self.unsynced.add(str(names[0]))
        elif event == "os.rename":
            for name in list(self.unsynced):
                if name == names[0] or name.startswith(f"{names[0]}/"):
                    self.unsynced.discard(name)
                    self.unsynced.add(str(names[1]) + name[len(str(names[0])) :])


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if PowerCut._now is not None:
        PowerCut._now.see(event, arguments)
