"""Run a function on N workers that form one process group (Ray Train)."""

from __future__ import annotations

import functools
import uuid
from collections.abc import Callable
from typing import Any

from greenprune.errors import GreenpruneError


def run_workers(
    function: Callable[[dict[str, Any]], Any], inputs: dict[str, Any], num_workers: int, scratch: str
) -> Any:
    """Call `function(inputs)` on every worker and return rank 0's value.

    GPU workers where the cluster has GPUs (nccl), else CPU workers (gloo). `scratch` is a folder in the storage
    that all nodes see. Raises GreenpruneError where Ray is missing or the cluster is too small.
    """
    try:
        import ray
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer
    except ImportError as problem:
        raise GreenpruneError(
            f"calibration.num_workers above 1 needs Ray, got {problem}; pip install 'ray[tune,train]' or set it to 1"
        ) from problem
    from greenprune.sweep.cluster import start_ray

    if not ray.is_initialized():
        start_ray(None)
    kind = "GPU" if ray.cluster_resources().get("GPU") else "CPU"
    available = int(ray.cluster_resources().get(kind, 0))
    if available < num_workers:
        raise GreenpruneError(
            f"calibration.num_workers must be at most the cluster's {available} {kind}s, got {num_workers}; lower it"
        )
    trainer = TorchTrainer(
        functools.partial(_in_turn, function, scratch.rpartition("/")[0]),
        train_loop_config=inputs,
        torch_config=TorchConfig(backend="nccl" if kind == "GPU" else "gloo"),
        scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=kind == "GPU"),
        run_config=RunConfig(name=f"workers-{uuid.uuid4().hex[:8]}", storage_path=scratch),
    )
    return trainer.fit().return_value


def _in_turn(function: Callable[[dict[str, Any]], Any], storage_uri: str, inputs: dict[str, Any]) -> Any:
    """What a worker runs: the function, not beside an open energy window of its node."""
    from greenprune.energy.exclusive import gpus_here, hold_node

    with hold_node(storage_uri, "none", gpus_here()):
        return function(inputs)
