"""Content-addressed stage artifacts: each is computed once, by whoever comes first, and then reused.

An artifact's key is a hash of the stage's name and version, its resolved config section and its parents'
keys. It is written to a `.partial` folder and renamed when its manifest is complete, so a crash leaves
either nothing or a partial folder that the next attempt takes over (a healing run resumes from it).

Single flight is a `flock` beside the artifact: the kernel drops it when a process dies, however it dies.
In a sweep every trial's driver runs on the head node, so one node's locks are enough for a whole cluster.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from greenprune.locks import locked
from greenprune.storage import Storage, write_atomically

MANIFEST = "manifest.json"
Work = Callable[[Path], Mapping[str, Any] | None]
UNGUARDED = nullcontext()


@dataclass(frozen=True)
class Artifact:
    """A finished stage's output: a folder in the store.

    energy_j: what making it took, None if not metered; energy_kind, machine: how, and on which hardware.
    """

    stage: str
    key: str
    seconds: float = 0.0
    reused: bool = False
    energy_j: float | None = None
    energy_kind: str | None = None
    machine: str | None = None

    @property
    def folder(self) -> Path:
        return Path("_stages") / self.stage / self.key


@dataclass(frozen=True)
class StageCall:
    """One stage with its inputs: everything its artifact's content depends on."""

    stage: str
    version: int
    section: Mapping[str, Any]
    parents: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        canonical = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()[:24]

    @property
    def folder(self) -> Path:
        return Path("_stages") / self.stage / self.key


class Store:
    """Artifacts below one storage root."""

    def __init__(self, storage: Storage | str | Path) -> None:
        self.storage = storage if isinstance(storage, Storage) else Storage(storage)

    def path(self, artifact: Artifact | StageCall) -> Path:
        """The artifact's folder on this machine."""
        folder = self.storage.local / artifact.folder
        if self.storage.remote is not None and not _complete(folder):
            self.storage.pull(artifact.folder)
        return folder

    def find(self, call: StageCall) -> Artifact | None:
        """The finished artifact of this call, or None."""
        manifest = self.storage.local / call.folder / MANIFEST
        if not manifest.exists() and not self.storage.pull(call.folder / MANIFEST):
            return None
        known = json.loads(manifest.read_text())
        self._record("reused", call)
        return _artifact(call, known, reused=True)

    @contextmanager
    def single_flight(self, call: StageCall) -> Iterator[None]:
        """Only one process at a time is inside for the same call; the others wait."""
        lock = self.storage.local / call.folder.with_suffix(".lock")
        with locked(lock, f"{call.stage} {call.key[:8]}, which another trial computes"):
            yield

    def compute(self, call: StageCall, function: Work, within: AbstractContextManager[None] = UNGUARDED) -> Artifact:
        """Run `function(folder)` inside `within` and commit what it wrote, with the facts it gives (energy_j, …) in
        the manifest. The caller holds the single flight.
        """
        target = self.storage.local / call.folder
        partial = target.with_suffix(".partial")
        partial.mkdir(parents=True, exist_ok=True)
        # A stage whose driver was killed may live on for a moment: it must be gone before another writes here.
        with locked(target.with_suffix(".writing")), within:
            self._record("started", call)
            started = time.perf_counter()
            try:
                facts = function(partial) or {}
            except BaseException as problem:
                self._record("failed", call, error=type(problem).__name__)
                raise
            return self._commit(call, partial, time.perf_counter() - started, facts)

    def _commit(self, call: StageCall, partial: Path, seconds: float, facts: Mapping[str, Any]) -> Artifact:
        """The partial folder, complete with its manifest, becomes the artifact by one rename."""
        target = partial.with_suffix("")
        files = {str(p.relative_to(partial)): p.stat().st_size for p in sorted(partial.rglob("*")) if p.is_file()}
        manifest: dict[str, Any] = {
            **asdict(call),
            "key": call.key,
            "seconds": seconds,
            "files": files,
            "host": socket.gethostname(),
            **facts,
        }
        write_atomically(partial / MANIFEST, json.dumps(manifest, indent=1))
        try:
            os.rename(partial, target)
        except OSError:
            if not (target / MANIFEST).exists():
                raise
            shutil.rmtree(partial)  # another machine finished the same artifact first: theirs stands
        self.storage.push(call.folder, last=MANIFEST)
        energy_j, host = manifest.get("energy_j"), manifest["host"]
        self._record("computed", call, seconds=round(seconds, 3), energy_j=energy_j, host=host)
        return _artifact(call, manifest, reused=False)

    def get_or_compute(
        self, call: StageCall, function: Work, within: AbstractContextManager[None] = UNGUARDED
    ) -> Artifact:
        with self.single_flight(call):
            return self.find(call) or self.compute(call, function, within)

    def events(self) -> list[dict[str, Any]]:
        """What happened in this store, oldest first: started, computed, reused, failed (this machine's)."""
        path = self._log_path
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def _log_path(self) -> Path:
        return self.storage.local / "_stages" / "log.jsonl"

    def _record(self, event: str, call: StageCall, **more: Any) -> None:
        line = {
            "time": time.time(),
            "event": event,
            "stage": call.stage,
            "key": call.key,
            "pid": os.getpid(),
            **more,
        }
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        with self._log_path.open("a") as handle:
            handle.write(json.dumps(line) + "\n")


def _artifact(call: StageCall, manifest: Mapping[str, Any], reused: bool) -> Artifact:
    metered = {name: manifest.get(name) for name in ("energy_j", "energy_kind", "machine")}
    return Artifact(call.stage, call.key, manifest["seconds"], reused, **metered)


def _complete(folder: Path) -> bool:
    """Whether every file of the manifest is here; the mirror of an object store may hold the manifest alone."""
    manifest = folder / MANIFEST
    return manifest.exists() and all((folder / name).exists() for name in json.loads(manifest.read_text())["files"])


def clear(folder: Path) -> None:
    """Empty a folder that a former attempt left behind; for stages that can't resume."""
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
