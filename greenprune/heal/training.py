"""The training loop that all healers share: Transformers' Trainer on blocks, with the loss that `heal.loss` asks for.

The order of the training blocks follows from the seed, and each checkpoint keeps the generators' states; so a killed
run that resumes ends where an undisturbed one does. A teacher's record is read block by block, by the block's number.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Dataset
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
    default_data_collator,
)

from greenprune.config import TextHealing
from greenprune.data import drawn_in_passes
from greenprune.errors import HealingDiverged
from greenprune.heal.beginnings import KeepStable, keeps_stable
from greenprune.heal.beside import States
from greenprune.heal.distillation import divergence
from greenprune.heal.domains import LOSSES, DomainOrder
from greenprune.heal.progress import DivergenceStop, TrainingProgress
from greenprune.heal.resume import last_whole_checkpoint
from greenprune.heal.sharded import deepspeed_settings
from greenprune.heal.teacher import Teacher, TeacherRows
from greenprune.models.load import load_checkpoint
from greenprune.models.loss import cross_entropy

CHECKPOINTS_KEPT = 2  # the last may be half-written when the process is killed
TAUGHT = ("teacher_ids", "teacher_log_probs")


def train(
    model: Any,
    blocks: Tensor,
    validation: Tensor,
    config: TextHealing,
    work: Path,
    callbacks: Sequence[TrainerCallback] = (),
    teacher: Teacher | None = None,
) -> TrainerState:
    """Train from the last whole checkpoint in `work`, or from the start; gives the Trainer's state with its log.

    blocks [n, seq_len] are repeated in fresh orders where there are fewer than the steps need. Validation is at the
    start, every config.eval_every steps, and at the end. Raises HealingDiverged.
    """
    resume_from = _agreed(work, config.num_workers)
    order = _order(len(blocks), config, teacher)
    trainer = HealingTrainer(
        config,
        teacher,
        model=model,
        args=_arguments(config, work, resuming=resume_from is not None),
        train_dataset=_TrainingBlocks(blocks, order, teacher.part("train") if teacher else None),
        eval_dataset=_Blocks(validation, teacher.part("validation") if teacher else None),
        data_collator=default_data_collator,
        callbacks=[
            DivergenceStop(config.divergence_factor, distils=config.distils),
            TrainingProgress(),
            *([order] if isinstance(order, DomainOrder) else []),
            *([KeepStable(config.stable_steps)] if keeps_stable(config) else []),
            *callbacks,
        ],
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


def leads() -> bool:
    """Whether this process is the first of a group's workers, or works alone: it has the healed model in the end."""
    return not dist.is_initialized() or dist.get_rank() == 0


def _agreed(work: Path, workers: int) -> Path | None:
    """The checkpoint that training goes on from; the first worker looks, for all of them."""
    found = [last_whole_checkpoint(work, workers) if leads() else None]
    if workers > 1:
        dist.broadcast_object_list(found, src=0)
    return found[0]


def full_precision(checkpoint: Path, dtype: str, trust_remote_code: bool) -> PreTrainedModel:
    """The model to train: in its dtype, but in fp32 where that is fp16, whose gradients underflow without scaling."""
    trained_in = "float32" if dtype == "float16" else dtype
    return load_checkpoint(checkpoint, trained_in, trust_remote_code=trust_remote_code)


