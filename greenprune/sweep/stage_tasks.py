"""A trial's stages as Ray tasks, each with its own resources."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import ray
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError, WorkerCrashedError

from greenprune.cluster.resources import Need
from greenprune.errors import SweepError
from greenprune.stages import Request, perform_all
from greenprune.store import Artifact
from greenprune.sweep.trial_log import logging_to_trial

log = logging.getLogger("greenprune")


@dataclass(frozen=True)
class RayTasks:
    """Executes stages as Ray tasks, outside the trial's own placement group; `done` is what they made.

    log_path: the trial's folder, relative to the storage's root.
    """

    needed: Mapping[str, Need]
    retries: int
    log_path: str
    done: list[Artifact] = field(default_factory=list)

    def __call__(self, requests: Sequence[Request], storage_uri: str) -> list[Artifact]:
        artifacts = self._run(requests, storage_uri)
        self.done.extend(artifacts)
        return artifacts

    def _run(self, requests: Sequence[Request], storage_uri: str) -> list[Artifact]:
        """Raises SweepError where the stage's worker dies as often as is allowed, and with half the batch too."""
        stage = requests[0].stage
        try:
            return self._run_task(requests, storage_uri)
        except (WorkerCrashedError, OutOfMemoryError):
            smaller = [less for request in requests if (less := request.smaller())]
        if len(smaller) == len(requests):
            log.warning("the %s stage's worker was killed: once more with half the batch", stage)
            with suppress(WorkerCrashedError, OutOfMemoryError):
                return self._run_task(smaller, storage_uri)
        raise SweepError(
            f"the {stage} stage's worker process must stay alive, got {1 + self.retries} deaths (killed, or out of "
            f"memory){', and as many with half the batch' if smaller else ''}; see {self.log_path}, ask `greenprune "
            "plan`, or lower its batch size"
        )

    def _run_task(self, requests: Sequence[Request], storage_uri: str) -> list[Artifact]:
        stage = requests[0].stage
        need = self.needed[stage]
        if getattr(requests[0].section, "num_workers", 1) > 1:
            # its workers ask for themselves; the task that starts them only waits
            requests = [replace(r, options={**r.options, "use_gpu": need.gpu > 0}) for r in requests]
            need = Need(cpu=0)
        requests = [replace(request, exclusive=need.exclusive) for request in requests]
        task = ray.remote(_perform_on_node).options(
            name=stage,
            max_retries=self.retries,
            retry_exceptions=False,
            scheduling_strategy="DEFAULT",
            **need.options(),
        )
        try:
            return ray.get(task.remote(list(requests), storage_uri, int(need.cpu), self.log_path))
        except (WorkerCrashedError, OutOfMemoryError):
            raise
        except RayTaskError as problem:
            raise problem.cause if isinstance(problem.cause, Exception) else problem from None
        except RayError as problem:
            raise SweepError(f"the {stage} stage must be run by Ray, got {first_line(problem)}") from problem


def _perform_on_node(requests: list[Request], storage_uri: str, threads: int, log_path: str) -> list[Artifact]:
    """What the Ray task runs: the same as inline, with as many threads as it has cores, logging to the trial."""
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(threads)
    with logging_to_trial(storage_uri, log_path, requests[0].stage):
        return perform_all(requests, storage_uri)


def first_line(problem: BaseException) -> str:
    """An exception as a table's cell: its type and the first line of its message."""
    text = str(problem).strip().splitlines()
    return f"{type(problem).__name__}: {text[0] if text else 'no message'}"
