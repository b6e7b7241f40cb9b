"""Healing by several workers, each with its part of a step's sequences: DeepSpeed shards what training holds.

ZeRO-2 where most weights are frozen: gradients and optimizer are shared out; ZeRO-3 where all are trained: weights too
(Rajbhandari et al. 2020). Each worker runs the same healer; rank 0 alone has the healed model in the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from greenprune.config import FullHealing, TextHealing


def deepspeed_settings(config: TextHealing) -> dict[str, Any]:
    """DeepSpeed's configuration; what it says `auto` the Trainer fills in."""
    stage = 3 if isinstance(config, FullHealing) else 2
    filled = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    return {
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # its own Adam is compiled, and rounds otherwise
        "bf16": {"enabled": config.bf16},
        **dict.fromkeys(filled, "auto"),
    }


def heal_on_worker(inputs: dict[str, Any]) -> dict[str, Any] | None:
    """One worker's part of `heal_stage`; rank 0 writes the healed model. Gives the energy of all, where it was metered.

    inputs: the parameters of heal_stage's `heal_here`, blocks as arrays.
    """
    import torch

    from greenprune.energy import metered_stage
    from greenprune.heal import heal_here
    from greenprune.models.load import default_device
    from greenprune.models.zero3 import deepspeed_here

    deepspeed_here()
    blocks = {name: torch.from_numpy(inputs[name]) for name in ("train", "validation")}
    resumed = any(Path(inputs["out"], "work").glob("checkpoint-*"))
    with metered_stage("heal", torch.device(default_device())) as cost:
        heal_here(**{**inputs, **blocks})
    return _of_all(cost, resumed)


def _of_all(mine: Mapping[str, Any], resumed: bool) -> dict[str, Any] | None:
    """The energy of all workers together; None where a former attempt's is lost, or not all were metered alike."""
    import torch.distributed as dist

    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, {**mine, "resumed": resumed})
    alike = all(len({reading[name] for reading in found}) == 1 for name in ("energy_kind", "energy_source", "machine"))
    if not alike or any(reading["resumed"] or reading["energy_j"] is None for reading in found):
        return None
    return {**mine, "energy_j": sum(reading["energy_j"] for reading in found)}
