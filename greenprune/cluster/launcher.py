"""Ray's launcher (`ray up`'s companions) on one cluster file. Every command is shown before it runs, so any of them can
be run by hand."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from greenprune.errors import SweepError


@dataclass(frozen=True)
class Launcher:
    """`cluster`: the file that `ray up` was given; `show`: where commands are written."""

    cluster: Path
    show: Callable[[str], object] = print

    def on_head(self, command: str) -> int:
        """Run `command` in a login shell of the head node, its output going to this terminal. Returns the exit code:
        0, or 1 for whatever went wrong."""
        return subprocess.run(self._ray("exec", command)).returncode

    def said_by_head(self, command: str) -> str:
        """What `command` prints on the head node. Raises SweepError where the head can't be reached."""
        return self._said("exec", f"{command} 2>&1 || true")

    def push(self, here: Path, there: str) -> None:
        """Copy a file to the head node, into a folder that is there."""
        self._said("rsync-up", str(here), there)

    def pull(self, there: str, here: Path) -> None:
        """Copy a folder's contents from the head node."""
        here.mkdir(parents=True, exist_ok=True)
        self._said("rsync-down", f"{there}/", f"{here}/")

    def note_head(self) -> None:
        """Of machines of one's own Ray's launcher knows the head only where `ray up` ran: note it here too, as Ray
        does on the head. It's written to /tmp/ray/cluster-NAME.state. Raises SweepError for a file that isn't one."""
        config = self._config()
        if config["provider"]["type"] != "local" or "head_ip" not in config["provider"]:
            return
        from ray.autoscaler._private.local.node_provider import LocalNodeProvider, record_local_head_state_if_needed

        record_local_head_state_if_needed(LocalNodeProvider(config["provider"], config["cluster_name"]))

    def _config(self) -> dict[str, Any]:
        try:
            config: dict[str, Any] = yaml.safe_load(self.cluster.read_text(encoding="utf-8"))
            config["cluster_name"], config["provider"]["type"]
        except (OSError, ValueError, yaml.YAMLError, TypeError, KeyError) as problem:
            raise SweepError(
                f"--cluster must be a cluster file of Ray's launcher, got {self.cluster}: "
                f"{type(problem).__name__} {problem}; see cluster.yaml and scripts/cluster/"
            ) from None
        return config

    def _said(self, verb: str, *arguments: str) -> str:
        done = subprocess.run(self._ray(verb, *arguments), capture_output=True, text=True)
        if done.returncode:
            said = [line.strip() for line in f"{done.stdout}\n{done.stderr}".splitlines() if line.strip()]
            raise SweepError(
                f"`ray {verb}` must reach the cluster of {self.cluster}, got: {' / '.join(said[-3:])}; bring it up "
                f"with `ray up {self.cluster}`, or run the command above to see more"
            )
        return done.stdout

    def _ray(self, verb: str, *arguments: str) -> list[str]:
        """The command, after it's shown. `pretty`: else Ray writes every detail where there's no terminal."""
        beside = Path(sys.executable).with_name("ray")
        ray = str(beside) if beside.exists() else shutil.which("ray")
        if not ray:
            raise SweepError("--cluster needs Ray's launcher, got no `ray`; pip install 'ray[default]'")
        given = [verb, str(self.cluster), *arguments]
        self.show(f"$ {shlex.join(['ray', *given])}")
        return [ray, verb, "--log-style", "pretty", "--log-color", "false", *given[1:]]
