"""A run's folder: who may drive it, what it holds, and how it makes place for a new run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

from greenprune.config import STAGES, ResourcesConfig
from greenprune.errors import ConfigError, SweepError
from greenprune.experiment import Experiment, parse_experiment, read_yaml
from greenprune.results import TrialResult, read_results
from greenprune.storage import Storage, write_atomically
from greenprune.storage.leases import Lease, leased_or_refused

REMEDY = "give this sweep another name=…, or start anew with --fresh, which keeps that run aside"

Event = Mapping[str, Any]  # {"asked": trial id} or {"told": trial id, "objectives": {name: value} or None}


@dataclass(frozen=True)
class RunFolder:
    """The run `name` below a storage's root."""

    storage: Storage
    name: str

    @property
    def path(self) -> Path:
        """The folder on this machine; of an object store its mirror."""
        return self.storage.local / self.name

    def driven_alone(self) -> AbstractContextManager[Lease]:
        """Inside, no other process of any node drives the run. The lease lies beside the folder, which may move."""
        refusal = f"one process at a time may drive {self.path}, got a second; wait for it, or set name=…"
        return leased_or_refused(self.storage, Path(f".{self.name}.lease"), SweepError(refusal))

    def exists(self) -> bool:
        """Whether anything of the run is here or in the object store."""
        return self.path.exists() or self.storage.pull(f"{self.name}/config.yaml")

    def results(self) -> list[TrialResult]:
        """Every trial's result so far, wherever it is: a new head's mirror of an object store is empty."""
        self.storage.pull(f"{self.name}/trials")
        return read_results(self.path)

    def configuration(self) -> dict[str, Any] | None:
        """What its config.yaml holds; None where there is none that can be read."""
        if not self.storage.pull(f"{self.name}/config.yaml"):
            return None
        try:
            return read_yaml(self.path / "config.yaml")
        except ConfigError:  # check_configuration says so
            return None

    def check_configuration(self, experiment: Experiment, results: list[TrialResult]) -> None:
        """Refuse to mix two configurations in one run. Raises SweepError; changes nothing."""
        path = self.path / "config.yaml"
        if self.storage.pull(f"{self.name}/config.yaml"):
            if not _holds(path, experiment):
                raise SweepError(
                    f"the run {self.path} holds trials of another configuration (see its config.yaml), got a changed "
                    f"one; {REMEDY}"
                )
        elif results:
            raise SweepError(f"the run {self.path} must have a config.yaml, got trials without one; {REMEDY}")

    def write(self, file: str, text: str) -> None:
        """Write one of the run's own files."""
        write_atomically(self.path / file, text)
        self.storage.push(f"{self.name}/{file}")

    def journal(self) -> Journal:
        """What the run's search suggested and was told so far, up to an event that can't be read."""
        events: list[Event] = []
        if self.storage.pull(f"{self.name}/{Journal.FILE}"):
            for line in (self.path / Journal.FILE).read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    event = json.loads(line)
                except ValueError:
                    break
                if not isinstance(event, dict) or event.keys() not in ({"asked"}, {"told", "objectives"}):
                    break
                events.append(event)
        return Journal(self, events)

    def keep_aside(self) -> Path:
        """Move the run to a name with the date and time, beside it."""
        new = f"{self.name}.{datetime.now():%Y-%m-%d-%H%M%S}"
        self.storage.rename(self.name, new)
        return self.storage.local / new


@dataclass
class Journal:
    """A search's events, kept in the run's folder: with them the next search decides as this one did."""

    FILE: ClassVar[str] = "search.jsonl"
    run: RunFolder
    events: list[Event]

    def record(self, event: Event) -> None:
        """Note an event for good before anybody acts on it."""
        self.events.append(event)
        self.run.write(self.FILE, "".join(f"{json.dumps(event)}\n" for event in self.events))


def _holds(path: Path, experiment: Experiment) -> bool:
    try:
        return _what_trials_are(parse_experiment(read_yaml(path), source=str(path))) == _what_trials_are(experiment)
    except ConfigError:  # written by another version
        return False


def _what_trials_are(experiment: Experiment) -> Experiment:
    """Without what may change while a run goes on: trials at once, how often a stage is tried, who is told, and what a
    stage asks of the cluster unless its numbers belong to the machine.
    """
    assert experiment.sweep is not None, "a run is of a sweep"
    asked = {name: getattr(experiment.sweep.resources, name) for name, stage in STAGES.items() if stage.machine_bound}
    free: dict[str, Any] = {
        "max_concurrent": None,
        "stage_retries": 0,
        "track": [],
        "resources": ResourcesConfig(**asked),
    }
    return experiment.model_copy(update={"sweep": experiment.sweep.model_copy(update=free)})
