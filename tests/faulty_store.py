"""An object store that behaves badly: a folder behind the calls of a Bucket that fails, delays and tears."""

from __future__ import annotations

import os
import random
import time
import uuid
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Literal

from greenprune.storage import FileState

Fault = Literal["fail", "delay", "tear", "none"]


class FaultyStore:
    """Objects are files in folder/folder. plan: the fault of each call by its name, one after the other; seed:
    afterwards a fault for one call in three. asked: how often each call was made, of all objects and by their names."""

    def __init__(self, folder: Path, seed: int | None = None, **plan: list[Fault]) -> None:
        self.root = folder / "folder"
        self.root.mkdir(parents=True, exist_ok=True)
        self.plan, self.random = plan, None if seed is None else random.Random(seed)
        self.met: Counter[Fault] = Counter()
        self.asked: Counter[tuple[str, str]] = Counter()

    def _meet(self, call: str, name: str) -> Fault:
        self.asked[call, name] += 1
        fault: Fault = "none"
        if self.plan.get(call) and ".lease" not in name:  # a plan is one of what is stored
            fault = self.plan[call].pop(0)
        elif self.random and self.random.random() < 1 / 3:
            fault = self.random.choice(("fail", "delay", "tear"))
        self.met[fault] += 1
        if fault == "fail":
            raise OSError("the connection was reset")
        if fault == "delay":
            time.sleep(0.002)
        return fault

    def head(self, name: str) -> FileState | None:
        self._meet("head", name)
        return _state(self.root / name)

    def listing(self, below: str) -> dict[str, FileState]:
        self._meet("listing", below)
        paths = (path for path in (self.root / below).rglob("*") if not path.name.endswith(".inner"))
        found = {path.relative_to(self.root).as_posix(): _state(path) for path in paths}
        return {name: state for name, state in found.items() if state}

    def read(self, name: str, start: int, length: int) -> bytes:
        tear = self._meet("read", name) == "tear"
        with (self.root / name).open("rb") as stream:
            stream.seek(start)
            content = stream.read(length)
        return content[: len(content) // 2] if tear else content

    def send(self, path: Path, name: str) -> None:
        self._put("send", name, path.read_bytes())

    def write(self, name: str, content: bytes) -> None:
        self._put("write", name, content)

    def _put(self, call: str, name: str, content: bytes) -> None:
        """Of an upload that is torn half arrives, and all is said to be well."""
        tear = self._meet(call, name) == "tear"
        os.replace(self._aside(name, content[: len(content) // 2] if tear else content), self.root / name)

    def create(self, name: str, content: bytes) -> bool:
        self._meet("create", name)
        aside = self._aside(name, content)
        try:
            os.link(aside, self.root / name)
        except FileExistsError:
            return False
        finally:
            aside.unlink()
        return True

    def move(self, old: str, new: str) -> None:
        self._meet("move", old)
        (self.root / new).parent.mkdir(parents=True, exist_ok=True)
        os.replace(self.root / old, self.root / new)

    def delete(self, name: str) -> None:
        self._meet("delete", name)
        (self.root / name).unlink(missing_ok=True)
        with suppress(OSError):  # no folder is seen in an object store
            (self.root / name).parent.rmdir()

    def _aside(self, name: str, content: bytes) -> Path:
        path = (self.root / name).with_name(f"{uuid.uuid4().hex}.inner")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path


def _state(path: Path) -> FileState | None:
    with suppress(FileNotFoundError):
        if path.is_file():
            found = path.stat()
            return FileState(found.st_size, found.st_mtime, f"{found.st_mtime_ns}-{found.st_ino}")
    return None
