"""A sweep on a cluster that `ray up` brought up: ship its file, start it as a job of Ray's, follow it, fetch its run.

A job goes on when this machine goes to sleep. It is known by the experiment alone, so the same command from any machine
that reaches the cluster finds it again; once it has ended, the same command starts it again, and the sweep goes on with
what is there.
"""

from __future__ import annotations

import hashlib
import re
import shlex
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import yaml

from greenprune.cluster.launcher import Launcher
from greenprune.errors import ConfigError, SweepError
from greenprune.experiment import Experiment
from greenprune.storage import Storage
from greenprune.sweep.environment import COMMIT, said_commit

AWAY = ("pending", "running")  # what a job is that hasn't ended; others: succeeded, failed, stopped, or unknown


@dataclass(frozen=True)
class Job:
    """An experiment's job on a cluster. Raises ConfigError where only the head would see the sweep's storage."""

    experiment: Experiment
    launcher: Launcher

    def __post_init__(self) -> None:
        sweep = self.experiment.sweep
        if sweep is None:
            raise ConfigError("a job needs a sweep section, got none; add sweep.space")
        if not re.match(r"/|[a-z][a-z0-9+.-]*://", sweep.storage):
            raise ConfigError(
                "sweep.storage must be a folder that all nodes share, or an object store, got "
                f"{sweep.storage!r}, which would be a folder of the head alone; e.g. /shared/greenprune/runs"
            )

    @property
    def text(self) -> str:
        """The experiment file that the head runs: with overrides and absolute paths."""
        return yaml.safe_dump(self.experiment.to_dict(), sort_keys=False)

    @property
    def id(self) -> str:
        """The same for the same experiment, on any machine."""
        return f"{self.experiment.name}-{hashlib.sha256(self.text.encode()).hexdigest()[:8]}"

    def state(self) -> str:
        """pending, running, succeeded, failed, stopped or unknown. Raises SweepError where no Ray answers."""
        said = self.launcher.said_by_head(f"ray job status {self.id}")
        if found := re.search(rf"[Jj]ob '{re.escape(self.id)}'(?:: | was | )(\w+)", said):
            return found[1].lower()
        if "does not exist" in said:
            return "unknown"
        last = (said.strip().splitlines() or ["nothing"])[-1]
        raise SweepError(
            f"the head's Ray must answer `ray job status`, got {last}; bring the cluster up with "
            f"`ray up {self.launcher.cluster}`, with ray[default] on the head"
        )

    def start(self) -> bool:
        """Start the job, or find that it runs already: then False."""
        state = self.state()
        if state in AWAY:
            return False
        if state != "unknown":
            self.launcher.said_by_head(f"ray job delete {self.id}")  # the sweep itself goes on with its run
        there = f"~/{self.id}.yaml"
        with tempfile.TemporaryDirectory() as folder:
            here = Path(folder) / f"{self.id}.yaml"
            here.write_text(self.text, encoding="utf-8")
            here.chmod(0o644)
            self.launcher.push(here, there)
        sweep = f"{COMMIT}={said_commit()} greenprune sweep {there} --address auto"
        submit = f"ray job submit --no-wait --submission-id {self.id} -- bash --login -c {shlex.quote(sweep)}"
        if self.launcher.on_head(submit):
            raise SweepError(f"`ray job submit` must take {self.id}, got the above; mend it and submit again")
        return True

    def follow(self) -> str:
        """Show the job's log until it ends, and return its state. Interrupted, or cut off, the job goes on."""
        self.launcher.on_head(f"ray job logs --follow {self.id}")
        return self.state()

    def fetch(self, into: Path) -> Path:
        """Copy what the run has so far to into/NAME, and return that folder. Its artifacts stay where they are."""
        assert self.experiment.sweep is not None, "checked above"
        name, storage = self.experiment.name, self.experiment.sweep.storage
        if "://" not in storage:
            self.launcher.pull(f"{storage.rstrip('/')}/{name}", into / name)
            return into / name
        place = Storage(storage)
        place.pull(name)
        shutil.copytree(place.local / name, into / name, dirs_exist_ok=True)
        return into / name
