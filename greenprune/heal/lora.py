"""LoRA (Hu et al. 2021) and QLoRA (Dettmers et al. 2023): train small adapters, merge them into the weights.

The order of the training blocks, the adapter's initial weights and its dropout follow from the seed, and each
checkpoint keeps the generators' states; so a killed run that resumes ends where an undisturbed one does.
"""

from __future__ import annotations

import gc
import math
import shutil
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch.utils.data import Dataset
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

from greenprune.config import LoraHealing
from greenprune.errors import HealingDiverged
from greenprune.heal.history import History, history_of
from greenprune.heal.merge import merged
from greenprune.heal.progress import DivergenceStop, TrainingProgress, finite_loss
from greenprune.heal.quantised import load_nf4
from greenprune.heal.quiet import quiet_training
from greenprune.heal.resume import last_whole_checkpoint
from greenprune.heal.targets import target_modules
from greenprune.models import load_checkpoint
from greenprune.models.load import DTYPES
from greenprune.models.loss import mean_loss

CHECKPOINTS_KEPT = 2  # the last may be half-written when the process is killed


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
) -> tuple[PreTrainedModel, History]:
    """Train adapters on `train` [n, seq_len] and merge them into the model in `checkpoint`.

    Blocks are repeated in fresh orders where there are fewer than the steps need. `work` takes the training
    checkpoints, and training goes on from the last whole one there. A bf16 base trains in bf16, an fp16 one
    in fp32 (fp16 gradients underflow without loss scaling); the adapter itself is always fp32.

    Returns the merged model (a masked one with its zeros), in evaluation mode and in `dtype`, and the history.

    Raises HealingDiverged where a loss is not finite or exceeds config.divergence_factor times the first
    validation loss, and ConfigError for a target module that isn't there.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    base = (
        load_nf4(checkpoint, trust_remote_code)
        if config.quantize == "nf4"
        else _full_precision(checkpoint, dtype, trust_remote_code)
    )
    set_seed(config.seed)
    adapted = _with_adapters(base, config)
    trainable = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    trained = _train(adapted, _TrainingBlocks(train, config), _Blocks(validation), config, work, callbacks)
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    if config.quantize == "nf4":
        adapter = get_peft_model_state_dict(adapted)
        del base, adapted
        _free_memory()
        adapted = _with_adapters(_full_precision(checkpoint, dtype, trust_remote_code), config)
        set_peft_model_state_dict(adapted, adapter)
    healed = merged(adapted).eval()
    if dtype in DTYPES:
        healed = healed.to(DTYPES[dtype])
    history = history_of(
        trained,
        loss_merged=finite_loss(mean_loss(healed, validation, config.batch_size), dtype),
        tokens=config.steps * config.gradient_accumulation * config.batch_size * train.shape[1],
        trainable_parameters=trainable,
        peak_memory_bytes=peak,
    )
    return healed, history


def _full_precision(checkpoint: Path, dtype: str, trust_remote_code: bool) -> PreTrainedModel:
    trained_in = "float32" if dtype == "float16" else dtype
    return load_checkpoint(checkpoint, trained_in, trust_remote_code=trust_remote_code)


def _with_adapters(model: PreTrainedModel, config: LoraHealing) -> PeftModel:
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=target_modules(model, config.target_modules),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, lora)


def _train(
    model: PeftModel,
    train: Dataset,
    validation: Dataset,
    config: LoraHealing,
    work: Path,
    callbacks: tuple[TrainerCallback, ...],
) -> TrainerState:
    """Run the Trainer from the last whole checkpoint in `work`, or from the start; gives its state with the log."""
    resume_from = last_whole_checkpoint(work)
    trainer = _Trainer(
        model=model,
        args=_arguments(config, work, resuming=resume_from is not None),
        train_dataset=train,
        eval_dataset=validation,
        data_collator=default_data_collator,
        callbacks=[DivergenceStop(config.divergence_factor), TrainingProgress(), *callbacks],
    )
    trainer.remove_callback(PrinterCallback)
    try:
        trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    except HealingDiverged:
        shutil.rmtree(work, ignore_errors=True)  # another attempt would diverge at the same step
        raise
    finally:
        trainer.accelerator.free_memory()
    return trainer.state


def _free_memory() -> None:
    """Trainer and model refer to each other, so a model is freed by the collector only."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class _Trainer(Trainer):
    """The stock Trainer, whose checkpoints hold no more than the adapter and the training state."""

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        # Left at "auto", save_embedding_layers makes peft ask the hub whether the vocabulary was resized.
        assert output_dir is not None, "a checkpoint has a folder"
        self.model.save_pretrained(output_dir, state_dict=state_dict, save_embedding_layers=False)


def _arguments(config: LoraHealing, work: Path, resuming: bool) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=str(work),
        max_steps=config.steps,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        activation_checkpointing=config.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.scheduler,
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        train_sampling_strategy="sequential",  # _TrainingBlocks is already in its order
        eval_strategy="steps",
        eval_steps=config.eval_every,
        eval_on_start=not resuming,  # a resumed run has it in its history
        prediction_loss_only=True,
        save_strategy="steps",
        save_steps=config.checkpoint_every,
        save_total_limit=CHECKPOINTS_KEPT,
        logging_steps=1,  # every loss is checked for divergence
        logging_nan_inf_filter=False,  # the default hides a NaN loss behind the mean of those before
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to="none",
        disable_tqdm=True,
        seed=config.seed,
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # else the Trainer wraps the model in DataParallel
    return arguments


class _Blocks(Dataset):
    """Blocks [n, seq_len] as the causal-LM examples that the Trainer feeds."""

    def __init__(self, blocks: torch.Tensor) -> None:
        self.blocks = blocks

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.blocks[index], "labels": self.blocks[index]}


class _TrainingBlocks(_Blocks):
    """Exactly the blocks of all steps, in one order drawn with the seed; each pass is a fresh permutation."""

    def __init__(self, blocks: torch.Tensor, config: LoraHealing) -> None:
        super().__init__(blocks)
        wanted = config.steps * config.gradient_accumulation * config.batch_size
        generator = torch.Generator().manual_seed(config.seed)
        passes = math.ceil(wanted / len(blocks))
        self.order = torch.cat([torch.randperm(len(blocks), generator=generator) for _ in range(passes)])[:wanted]

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return super().__getitem__(int(self.order[index]))
