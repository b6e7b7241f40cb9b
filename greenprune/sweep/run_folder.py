"""A run's folder: who may drive it, what it holds, and how it makes place for a new run."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from greenprune.errors import ConfigError, SweepError
from greenprune.experiment import Experiment, parse_experiment, read_yaml
from greenprune.locks import locked_or_refused
from greenprune.results import TrialResult, read_results
from greenprune.storage import Storage, write_atomically

REMEDY = "give this sweep another name=…, or start anew with --fresh, which keeps that run aside"


@dataclass(frozen=True)
class RunFolder:
    """The run `name` below a storage's root."""

    storage: Storage
    name: str

    @property
    def path(self) -> Path:
        """The folder on this machine; of an object store its mirror."""
        return self.storage.local / self.name

    def driven_alone(self) -> AbstractContextManager[None]:
        """Inside, no other process on this machine drives the run. The lock lies beside the folder, which may move."""
        refusal = f"one process at a time may drive {self.path}, got a second; wait for it, or set name=…"
        return locked_or_refused(self.storage.local / f".{self.name}.lock", SweepError(refusal))

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

    def keep_aside(self, part: str = "") -> Path:
        """Move the run, or one folder in it, to a name with the date and time, beside it."""
        old = f"{self.name}/{part}".rstrip("/")
        new = f"{old}.{datetime.now():%Y-%m-%d-%H%M%S}"
        self.storage.rename(old, new)
        return self.storage.local / new


def _holds(path: Path, experiment: Experiment) -> bool:
    try:
        return parse_experiment(read_yaml(path), source=str(path)) == experiment
    except ConfigError:  # written by another version
        return False
