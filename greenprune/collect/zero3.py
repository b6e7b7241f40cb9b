"""The calibration pass of a model that doesn't fit one device: DeepSpeed ZeRO-3 over N workers.

Every worker holds 1/N of the parameters and gathers a layer when it runs. All must do equally many forwards,
so the last shard is padded with a repeated sample that is left out of the sums.
Started by cluster/workers.py (Ray Train sets up the process group); Rajbhandari et al. 2020 for ZeRO.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from greenprune.assets import materialize
from greenprune.collect import STATISTICS, Statistics, check_known, computations, watchers
from greenprune.config import CalibrationConfig, ModelConfig
from greenprune.errors import ConfigError

if TYPE_CHECKING:
    import torch


def collect_sharded(
    source: ModelConfig, tokens: torch.Tensor, want: Collection[str], config: CalibrationConfig, scratch: str
) -> Statistics:
    """`collect` over `config.num_workers` ZeRO-3 workers; the same result within rounding.

    In a group of workers these do it, else a group is started. scratch: a folder of the storage. Raises ConfigError
    for a statistic whose own passes aren't sharded.
    """
    from greenprune.cluster.workers import on_workers

    check_known(want)
    if alone := [name for name in computations(want) if not STATISTICS[name].shards]:
        raise ConfigError(
            f"calibration.num_workers must be 1 for the statistics {', '.join(alone)}, which aren't sharded, got "
            f"{config.num_workers}; set calibration.num_workers=1 or choose another prune.method"
        )
    inputs = {"source": source, "tokens": tokens.numpy(), "want": sorted(want), "batch_size": config.batch_size}
    return on_workers(collect_on_worker, inputs, "collect", config.num_workers, scratch)


def collect_on_worker(inputs: dict[str, Any]) -> Statistics:
    """One worker's part; every rank returns the reduced statistics."""
    import torch
    import torch.distributed as dist

    from greenprune.collect.forward import ForwardPass
    from greenprune.collect.gradients import Shard
    from greenprune.models.load import DTYPES
    from greenprune.models.zero3 import deepspeed_here, load_sharded

    deepspeed = deepspeed_here()
    source: ModelConfig = inputs["source"]
    settings = {
        "train_micro_batch_size_per_gpu": inputs["batch_size"],
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
        "bf16": {"enabled": source.dtype == "bfloat16"},
        "fp16": {"enabled": source.dtype == "float16"},
    }
    model, alive = load_sharded(materialize(source), settings, DTYPES[source.dtype], source.trust_remote_code)
    rank, world = dist.get_rank(), dist.get_world_size()
    tokens = torch.from_numpy(inputs["tokens"])
    rows = torch.arange(rank, math.ceil(len(tokens) / world) * world, world)
    mine, counted = tokens[rows % len(tokens)], rows < len(tokens)
    device = torch.device(deepspeed.accelerator.get_accelerator().current_device_name())
    held = torch.tensor([sum(p.ds_tensor.numel() for p in model.parameters())], device=device)
    gathered = [torch.zeros_like(held) for _ in range(world)]
    dist.all_gather(gathered, held)

    statistics = Statistics({}, len(tokens), tokens.numel(), [int(count) for count in gathered])
    shard = Shard(device, deepspeed.zero.GatheredParameters, dist.all_reduce, counted, len(tokens))
    for compute in computations(inputs["want"]).values():  # before an engine gathers and frees parameters by itself
        statistics.tensors.update(compute(model, mine, inputs["batch_size"], shard=shard))
    if watching := watchers(inputs["want"], model.config.num_hidden_layers):
        engine = deepspeed.initialize(model=model, config=settings)[0]
        engine.eval()
        watched = ForwardPass(
            engine.module, watching, forward=lambda **batch: engine(**batch, logits_to_keep=1), device=device
        ).run(mine, batch_size=inputs["batch_size"], counted=counted)
        sums = watched.sums().to(device)
        dist.all_reduce(sums)
        watched.replace_sums(sums)
        statistics.tensors.update(watched.statistics().tensors)
    del alive
    return statistics
