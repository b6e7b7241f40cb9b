"""All weights are trained, in fp32, with AdamW; what a mask made zero stays zero.

Small steps would be lost in 16-bit weights, so these are cast to the model's dtype only when training has ended.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback, set_seed

from greenprune.config import FullHealing
from greenprune.heal.history import History, history_of
from greenprune.heal.progress import finite_loss
from greenprune.heal.quiet import quiet_training
from greenprune.heal.teacher import Teacher
from greenprune.heal.training import peak_memory, reset_peak
from greenprune.heal.training import train as train_on
from greenprune.models import Decoder
from greenprune.models.load import DTYPES, load_checkpoint
from greenprune.models.loss import mean_loss


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
) -> tuple[PreTrainedModel, History]:
    """Train all weights of the model in `checkpoint` on `train` [n, seq_len]; arguments as of `heal_with_lora`.

    Returns the model (a masked one with its zeros), in evaluation mode and in `dtype`, and the history, whose
    loss_merged is that of the model in its dtype. Raises HealingDiverged.
    """
    reset_peak()
    stored = (
        load_checkpoint(checkpoint, dtype, "cpu", trust_remote_code).dtype if dtype not in DTYPES else DTYPES[dtype]
    )
    model = load_checkpoint(checkpoint, "float32", trust_remote_code=trust_remote_code)
    set_seed(config.seed)
    trainable = sum(p.numel() for p in model.requires_grad_(True).parameters())
    mask = (KeepZeros(),) if getattr(model.config, "pruning_mask", None) is not None else ()
    trained = train_on(model, train, validation, config, work, (*mask, *callbacks), teacher)
    peak = peak_memory()
    healed = model.requires_grad_(False).eval().to(stored)
    history = history_of(
        trained,
        loss_merged=finite_loss(mean_loss(healed, validation, config.batch_size), dtype),
        tokens_per_step=config.step_tokens,
        trainable_parameters=trainable,
        peak_memory_bytes=peak,
    )
    return healed, history


class KeepZeros(TrainerCallback):
    """No gradient where a decoder's matrix is zero: AdamW then leaves it so, and nothing has to be remembered."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        decoder = Decoder(model)
        for layer in range(len(decoder)):
            for linear in decoder.view(layer).linears.values():
                if linear.weight.grad is not None:
                    linear.weight.grad.masked_fill_(linear.weight.detach() == 0, 0)
