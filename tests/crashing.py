"""What a disk may hold when the power goes, for every file operation below a folder.

    with PowerCuts(root, into=tmp_path / "disks") as cuts:
        …                         # the work, undisturbed
    cuts.disks                    # a copy of `root` as each operation found it, those that differ in leases alone once

Seen are opening to write, creating, renaming, removing and syncing (Python's audit events, and os.fsync). Of a file
that was never synced after it was opened to write only the half is there.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any, ClassVar

WATCHED = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "shutil.rmtree"}
LEASES = {".lease", ".maker"}
WRITES = os.O_WRONLY | os.O_RDWR


class PowerCuts:
    """operations: how many there were; disks: the copies."""

    _now: ClassVar[PowerCuts | None] = None
    _hooked: ClassVar[bool] = False

    def __init__(self, root: Path, into: Path) -> None:
        self.root, self.into, self.operations = root, into, 0
        self.disks: list[Path] = []
        self.unsynced: set[Path] = set()
        self._states: set[tuple] = set()

    def __enter__(self) -> PowerCuts:
        if not PowerCuts._hooked:  # an audit hook stays for ever
            sys.addaudithook(_hook)
            PowerCuts._hooked = True
        PowerCuts._now, self._fsync = self, os.fsync
        os.fsync = self._seen_fsync
        return self

    def __exit__(self, *_: Any) -> None:
        PowerCuts._now, os.fsync = None, self._fsync

    def _seen_fsync(self, descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.is_relative_to(self.root):
            self._copy()
            self.unsynced.discard(path)

    def see(self, event: str, arguments: tuple[Any, ...]) -> None:
        names = [Path(os.fspath(name)) for name in arguments[:2] if isinstance(name, str | os.PathLike)]
        if not names or not names[0].is_relative_to(self.root):
            return
        if event == "open" and not (arguments[2] or 0) & WRITES:
            return
        self._copy()
        if event == "open":
            self.unsynced.add(names[0])
        elif event == "os.rename":
            moved = {path for path in self.unsynced if path.is_relative_to(names[0])}
            self.unsynced -= moved
            self.unsynced |= {names[1] / path.relative_to(names[0]) for path in moved}

    def _copy(self) -> None:
        """The disk as it is before this operation."""
        self.operations += 1
        PowerCuts._now = None  # what is done here isn't seen
        try:
            paths = [path for path in self.root.rglob("*") if not {path.suffix, path.parent.suffix} & LEASES]
            state = tuple(sorted((str(path), path.lstat().st_size) for path in paths))
            if state not in self._states:
                self._states.add(state)
                self.disks.append(self.into / f"{self.operations:04}")
                self._copy_to(self.disks[-1])
        finally:
            PowerCuts._now = self

    def _copy_to(self, disk: Path) -> None:
        shutil.copytree(self.root, disk) if self.root.exists() else disk.mkdir(parents=True)
        for path in self.unsynced:
            torn = disk / path.relative_to(self.root)
            if torn.is_file():
                os.truncate(torn, torn.stat().st_size // 2)


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if PowerCuts._now is not None and event in WATCHED:
        PowerCuts._now.see(event, arguments)
