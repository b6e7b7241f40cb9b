"""All weights are trained, in fp32, with AdamW; what a mask made zero stays zero.

Small steps would be lost in 16-bit weights, so these are cast to the model's dtype only when training has ended.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback, set_seed

from greenprune.config import FullHealing
from greenprune.errors import ConfigError
from greenprune.heal.history import History, history_of
from greenprune.heal.progress import finite_loss
from greenprune.heal.quiet import quiet_training
from greenprune.heal.sharded import deepspeed_settings
from greenprune.heal.teacher import Teacher
from greenprune.heal.training import leads, peak_memory, reset_peak
from greenprune.heal.training import train as train_on
from greenprune.models import Decoder
from greenprune.models.load import DTYPES, load_checkpoint
from greenprune.models.loss import mean_loss
from greenprune.models.zero3 import load_sharded, whole_weights


@quiet_training()
def heal_fully(
    checkpoint: Path,
    train: torch.LongTensor,
    validation: torch.LongTensor,
    config: FullHealing,
    work: Path,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    callbacks: tuple[TrainerCallback, ...] = (),
    teacher: Teacher | None = None,
) -> tuple[PreTrainedModel, History] | None:
    """Train all weights of the model in `checkpoint` on `train` [n, seq_len]; arguments as of `heal_with_lora`.

    Returns the model (a masked one with its zeros), in evaluation mode and in `dtype`, and the history, whose
    loss_merged is that of the model in its dtype; None in a worker that isn't the first of its group. Raises
    HealingDiverged, and ConfigError for a masked model and several workers.
    """
    reset_peak()
    stored = (
        load_checkpoint(checkpoint, dtype, "cpu", trust_remote_code).dtype if dtype not in DTYPES else DTYPES[dtype]
    )
    model, alive = _to_train(checkpoint, config, trust_remote_code)
    set_seed(config.seed)
    trainable = sum(getattr(p, "ds_numel", p.numel()) for p in model.requires_grad_(True).parameters())
    mask = (KeepZeros(),) if getattr(model.config, "pruning_mask", None) is not None else ()
    trained = train_on(model, train, validation, config, work, (*mask, *callbacks), teacher)
    peak = peak_memory()
    if config.num_workers > 1:
        weights = whole_weights(model)
        del alive, model
        if not leads():
            return None
        model = load_checkpoint(checkpoint, "float32", trust_remote_code=trust_remote_code)
        model.load_state_dict(weights, strict=False)  # a head that is tied to the embeddings isn't among them
    healed = model.requires_grad_(False).eval().to(stored)
    history = history_of(
        trained,
        loss_merged=finite_loss(mean_loss(healed, validation, config.batch_size), dtype),
        tokens_per_step=config.step_tokens,
        trainable_parameters=trainable,
        peak_memory_bytes=peak,
    )
    return healed, history


def _to_train(checkpoint: Path, config: FullHealing, trust_remote_code: bool) -> tuple[PreTrainedModel, object]:
    """The model in fp32, of several workers a part in each, and what keeps it so."""
    if config.num_workers == 1:
        return load_checkpoint(checkpoint, "float32", trust_remote_code=trust_remote_code), None
    model, alive = load_sharded(checkpoint, _loading_settings(config), torch.float32, trust_remote_code)
    if getattr(model.config, "pruning_mask", None) is not None:
        raise ConfigError(
            f"heal.num_workers must be 1 where all weights of a masked model are trained, got {config.num_workers}: no "
            "worker sees which gradients are to be zero; set it to 1, or heal by lora"
        )
    return model, alive


def _loading_settings(config: FullHealing) -> dict[str, Any]:
    """DeepSpeed's to load by: there the batch must be a number."""
    known = {name: value for name, value in deepspeed_settings(config).items() if value != "auto"}
    return {**known, "train_micro_batch_size_per_gpu": config.batch_size}


class KeepZeros(TrainerCallback):
    """No gradient where a decoder's matrix is zero: AdamW then leaves it so, and nothing has to be remembered."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        decoder = Decoder(model)
        for layer in range(len(decoder)):
            for linear in decoder.view(layer).linears.values():
                if linear.weight.grad is not None:
                    linear.weight.grad.masked_fill_(linear.weight.detach() == 0, 0)
