"""What a storage holds that no run needs, and its removal. Numbers always stay: rows are in the runs' folders.

found = leftovers(Storage("runs"), days=7)
remove(Storage("runs"), found)
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from greenprune.config import STAGES
from greenprune.errors import ConfigError, SweepError
from greenprune.experiment import parse_experiment, read_yaml
from greenprune.pareto import pareto_front
from greenprune.results import TrialResult, is_dense, read_results, to_frame
from greenprune.storage import FileState, Storage
from greenprune.storage.leases import is_leased
from greenprune.store import LEASE, MAKER

Checkpoints = Literal["all", "front"]
SECONDS_PER_DAY = 86_400
LEASES = (LEASE, MAKER)


@dataclass(frozen=True)
class Leftover:
    """A folder that may go: relative to the storage's root; its size, and why nobody needs it."""

    path: Path
    bytes: int
    why: str


def leftovers(storage: Storage, days: float = 1.0, checkpoints: Checkpoints = "all") -> list[Leftover]:
    """Artifacts that no run names, half-done ones without an owner, damaged ones and workers' scratch, by path.

    days: only what hasn't been written for so long; what an interrupted run made isn't named by it yet. checkpoints:
    `front` adds the models of trials that their run's front doesn't take; their numbers stay, and they can be made
    again. Raises SweepError while a run of this storage is driven.
    """
    files = storage.files("")
    for lease in {Path(name).parent for name in files if Path(name).match(".*.lease/*")}:
        if len(lease.parts) == 1 and is_leased(storage, lease):
            raise SweepError(f"a storage is cleaned while no run is driven, got {lease.stem[1:]}; wait for its end")
    runs = _runs(storage, files)
    named = {(made["stage"], made["key"]) for results in runs.values() for one in results for made in one.stages}
    kept = named if checkpoints == "all" else _with_front_models(storage, runs)
    found = []
    for path, inside in _folders(files).items():
        if max(file.changed for file in inside) > time.time() - days * SECONDS_PER_DAY:
            continue
        if why := _why(storage, path, named, kept):
            found.append(Leftover(path, sum(file.bytes for file in inside), why))
    return sorted(found, key=lambda leftover: leftover.path)


def remove(storage: Storage, found: Iterable[Leftover]) -> None:
    """Remove these, here and in the object store."""
    for leftover in found:
        storage.delete(leftover.path)
        for suffix in LEASES:
            storage.delete(leftover.path.with_suffix(suffix))


def _why(storage: Storage, path: Path, named: set[tuple[str, str]], kept: set[tuple[str, str]]) -> str | None:
    """Why a folder may go; None where it is needed."""
    if path.parts[0] == "_workers":
        return "scratch of workers"
    _, stage, name = path.parts
    key, _, state = name.partition(".")
    if state.startswith("damaged"):
        return "damaged, set aside"
    if state == "partial":
        owned = is_leased(storage, path.with_suffix(MAKER))
        return None if owned else "half-done, nobody works on it"
    if f".{state}" in LEASES:
        return None  # goes with its artifact
    if (stage, key) not in named:
        return "no run names it"
    return None if (stage, key) in kept else "a model off its run's front: it can be made again"


def _folders(files: Mapping[str, FileState]) -> dict[Path, list[FileState]]:
    """The folders that may be judged, and their files: artifacts of each stage, and each scratch of workers."""
    folders = defaultdict(list)
    depths = {"_stages": 3, "_workers": 2}
    for name, state in files.items():
        parts = Path(name).parts
        if len(parts) > (depth := depths.get(parts[0], len(parts))):
            folders[Path(*parts[:depth])].append(state)
    return dict(folders)


def _runs(storage: Storage, files: Iterable[str]) -> dict[str, list[TrialResult]]:
    """The results of every run of the storage, by the run's name; those kept aside too."""
    names = {Path(name).parts[0] for name in files if Path(name).match("*/trials/*/result.json")}
    for name in names:
        storage.pull(f"{name}/trials")
    return {name: read_results(storage.local / name) for name in names}


def _with_front_models(storage: Storage, runs: dict[str, list[TrialResult]]) -> set[tuple[str, str]]:
    """What stays where only the front's models do: all that isn't a model, and the models of these trials."""
    kept = set()
    for name, results in runs.items():
        front = _front(storage, name, results)
        for result in results:
            for made in result.stages:
                if STAGES[made["stage"]].role != "model" or result.trial_id in front or is_dense(result):
                    kept.add((made["stage"], made["key"]))
    return kept


def _front(storage: Storage, name: str, results: list[TrialResult]) -> set[str]:
    """The trials that a run's own objectives take; all of a run that has no sweep, or whose front is refused."""
    everyone = {result.trial_id for result in results}
    if not storage.pull(f"{name}/config.yaml"):
        return everyone
    try:
        sweep = parse_experiment(read_yaml(storage.local / name / "config.yaml")).sweep
        return set(pareto_front(to_frame(results), sweep.objectives)["trial_id"]) if sweep else everyone
    except ConfigError:
        return everyone
