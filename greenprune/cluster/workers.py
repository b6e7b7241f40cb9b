"""Run a function on N workers that form one process group (Ray Train), and let one of them hand work to all.

    run_workers(function, inputs, group, scratch)     from outside: wait for the nodes, start the group, rank 0's value
    with follow_first(storage_uri) as group: …        in each worker: rank 0 goes on, the others do what it hands out
    everybody(function, inputs)                       in rank 0: all do it, and its own value
    on_workers(function, inputs, stage, workers, …)   from wherever a stage runs: everybody, or a group for this alone

Whoever starts a group holds nothing while it waits. A group has one placement group, which an autoscaler sees, and is
started again as a whole where a worker is lost.
"""

from __future__ import annotations

import functools
import logging
import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from greenprune.errors import GreenpruneError

log = logging.getLogger("greenprune")
WAITING_IS_SAID_EVERY_S = 30.0
# For nodes that an autoscaler brings, for energy windows to end, for rank 0 to read its texts. A lost worker is seen
# by Ray, not by a deadline.
GROUP_PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Group:
    """workers, and what each asks of Ray; selector: of the nodes' labels; retries: after so many losses it fails."""

    workers: int
    resources: Mapping[str, float]
    selector: Mapping[str, str] = field(default_factory=dict)
    retries: int = 0

    @property
    def use_gpu(self) -> bool:
        return bool(self.resources.get("GPU"))


def run_workers(function: Callable[[dict[str, Any]], Any], inputs: dict[str, Any], group: Group, scratch: str) -> Any:
    """Call `function(inputs)` on every worker and return rank 0's value. `scratch`: a folder that all nodes see.

    Waits for nodes as long as it takes. Raises GreenpruneError where Ray is missing, and what a worker raised.
    """
    try:
        from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
        from ray.train.torch import TorchConfig, TorchTrainer
    except ImportError as problem:
        raise GreenpruneError(
            f"num_workers above 1 needs Ray, got {problem}; pip install 'ray[tune,train]' or set it to 1"
        ) from problem
    # After this long Train would take its placement group back and ask for another.
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(GROUP_PATIENCE.total_seconds())
    per_worker = {name: amount for name, amount in group.resources.items() if amount}
    trainer = TorchTrainer(
        function,
        train_loop_config=inputs,
        torch_config=TorchConfig(
            backend="nccl" if group.use_gpu else "gloo", timeout_s=int(GROUP_PATIENCE.total_seconds())
        ),
        scaling_config=ScalingConfig(
            num_workers=group.workers,
            use_gpu=group.use_gpu,
            resources_per_worker=per_worker,
            label_selector=dict(group.selector) or None,
        ),
        run_config=RunConfig(
            name=f"workers-{uuid.uuid4().hex[:8]}",
            storage_path=scratch,
            failure_config=FailureConfig(max_failures=group.retries),
        ),
    )
    with _saying_what_is_awaited(group.workers, per_worker):
        try:
            return trainer.fit().return_value
        except WorkerGroupError as problem:
            raise next(iter(problem.worker_failures.values()), problem) from None


def on_workers(
    function: Callable[[dict[str, Any]], Any], inputs: dict[str, Any], stage: str, workers: int, scratch: str
) -> Any:
    """Rank 0's value of `function(inputs)`, which all workers call: those of the group that this process leads, else
    of a group that is started for this alone. scratch: a folder of the storage, named `_workers`.
    """
    if in_a_group():
        return everybody(function, inputs)
    lead = functools.partial(_in_group, function, scratch.rpartition("/")[0])
    return run_workers(lead, inputs, group_from_here(stage, workers), scratch)


def _in_group(function: Callable[[dict[str, Any]], Any], storage_uri: str, inputs: dict[str, Any]) -> Any:
    with follow_first(storage_uri) as first:
        return everybody(function, inputs) if first else None


def group_from_here(stage: str, workers: int) -> Group:
    """A group for a process that no sweep drives: of a GPU each where the cluster has some, else of a core. Starts Ray
    here where it isn't joined yet. Raises SweepError where there is no room for it, and never will be.
    """
    import ray

    from greenprune.cluster.capacity import capacity_now
    from greenprune.cluster.join import start_ray
    from greenprune.cluster.node_types import growth
    from greenprune.cluster.resources import Need, check_room

    if not ray.is_initialized():
        start_ray(None)
    capacity = capacity_now(growth())
    gpu = float(any(kind.holds("GPU") for kind in capacity.kinds))
    need = Need(cpu=1.0, gpu=gpu, workers=workers, off_head=capacity.head_rests)
    check_room({stage: need}, capacity)
    return Group(workers, need.resources(), need.selector())