def free_memory() -> None:
    """Trainer and model refer to each other, so a model is freed by the collector only."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def reset_peak() -> None:
    """Begin to watch the GPU's memory."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> int | None:
    """Peak bytes on the GPU since `reset_peak`; None without a GPU."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


class HealingTrainer(Trainer):
    """The stock Trainer, whose loss may ask the teacher's record and the dense model's states (heal.loss).

    Validation always gives the cross-entropy, and the divergence from the teacher where the record has those blocks;
    the cross-entropy of each domain where there are some.
    """

    def __init__(self, config: TextHealing, teacher: Teacher | None, **more: Any) -> None:
        super().__init__(**more)
        self.weights, self.distils = config.weights, config.distils
        self.beside = teacher.beside if teacher else None
        self.temperature = config.teacher.temperature
        self.domains = list(config.domains)
        self.validated: dict[str, list[Tensor]] = {}
        assert teacher is not None or not self.distils, "who distils has a teacher"

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        ids, log_probs = (inputs.pop(name, None) for name in TAUGHT)
        if model.training and self.distils:
            with self._watching(model) as states:
                logits = model(input_ids=inputs["input_ids"], use_cache=False).logits[:, :-1]
            targets = inputs["input_ids"][:, 1:]
            loss = self.objective(logits, targets, ids, log_probs)
            if self.beside is not None:
                loss = loss + self.weights["hidden"] * self.beside.error(states, inputs["input_ids"])
            if num_items_in_batch is not None:  # of all accumulated batches of all workers, whose mean is taken then
                loss = loss * targets.numel() / num_items_in_batch * self.accelerator.num_processes
            return (loss, {"logits": logits}) if return_outputs else loss
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if not model.training:
            logits, targets = outputs.logits[:, :-1], inputs["input_ids"][:, 1:]
            if ids is not None:
                self._validated("kl", divergence(logits, ids, log_probs, self.temperature))
            if self.domains:
                each = [cross_entropy(*block) for block in zip(logits.split(1), targets.split(1), strict=True)]
                self._validated("losses", torch.stack(each) / targets.shape[1])
        return (loss, outputs) if return_outputs else loss

    def _watching(self, model: Any) -> AbstractContextManager[States]:
        """Inside, a forward of the student gives its states, where a loss asks for them."""
        if self.beside is None:
            return nullcontext([])
        trained = self.accelerator.unwrap_model(model)
        return self.beside.watching(trained.get_base_model() if hasattr(trained, "peft_config") else trained)

    def objective(self, logits: Tensor, targets: Tensor, ids: Tensor | None, log_probs: Tensor | None) -> Tensor:
        """Weighted mean loss of a batch's predictions: logits [B, P, vocabulary], targets [B, P], ids and log_probs
        [B, P, k].

        The divergence counts temperature² times, so that its gradient keeps its size (Hinton et al. 2015, section 2).
        """
        loss = logits.new_zeros((), dtype=torch.float32)
        if "kd" in self.weights:
            assert ids is not None, "who distils has what the teacher said"
            assert log_probs is not None, "and how sure it was"
            kd = divergence(logits, ids, log_probs, self.temperature).mean() * self.temperature**2
            loss = loss + self.weights["kd"] * kd
        if "ce" in self.weights:
            loss = loss + self.weights["ce"] * cross_entropy(logits, targets) / targets.numel()
        return loss

    def _validated(self, name: str, values: Tensor) -> None:
        """Keep what a batch of validation blocks gave, of all workers, in the blocks' order."""
        self.validated.setdefault(name, []).append(self.accelerator.gather_for_metrics(values).flatten().cpu())

    def evaluation_loop(self, *args: Any, **more: Any) -> Any:
        self.validated.clear()
        output = super().evaluation_loop(*args, **more)
        found = {name: torch.cat(values) for name, values in self.validated.items()}
        if "kl" in found:
            output.metrics["eval_kl"] = found["kl"].mean().item()
        if "losses" in found:
            by_domain = found["losses"].view(len(self.domains), -1).mean(dim=1).tolist()
            output.metrics[LOSSES] = dict(zip(self.domains, by_domain, strict=True))
        return output

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """No more than the weights: an adapter's are the adapter alone."""
        assert output_dir is not None, "a checkpoint has a folder"
        # Left at "auto", save_embedding_layers makes peft ask the hub whether the vocabulary was resized.
        adapter: dict[str, Any] = {"save_embedding_layers": False} if hasattr(self.model, "peft_config") else {}
        self.model.save_pretrained(output_dir, state_dict=state_dict, **adapter)


def _arguments(config: TextHealing, work: Path, resuming: bool) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=str(work),
        max_steps=config.num_steps,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation // config.num_workers,
        deepspeed=deepspeed_settings(config) if config.num_workers > 1 else None,
        **_checkpointing(config),
        bf16=config.bf16,
        use_cpu=(config.bf16 or config.num_workers > 1) and not torch.cuda.is_available(),  # else it wants a GPU
        learning_rate=config.learning_rate,
        **_schedule(config),
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


def _checkpointing(config: TextHealing) -> dict[str, Any]:
    """Under the name that this version of Transformers has for it; the engines hold others back."""
    renamed = any(field.name == "activation_checkpointing" for field in fields(TrainingArguments))
    name = "activation_checkpointing" if renamed else "gradient_checkpointing"
    return {name: config.gradient_checkpointing, f"{name}_kwargs": {"use_reentrant": False}}


def _schedule(config: TextHealing) -> dict[str, Any]:
    if config.scheduler != "wsd":
        return {"lr_scheduler_type": config.scheduler}
    decay = {"num_decay_steps": config.num_steps - config.stable_steps, "decay_type": "linear"}
    return {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": decay}


class _Blocks(Dataset):
    """Blocks [n, seq_len] as the causal-LM examples that the Trainer feeds, with what the teacher said on each."""

    def __init__(self, blocks: Tensor, taught: TeacherRows | None) -> None:
        self.blocks, self.taught = blocks, taught

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        example = {"input_ids": self.blocks[index], "labels": self.blocks[index]}
        return example if self.taught is None else example | dict(zip(TAUGHT, self.taught[index], strict=True))


def _order(blocks: int, config: TextHealing, teacher: Teacher | None) -> DomainOrder | Tensor:
    """The numbers of the blocks of all steps, drawn with the seed; each pass is a fresh permutation.

    With wsd the first pass is in the text's order, which has been drawn already: a run of more steps begins with the
    same blocks then.
    """
    if config.domains:
        assert teacher is not None, "who reads by domains has a record with the dense model's losses"
        return DomainOrder(blocks // len(config.domains), teacher.facts.losses, config)
    order = drawn_in_passes(blocks, config.blocks, torch.Generator().manual_seed(config.seed))
    if config.scheduler == "wsd":
        first = order[:blocks]
        first.copy_(torch.arange(len(first)))
    return order


class _TrainingBlocks(_Blocks):
    """Exactly the blocks of all steps, in their order."""

    def __init__(self, blocks: Tensor, order: DomainOrder | Tensor, taught: TeacherRows | None) -> None:
        super().__init__(blocks, taught)
        self.order = order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return super().__getitem__(int(self.order[index]))
