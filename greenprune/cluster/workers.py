"""Run a function on N workers that form one process group (Ray Train)."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from typing import Any

from greenprune.errors import GreenpruneError

log = logging.getLogger("greenprune")
WAITING_IS_SAID_EVERY_S = 30.0


def run_workers(
    function: Callable[[dict[str, Any]], Any],
    inputs: dict[str, Any],
    num_workers: int,
    scratch: str,
    use_gpu: bool | None = None,
) -> Any:
    """Call `function(inputs)` on every worker and return rank 0's value.

    use_gpu: a GPU for each worker (nccl), else a core (gloo); None: GPUs where the cluster has some now. `scratch`
    is a folder in the storage that all nodes see. Waits for workers that an autoscaler may bring. Raises
    GreenpruneError where Ray is missing or the cluster is too small.
    """
    try:
        import ray
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer
    except ImportError as problem:
        raise GreenpruneError(
            f"calibration.num_workers above 1 needs Ray, got {problem}; pip install 'ray[tune,train]' or set it to 1"
        ) from problem
    from greenprune.cluster.join import start_ray

    if not ray.is_initialized():
        start_ray(None)
    if use_gpu is None:
        use_gpu = bool(ray.cluster_resources().get("GPU"))
    wait_for_room("GPU" if use_gpu else "CPU", num_workers)
    trainer = TorchTrainer(
        function,
        train_loop_config=inputs,
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=use_gpu),
        run_config=RunConfig(name=f"workers-{uuid.uuid4().hex[:8]}", storage_path=scratch),
    )
    return trainer.fit().return_value


def wait_for_room(kind: str, num_workers: int) -> None:
    """Return when the cluster has a free CPU or GPU (`kind`) for each worker.

    A placement group waits for them, since that is what an autoscaler sees; Ray Train's own gives up after a
    minute. Raises GreenpruneError at once where the cluster has too few and no autoscaler that could bring more.
    """
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    from greenprune.cluster.resources import can_grow

    present = int(ray.cluster_resources().get(kind, 0))
    if present < num_workers and not can_grow():
        raise GreenpruneError(
            f"calibration.num_workers must be at most the cluster's {present} {kind}s, got {num_workers}; lower it"
        )
    room = placement_group([{kind: 1}] * num_workers)
    try:
        while not room.wait(WAITING_IS_SAID_EVERY_S):
            present = int(ray.cluster_resources().get(kind, 0))
            log.info(
                "waiting for %d workers with a free %s each; the cluster has %d now (`ray status` says what is busy, "
                "and what the autoscaler brings)",
                *(num_workers, kind, present),
            )
    finally:
        remove_placement_group(room)
