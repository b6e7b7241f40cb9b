"""A model sharded over the workers of a process group by DeepSpeed ZeRO-3 (Rajbhandari et al. 2020)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from greenprune.models.in_files import read_only
from greenprune.models.load import model_class


def deepspeed_here() -> Any:
    """The library, on this process's device and its process group."""
    # CUDA where there is a GPU; without one DeepSpeed must be told before it is imported.
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    import torch.distributed as dist

    # It would be compiled by whoever comes first, and is for inference only; a worker that is killed while it compiles
    # leaves a lock file for which every later one waits for ever.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=dist.get_backend())
    return deepspeed


def load_sharded(
    checkpoint: Path, settings: dict[str, Any], dtype: Any, trust_remote_code: bool
) -> tuple[PreTrainedModel, object]:
    """The model of which this worker holds its part. settings: DeepSpeed's, of ZeRO stage 3. Each worker calls it.

    Also gives what must be held on to as long as models are to be loaded in parts.
    """
    from transformers.integrations import HfDeepSpeedConfig

    deepspeed_here()
    alive = HfDeepSpeedConfig(settings)
    with read_only():  # rank 0 reads the whole checkpoint
        model = model_class(checkpoint).from_pretrained(checkpoint, dtype=dtype, trust_remote_code=trust_remote_code)
    return model, alive


def whole_weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """All weights on the CPU of rank 0, one gathered after the other; nothing in the others, which must call it too.

    Models are loaded whole again after it.
    """
    import torch.distributed as dist
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
    deepspeed, weights = deepspeed_here(), {}
    for name, weight in model.named_parameters():
        with deepspeed.zero.GatheredParameters([weight]):
            if dist.get_rank() == 0:
                weights[name] = weight.detach().to("cpu", copy=True)
    return weights
