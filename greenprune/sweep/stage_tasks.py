"""A trial's stages as Ray tasks, or as a group of workers, each with its own resources and never on the head."""

from __future__ import annotations

import functools
import logging
import os
import socket
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayError, RayTaskError, WorkerCrashedError

from greenprune.cluster.node_types import HEAD_NODE
from greenprune.cluster.resources import Need
from greenprune.cluster.surroundings import learn_token
from greenprune.cluster.workers import Group, follow_first, run_workers
from greenprune.errors import SweepError, WrongNode
from greenprune.stages import Request, perform_all
from greenprune.store import Artifact
from greenprune.sweep.trial_log import logging_to_trial

log = logging.getLogger("greenprune")


@dataclass(frozen=True)
class RayTasks:
    """Executes stages on the cluster, outside the trial's own placement group; `done` is what they made.

    log_path: the trial's folder, relative to the storage's root. refused: the ids of nodes that nothing may run on.
    """

    needed: Mapping[str, Need]
    retries: int
    log_path: str
    refused: Callable[[], Collection[str]] = tuple
    done: list[Artifact] = field(default_factory=list)

    def __call__(self, requests: Sequence[Request], storage_uri: str) -> list[Artifact]:
        need = self.needed[requests[0].stage]
        artifacts = self._run([replace(request, exclusive=need.exclusive) for request in requests], storage_uri)
        self.done.extend(artifacts)
        return artifacts

    def _run(self, requests: list[Request], storage_uri: str) -> list[Artifact]:
        """Raises SweepError where the stage's worker dies as often as is allowed, and with half the batch too."""
        stage = requests[0].stage
        try:
            return self._run_once(requests, storage_uri)
        except (WorkerCrashedError, OutOfMemoryError):
            smaller = [less for request in requests if (less := request.smaller())]
        if len(smaller) == len(requests):
            log.warning("the %s stage's worker was killed: once more with half the batch", stage)
            with suppress(WorkerCrashedError, OutOfMemoryError):
                return self._run_once(smaller, storage_uri)
        raise SweepError(
            f"the {stage} stage's worker process must stay alive, got {1 + self.retries} deaths (killed, or out of "
            f"memory){', and as many with half the batch' if smaller else ''}; see {self.log_path}, ask `greenprune "
            "plan`, or lower its batch size"
        )

    def _run_once(self, requests: list[Request], storage_uri: str) -> list[Artifact]:
        """With its retries. Raises WorkerCrashedError and OutOfMemoryError as Ray does."""
        need, workers = self.needed[requests[0].stage], requests[0].section.workers()
        try:
            if workers > 1:
                return self._in_a_group(requests, storage_uri, need, workers)
            return self._as_a_task(requests, storage_uri, need)
        except (WorkerCrashedError, OutOfMemoryError):
            raise
        except RayError as problem:
            stage = requests[0].stage
            raise SweepError(f"the {stage} stage must be run by Ray, got {first_line(problem)}") from problem

    def _as_a_task(self, requests: list[Request], storage_uri: str, need: Need) -> list[Artifact]:
        stage, refused = requests[0].stage, set(self.refused())
        always = {"name": stage, "max_retries": self.retries, "retry_exceptions": False, **need.options()}
        while True:
            try:
                task = ray.remote(_perform_on_node).options(
                    scheduling_strategy="DEFAULT", label_selector=need.selector(refused), **always
                )
                return ray.get(task.remote(requests, storage_uri, int(need.cpu), self.log_path))
            except NodeDiedError as problem:  # no fault of the stage's
                log.info("the %s stage begins again on another node: %s", stage, first_line(problem))
            except RayTaskError as problem:
                cause = _cause(problem)
                if not isinstance(cause, WrongNode) or not need.may_run_on({*refused, cause.node}):
                    raise cause from None
                refused.add(cause.node)
                log.warning("the %s stage goes to another node: %s", stage, cause)

    def _in_a_group(self, requests: list[Request], storage_uri: str, need: Need, workers: int) -> list[Artifact]:
        """Whoever waits for the group is a task on the head that holds nothing; the stage itself is in the group."""
        function = functools.partial(_perform_in_group, requests, storage_uri, int(need.cpu), self.log_path)
        group = Group(workers, need.resources(), need.selector(self.refused()), self.retries)
        waiting = ray.remote(run_workers).options(
            name=f"{requests[0].stage}-group",
            num_cpus=0,
            resources={HEAD_NODE: 0.0001},
            scheduling_strategy="DEFAULT",
            max_retries=self.retries,
        )
        try:
            made = ray.get(waiting.remote(function, {}, group, f"{storage_uri}/_workers"))
        except RayTaskError as problem:
            raise _cause(problem) from None
        if isinstance(made, Exception):
            raise made
        return made


def _cause(problem: RayTaskError) -> Exception:
    return problem.cause if isinstance(problem.cause, Exception) else problem


def _perform_on_node(requests: list[Request], storage_uri: str, threads: int, log_path: str) -> list[Artifact]:
    """What the Ray task runs: the same as inline, with as many threads as it has cores, logging to the trial."""
    _set_up(threads)
    with logging_to_trial(storage_uri, log_path, requests[0].stage):
        node = ray.get_runtime_context().get_node_id()
        log.info("%s runs on %s (%s)", requests[0].stage, socket.gethostname(), node)
        try:
            return perform_all(requests, storage_uri)
        except WrongNode as problem:
            problem.node = node
            raise


def _perform_in_group(
    requests: list[Request], storage_uri: str, threads: int, log_path: str, _: dict[str, Any]
) -> list[Artifact] | Exception | None:
    """What each worker of a group runs: rank 0 the stage, the others their part of it. What rank 0 raises outside of
    the common work would be raised again by another attempt: it is given back instead.
    """
    _set_up(threads)
    with follow_first(storage_uri) as first:
        if not first:
            return None
        try:
            return _perform_on_node(requests, storage_uri, threads, log_path)
        except Exception as problem:
            if first.broken:
                raise
            return problem


def _set_up(threads: int) -> None:
    """This process as the stage wants it: the hub's token, and as many threads as it has cores."""
    learn_token()
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(threads)


def first_line(problem: BaseException) -> str:
    """An exception as a table's cell: its type and the first line of its message."""
    text = str(problem).strip().splitlines()
    return f"{type(problem).__name__}: {text[0] if text else 'no message'}"
