"""Content-addressed stage artifacts: each is computed once, by whoever comes first, and then reused.

An artifact's key is a hash of the stage's name and version, its resolved config section and its parents' keys, and a
second one of the libraries that decide its numbers. It is made in a `.partial` folder, sealed (manifest.py), sent where
the storage is an object store, and renamed: finished means sent. A crash leaves either nothing or a partial folder,
which the next attempt empties, or, of a stage that resumes, goes on from; one that is sealed is only sent. An artifact
that isn't as it was written is set aside, never believed.

Single flight is a lease beside the artifact (leases.py): of all trials, sweeps, nodes and heads that share the storage
one makes it, and when that one dies, however it dies, another goes on.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from greenprune.errors import DamagedArtifact
from greenprune.storage import Storage, sync
from greenprune.storage.files import clear
from greenprune.storage.folder import is_there
from greenprune.storage.following import sent_as_it_grows
from greenprune.storage.leases import leased
from greenprune.storage.manifest import (
    MANIFEST,
    damage,
    damage_of_part,
    forget_checked,
    holds_all_files,
    read_manifest,
    seal,
)
from greenprune.storage.mirror import brought_by_one, in_use, make_room

log = logging.getLogger("greenprune")
Work = Callable[[Path], Mapping[str, Any] | None]
UNGUARDED = nullcontext()
# What a manifest says of an artifact's making, beside its seconds
RECORDED = ("energy_j", "energy_kind", "machine", "peak_memory_bytes", "predicted_memory_bytes")
LEASE, MAKER = ".lease", ".maker"  # beside an artifact: who may have it made, who makes it


@dataclass(frozen=True)
class Artifact:
    """A finished stage's output: a folder in the store.

    energy_j: what making it took, None if not metered; energy_kind, machine: how, and on which hardware.
    peak_memory_bytes, predicted_memory_bytes: what it took of memory, and what shapes had said; None if not known.
    """

    stage: str
    key: str
    seconds: float = 0.0
    reused: bool = False
    energy_j: float | None = None
    energy_kind: str | None = None
    machine: str | None = None
    peak_memory_bytes: int | None = None
    predicted_memory_bytes: int | None = None

    @property
    def folder(self) -> Path:
        return Path("_stages") / self.stage / self.key


@dataclass(frozen=True)
class StageCall:
    """One stage with its inputs: everything its artifact's content depends on.

    libraries: major.minor by name. any_versions: an artifact that other versions of these made will do as well.
    """

    stage: str
    version: int
    section: Mapping[str, Any]
    parents: Mapping[str, str] = field(default_factory=dict)
    libraries: Mapping[str, str] = field(default_factory=dict)
    any_versions: bool = False

    @property
    def asked(self) -> dict[str, Any]:
        """What is computed, with whatever libraries."""
        return {name: getattr(self, name) for name in ("stage", "version", "section", "parents")}

    @property
    def base(self) -> str:
        """The key without its libraries; the whole key of artifacts that were made before these were told apart."""
        return _hash(self.asked)[:24]

    @property
    def key(self) -> str:
        """Holds no dots: folders beside the artifact's are named by a suffix."""
        return f"{self.base}-{_hash(self.libraries)[:8]}" if self.libraries else self.base

    @property
    def folder(self) -> Path:
        return Path("_stages") / self.stage / self.key


