"""An object store that behaves badly: a folder behind pyarrow's calls that fails, delays and tears."""

from __future__ import annotations

import io
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any, Literal

from pyarrow.fs import FileSelector, LocalFileSystem, SubTreeFileSystem

Fault = Literal["fail", "delay", "tear", "none"]


class FaultyStore:
    """plan: the fault of each call by its name, one after the other; seed: afterwards a fault for one call in three."""

    def __init__(self, folder: Path, seed: int | None = None, **plan: list[Fault]) -> None:
        folder.mkdir(exist_ok=True)
        self.inner = SubTreeFileSystem(str(folder), LocalFileSystem())
        self.plan, self.random = plan, None if seed is None else random.Random(seed)
        self.met: Counter[Fault] = Counter()

    def _meet(self, call: str) -> Fault:
        fault: Fault = "none"
        if self.plan.get(call):
            fault = self.plan[call].pop(0)
        elif self.random and self.random.random() < 1 / 3:
            fault = self.random.choice(("fail", "delay", "tear"))
        self.met[fault] += 1
        if fault == "fail":
            raise OSError("the connection was reset")
        if fault == "delay":
            time.sleep(0.002)
        return fault

    def get_file_info(self, what: str | FileSelector) -> Any:
        self._meet("get_file_info")
        return self.inner.get_file_info(what)

    def create_dir(self, path: str, recursive: bool = True) -> None:
        self._meet("create_dir")
        self.inner.create_dir(path, recursive=recursive)

    def open_output_stream(self, path: str) -> Any:
        return _Torn(self, path) if self._meet("open_output_stream") == "tear" else self.inner.open_output_stream(path)

    def open_input_stream(self, path: str) -> Any:
        stream = self.inner.open_input_stream(path)
        if self._meet("open_input_stream") != "tear":
            return stream
        with stream:
            content = stream.read()
        return io.BytesIO(content[: len(content) // 2])

    def move(self, old: str, new: str) -> None:
        self._meet("move")
        self.inner.move(old, new)

    def delete_file(self, path: str) -> None:
        self._meet("delete_file")
        self.inner.delete_file(path)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        self._meet("delete_dir_contents")
        self.inner.delete_dir_contents(path, missing_dir_ok=missing_dir_ok)


class _Torn(io.BytesIO):
    """An upload of which half arrives, and which says that all is well."""

    def __init__(self, store: FaultyStore, path: str) -> None:
        super().__init__()
        self.store, self.path = store, path

    def close(self) -> None:
        if not self.closed:
            content = self.getvalue()
            with self.store.inner.open_output_stream(self.path) as sink:
                sink.write(content[: len(content) // 2])
        super().close()