@contextmanager
def _saying_what_is_awaited(workers: int, per_worker: Mapping[str, float]) -> Iterator[None]:
    """Log now and then that a placement group of this shape waits for nodes."""
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(WAITING_IS_SAID_EVERY_S):
            if _waits(workers, per_worker):
                log.info("waiting for nodes with room for %d workers of %s each", workers, dict(per_worker))

    thread = threading.Thread(target=look, name="greenprune-group", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _waits(workers: int, per_worker: Mapping[str, float]) -> bool:
    from ray.util import placement_group_table

    shape = [dict(per_worker)] * workers
    groups = placement_group_table().values()
    return any(group["state"] == "PENDING" and list(group["bundles"].values()) == shape for group in groups)


# ---------------------------------------------------------------------------------------------- in the workers


@dataclass
class Followed:
    """The group that this process is rank 0 of. channel: a gloo group, which waits without busy GPUs; broken: some may
    still wait for others in the middle of what was handed out."""

    channel: Any
    storage_uri: str
    broken: bool = False


_followed: Followed | None = None


def in_a_group() -> bool:
    """Whether this process is rank 0 of a group that does what it hands out."""
    return _followed is not None


@contextmanager
def follow_first(storage_uri: str) -> Iterator[Followed | None]:
    """In rank 0 the `with` gives the group, and inside `everybody` reaches all. In the others it gives None when rank
    0's ends, after they have done what was handed out.

    Work is done while no energy window is open on any of their nodes (`storage_uri` names the locks).
    """
    global _followed
    import torch.distributed as dist

    channel = dist.new_group(backend="gloo", timeout=GROUP_PATIENCE)
    if dist.get_rank():
        while (work := _handed(channel, None)) is not None:
            function, inputs = work
            with _beside_no_window(channel, storage_uri):
                function(inputs)
        yield None
        return
    mine = _followed = Followed(channel, storage_uri)
    try:
        yield mine
    finally:
        _followed = None
        if not mine.broken:  # Ray Train ends the others
            _handed(channel, None)


def everybody(function: Callable[[dict[str, Any]], Any], inputs: dict[str, Any]) -> Any:
    """Call `function(inputs)` on every worker of the group; gives this one's value."""
    group = _followed
    assert group is not None, "rank 0 hands out work inside `with follow_first(…)`"
    _handed(group.channel, (function, inputs))
    try:
        with _beside_no_window(group.channel, group.storage_uri):
            return function(inputs)
    except BaseException:
        group.broken = True
        raise


def _handed(channel: Any, work: tuple[Callable[..., Any], dict[str, Any]] | None) -> Any:
    import torch.distributed as dist

    box = [work]
    dist.broadcast_object_list(box, src=0, group=channel)
    return box[0]


@contextmanager
def _beside_no_window(channel: Any, storage_uri: str) -> Iterator[None]:
    """Every machine of the group is held, beside other stages: by one of its workers for all of them, and one machine
    after the other in an order that is the same for all groups.

    Otherwise a worker could wait behind a window that waits for another worker of its own group, or of another group
    that waits in turn.
    """
    import torch.distributed as dist

    from greenprune.energy.exclusive import gpus_here, hold_node, lock_folder

    state = lock_folder(storage_uri).stat()
    mine = (f"{socket.gethostname()}-{state.st_dev}-{state.st_ino}", gpus_here())
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, mine, group=channel)
    with ExitStack() as held:
        for machine in sorted({machine for machine, _ in found}):
            ranks, gpus = _on(machine, found)
            if dist.get_rank() == ranks[0]:
                held.enter_context(hold_node(storage_uri, "none", gpus))
            dist.barrier(group=channel)
        yield


def _on(machine: str, found: Sequence[tuple[str, Sequence[str]]]) -> tuple[list[int], list[str]]:
    """The ranks of a machine's workers, and all their GPUs."""
    ranks = [rank for rank, (where, _) in enumerate(found) if where == machine]
    return ranks, [gpu for rank in ranks for gpu in found[rank][1]]