class Store:
    """Artifacts below one storage root."""

    def __init__(self, storage: Storage | str | Path) -> None:
        self.storage = storage if isinstance(storage, Storage) else Storage(storage)

    @contextmanager
    def using(self, artifact: Artifact | StageCall) -> Iterator[Path]:
        """As `path`; inside, the folder isn't removed from this machine to make room for others."""
        folder = self.storage.local / artifact.folder
        with in_use(folder) if self.storage.remote is not None else nullcontext():
            yield self.path(artifact)

    def path(self, artifact: Artifact | StageCall) -> Path:
        """The artifact's folder on this machine, whole. Raises DamagedArtifact where it isn't, and sets it aside."""
        folder = self.storage.local / artifact.folder
        if self.storage.remote is not None and not holds_all_files(folder):
            self._bring(artifact)
        if not is_there(folder / MANIFEST):
            return folder
        problem = damage(folder)
        if problem and self.storage.remote is not None:  # perhaps only what came here is
            shutil.rmtree(folder)
            self._bring(artifact)
            problem = damage(folder)
        if problem:
            raise self._damaged(artifact, problem)
        return folder

    def part(self, artifact: Artifact | StageCall, name: str) -> Path:
        """One file or folder of an artifact on this machine, without its others; it may have none of that name.

        Raises DamagedArtifact as `path`, where this part isn't as it was written.
        """
        folder, problem = self.storage.local / artifact.folder, None
        for again in (False, True):
            if self.storage.remote is not None and (again or not _holds(folder, name)):
                self.storage.pull(artifact.folder / MANIFEST)
                self.storage.pull(artifact.folder / name)
            problem = damage_of_part(folder, name) if is_there(folder / MANIFEST) else None
            if problem is None:
                return folder / name
        raise self._damaged(artifact, problem or "")

    def _bring(self, artifact: Artifact | StageCall) -> None:
        """The artifact from the object store to this machine, once for all of its processes."""
        folder = self.storage.local / artifact.folder
        with brought_by_one(folder):
            if holds_all_files(folder) or not self.storage.pull(artifact.folder / MANIFEST):
                return
            make_room(sum((read_manifest(folder) or {}).get("files", {}).values()))
            self.storage.pull(artifact.folder)
            forget_checked(folder)

    def _damaged(self, artifact: Artifact | StageCall, problem: str) -> DamagedArtifact:
        self._set_aside(artifact, problem)
        return DamagedArtifact(
            f"an artifact must be what was written, got {self.storage.local / artifact.folder}, where {problem}; it is "
            "set aside: run the same command again to make it anew"
        )

    def find(self, call: StageCall) -> Artifact | None:
        """The finished artifact of this call, or None."""
        known = self._finished(call)
        if known is None and call.any_versions:
            known = max(self._by_other_versions(call), key=lambda made: made.get("finished", 0.0), default=None)
        if known is None:
            return None
        self._record("reused", call)
        return _artifact(call, known, reused=True)

    def _finished(self, artifact: Artifact | StageCall) -> dict[str, Any] | None:
        """The manifest of what is finished and, as far as it is here, of the right size; whoever uses it reads it."""
        folder = self.storage.local / artifact.folder
        if not is_there(folder / MANIFEST) and not self.storage.pull(artifact.folder / MANIFEST):
            return None
        known = read_manifest(folder)
        whole = self.storage.remote is None or holds_all_files(folder)
        if (whole or known is None) and (problem := damage(folder, content=False)):
            self._set_aside(artifact, problem)
            return None
        return known

    def _by_other_versions(self, call: StageCall) -> list[dict[str, Any]]:
        """The manifests of finished artifacts that differ from this call's in nothing but their libraries."""
        return self.manifests(call, lambda key: key.partition("-")[0] == call.base)

    def manifests(self, call: StageCall, wanted: Callable[[str], bool]) -> list[dict[str, Any]]:
        """Of the finished artifacts of the call's stage whose keys are wanted."""
        folders = {Path(file).parent for file in self.storage.files(call.folder.parent) if file.endswith(MANIFEST)}
        keys = [folder.name for folder in folders if folder.parent == call.folder.parent and "." not in folder.name]
        return [known for key in keys if wanted(key) and (known := self._finished(Artifact(call.stage, key)))]

    def _set_aside(self, artifact: Artifact | StageCall, problem: str) -> None:
        """Give a damaged artifact another name, so that it is made again and can still be looked at."""
        aside = artifact.folder.with_name(f"{artifact.key}.damaged.{datetime.now():%Y-%m-%d-%H%M%S}")
        with suppress(FileNotFoundError):  # another process was faster
            self.storage.rename(artifact.folder, aside)
        log.warning("%s is damaged (%s): set aside as %s", artifact.folder, problem, aside.name)
        self._record("damaged", artifact, problem=problem)

    @contextmanager
    def single_flight(self, call: StageCall) -> Iterator[None]:
        """Only one process of all nodes at a time is inside for the same call; the others wait."""
        with leased(self.storage, call.folder.with_suffix(LEASE), f"{call.stage} {call.key[:8]}, in another trial"):
            yield

    def compute(
        self,
        call: StageCall,
        function: Work,
        within: AbstractContextManager[None] = UNGUARDED,
        resumes: bool = False,
    ) -> Artifact:
        """Run `function(folder)` inside `within` and commit what it wrote, with the facts it gives (energy_j, …) in
        the manifest. The caller holds the single flight.

        resumes: the folder keeps what a former attempt left, on whichever node; others begin with an empty one, and
        leave nothing where they fail (a full disk would stay full).
        """
        partial = (self.storage.local / call.folder).with_suffix(".partial")
        # A stage whose driver was killed may live on, here or on a node that is cut off: first it must be gone.
        with leased(self.storage, call.folder.with_suffix(MAKER)) as lease, within:
            if known := self._finished(call):  # by that one
                return _artifact(call, known, reused=True)
            partial.mkdir(parents=True, exist_ok=True)
            self._record("started", call)
            try:
                manifest = _sealed(partial) or self._made(call, partial, function, resumes)
                lease.check()
                self._publish(call, partial)
            except BaseException as problem:
                self._record("failed", call, error=type(problem).__name__)
                if not resumes and _sealed(partial) is None:
                    shutil.rmtree(partial, ignore_errors=True)
                raise
        seconds = round(manifest["seconds"], 3)
        self._record("computed", call, seconds=seconds, energy_j=manifest.get("energy_j"), host=manifest["host"])
        return _artifact(call, manifest, reused=False)

    def _made(self, call: StageCall, partial: Path, function: Work, resumes: bool) -> dict[str, Any]:
        """Do the work in the partial folder and seal it; gives the manifest."""
        relative = partial.relative_to(self.storage.local)
        following: AbstractContextManager[None] = UNGUARDED
        if not resumes:
            clear(partial)
        else:
            if self.storage.remote is not None and not any(partial.iterdir()):
                self.storage.pull(relative)  # what a lost node had sent
            following = sent_as_it_grows(self.storage, relative)
        started = time.perf_counter()
        with following:
            facts = function(partial) or {}
        seconds = time.perf_counter() - started
        made = {**call.asked, "libraries": call.libraries, "key": call.key, "finished": time.time(), "seconds": seconds}
        return seal(partial, {**made, "host": socket.gethostname(), **facts})

    def _publish(self, call: StageCall, partial: Path) -> None:
        """The sealed folder becomes the artifact, for all nodes and then by one rename here."""
        target, relative = self.storage.local / call.folder, partial.relative_to(self.storage.local)
        self.storage.push(relative, last=MANIFEST, to=call.folder)
        try:
            os.rename(partial, target)
        except OSError:
            if not is_there(target / MANIFEST):
                raise
            shutil.rmtree(partial)  # another machine finished the same artifact first: theirs stands
        sync(target.parent)
        if self.storage.remote is not None:
            self.storage.delete_remote(relative)
            make_room()

    def get_or_compute(
        self,
        call: StageCall,
        function: Work,
        within: AbstractContextManager[None] = UNGUARDED,
        resumes: bool = False,
    ) -> Artifact:
        with self.single_flight(call):
            return self.find(call) or self.compute(call, function, within, resumes)

    def events(self) -> list[dict[str, Any]]:
        """What happened in this store, oldest first: started, computed, reused, failed. Of an object store this
        machine's alone."""
        logs = (self.storage.local / "_stages").glob("log*.jsonl")
        events = [event for log in logs for line in log.read_text().splitlines() for event in _event(line)]
        return sorted(events, key=lambda event: event["time"])

    @property
    def _log_path(self) -> Path:
        """A file for each machine: on NFS, what two of them append to one is lost."""
        return self.storage.local / "_stages" / f"log.{socket.gethostname()}.jsonl"

    def _record(self, event: str, call: Artifact | StageCall, **more: Any) -> None:
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
    metered = {name: manifest.get(name) for name in RECORDED}
    return Artifact(call.stage, manifest["key"], manifest["seconds"], reused, **metered)


def _hash(value: Any) -> str:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _event(line: str) -> list[dict[str, Any]]:
    """A line of the log; nothing of one that a power cut tore."""
    with suppress(ValueError):
        return [json.loads(line)]
    return []


def _holds(folder: Path, name: str) -> bool:
    """Whether a part of an artifact is here, or it has no such part."""
    manifest = read_manifest(folder)
    files = (manifest or {}).get("files", {})
    return manifest is not None and all((folder / file).exists() for file in files if Path(file).is_relative_to(name))


def _sealed(partial: Path) -> dict[str, Any] | None:
    """The manifest of a partial folder whose work is done and only had to be sent; None of any other."""
    if not (partial / MANIFEST).exists():
        return None
    if damage(partial):
        (partial / MANIFEST).unlink()
        return None
    return read_manifest(partial)
