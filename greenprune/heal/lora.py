"""LoRA (Hu et al. 2021) and QLoRA (Dettmers et al. 2023): train small adapters, merge them into the weights.

The adapter's initial weights and its dropout follow from the seed.
"""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import PreTrainedModel, TrainerCallback, set_seed

from greenprune.config import LoraHealing
from greenprune.heal.history import History, history_of
from greenprune.heal.merge import merged
from greenprune.heal.progress import finite_loss
from greenprune.heal.quantised import load_nf4
from greenprune.heal.quiet import quiet_training
from greenprune.heal.targets import target_modules
from greenprune.heal.teacher import Teacher
from greenprune.heal.training import free_memory, full_precision, leads, peak_memory, reset_peak
from greenprune.heal.training import train as train_on
from greenprune.models.load import DTYPES
from greenprune.models.loss import mean_loss


@quiet_training()
def heal_with_lora(
    checkpoint: Path,
    train: torch.LongTensor,
    validation: torch.LongTensor,
    config: LoraHealing,
    work: Path,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    callbacks: tuple[TrainerCallback, ...] = (),
    teacher: Teacher | None = None,
) -> tuple[PreTrainedModel, History] | None:
    """Train adapters on `train` [n, seq_len] and merge them into the model in `checkpoint`.

    Blocks are repeated in fresh orders where there are fewer than the steps need. `work` takes the training
    checkpoints, and training goes on from the last whole one there. A bf16 base trains in bf16, an fp16 one
    in fp32 (fp16 gradients underflow without loss scaling); the adapter itself is always fp32.

    Returns the merged model (a masked one with its zeros), in evaluation mode and in `dtype`, and the history; None in
    a worker that isn't the first of its group.

    Raises HealingDiverged where a loss is not finite or exceeds config.divergence_factor times the first
    validation loss, and ConfigError for a target module that isn't there.
    """
    reset_peak()
    base = (
        load_nf4(checkpoint, trust_remote_code)
        if config.quantize == "nf4"
        else full_precision(checkpoint, dtype, trust_remote_code)
    )
    set_seed(config.seed)
    adapted = _with_adapters(base, config)
    trainable = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    trained = train_on(adapted, train, validation, config, work, callbacks, teacher)
    peak = peak_memory()
    if not leads():
        return None
    if config.quantize == "nf4":
        adapter = get_peft_model_state_dict(adapted)
        del base, adapted
        free_memory()
        adapted = _with_adapters(full_precision(checkpoint, dtype, trust_remote_code), config)
        set_peft_model_state_dict(adapted, adapter)
    healed = merged(adapted).eval()
    if dtype in DTYPES:
        healed = healed.to(DTYPES[dtype])
    history = history_of(
        trained,
        loss_merged=finite_loss(mean_loss(healed, validation, config.batch_size), dtype),
        tokens_per_step=config.step_tokens,
        trainable_parameters=trainable,
        peak_memory_bytes=peak,
    )
    return healed, history


def _with_adapters(model: PreTrainedModel, config: LoraHealing) -> PeftModel:
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=target_modules(model, config.target_modules),
        use_dora=config.dora,
        use_rslora=config.rslora,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, lora)
