"""What a healing run was: its losses by step, and their summary.

The losses are the Trainer's own log, saved with every checkpoint; so a resumed run's history is whole.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from transformers import TrainerState

from greenprune.heal.domains import LOSSES, SHARES


@dataclass(frozen=True)
class TrainingStep:
    """One optimizer step: the mean of what is minimised (`heal.loss`) over its blocks before it, in nats a token, and
    the rate it was taken with."""

    step: int
    loss: float
    learning_rate: float


@dataclass(frozen=True)
class Validation:
    """The validation blocks after `step` steps, which saw `tokens` of training text, in nats a token.

    loss: cross-entropy. kl: divergence from the dense model (distillation.py); None where it wasn't measured, or isn't
    finite.
    losses, shares: of each of heal.domains, the cross-entropy, and the share of what is read from then on.
    """

    step: int
    loss: float
    tokens: int
    kl: float | None = None
    losses: dict[str, float] | None = None
    shares: dict[str, float] | None = None


@dataclass(frozen=True)
class History:
    """One healing. Losses are means in nats a token.

    loss_start and loss_end: validation loss of the model as it trains (with a 4-bit base under nf4), before the first
    step and after the last. loss_merged: validation loss of the merged model, in the dtype it is
    saved in. train_loss: mean over all steps of what is minimised.
    tokens: trained on, repeated ones too. seconds: of training and validation; a resumed run counts what it kept of
    former attempts. peak_memory_bytes: of the GPU in training; None without one.
    """

    train: tuple[TrainingStep, ...]
    validation: tuple[Validation, ...]
    loss_start: float
    loss_end: float
    train_loss: float
    steps: int
    seconds: float
    loss_merged: float
    tokens: int
    trainable_parameters: int
    peak_memory_bytes: int | None

    def to_json(self) -> dict[str, Any]:
        """What history.json holds; a run on one text says nothing of domains."""
        fields = asdict(self)
        for point in fields["validation"]:
            if point["losses"] is None:
                del point["losses"], point["shares"]
        return fields


def _finite(value: float | None) -> float | None:
    """What JSON can hold: a training that ended well isn't lost for a number beside it."""
    return value if value is not None and math.isfinite(value) else None


def history_of(
    state: TrainerState,
    *,
    loss_merged: float,
    tokens_per_step: int,
    trainable_parameters: int,
    peak_memory_bytes: int | None,
) -> History:
    """What the Trainer's log tells, with what it doesn't know. tokens_per_step: of training text."""
    logged = state.log_history
    train = tuple(
        TrainingStep(entry["step"], entry["loss"], entry["learning_rate"]) for entry in logged if "loss" in entry
    )
    validation = tuple(
        Validation(
            entry["step"],
            entry["eval_loss"],
            entry["step"] * tokens_per_step,
            _finite(entry.get("eval_kl")),
            entry.get(LOSSES),
            entry.get(SHARES),
        )
        for entry in logged
        if "eval_loss" in entry
    )
    return History(
        train=train,
        validation=validation,
        loss_start=validation[0].loss,
        loss_end=validation[-1].loss,
        train_loss=sum(step.loss for step in train) / len(train),
        steps=state.global_step,
        seconds=max(entry["seconds"] for entry in logged if "seconds" in entry),
        loss_merged=loss_merged,
        tokens=state.global_step * tokens_per_step,
        trainable_parameters=trainable_parameters,
        peak_memory_bytes=peak_memory_bytes,
    )
