"""Watch a training run: stop it when it diverges, say how far it is, and keep its history.

The history is the Trainer's own log, saved with every checkpoint; so a resumed run's history is whole.
"""

from __future__ import annotations

import logging
import math
import time
from typing import Any

from transformers import TrainerCallback, TrainerState, TrainingArguments

from greenprune.errors import HealingDiverged

SECONDS_BETWEEN_LINES = 5.0
log = logging.getLogger("greenprune")


class Watch(TrainerCallback):
    """Raises HealingDiverged at the first loss that is not finite or above the limit."""

    def __init__(self, divergence_factor: float) -> None:
        self.divergence_factor = divergence_factor

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **_: Any) -> None:
        earlier = state.log_history[-1]["seconds"] if state.log_history else 0.0
        self.started = time.perf_counter() - earlier
        self.began_at_step, self.began_at = state.global_step, time.perf_counter()
        self.next_line = 0.0

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: Any, logs: dict[str, float], **_: Any
    ) -> None:
        now = time.perf_counter()
        state.log_history[-1]["seconds"] = now - self.started
        for kind in ("loss", "eval_loss"):
            if kind in logs:
                self._check(state, "training" if kind == "loss" else "validation", logs[kind])
        if "loss" in logs and (now >= self.next_line or state.global_step == state.max_steps):
            self.next_line = now + SECONDS_BETWEEN_LINES
            self._say(state, logs, now)

    def _check(self, state: TrainerState, kind: str, loss: float) -> None:
        limit = self.divergence_factor * _validation_losses(state)[0]
        if not math.isfinite(loss) or loss > limit:
            raise HealingDiverged(
                f"heal: the loss must stay finite and below {limit:.3f} (heal.divergence_factor "
                f"{self.divergence_factor:g} times the first validation loss), got a {kind} loss of "
                f"{loss:.3f} at step {state.global_step} of {state.max_steps}; lower heal.learning_rate or "
                "raise heal.warmup_steps"
            )

    def _say(self, state: TrainerState, logs: dict[str, float], now: float) -> None:
        done = state.global_step - self.began_at_step
        left = (now - self.began_at) / max(done, 1) * (state.max_steps - state.global_step)
        log.info(
            "heal: step %d/%d, loss %.3f, validation loss %.3f, %s left",
            state.global_step,
            state.max_steps,
            logs["loss"],
            _validation_losses(state)[-1],
            f"{left:.0f} s" if left < 120 else f"{left / 60:.0f} min",
        )


def _validation_losses(state: TrainerState) -> list[float]:
    return [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]


def history_of(state: TrainerState) -> dict[str, Any]:
    """The losses by step, and their summary; the part of a healing's history that the Trainer knows."""
    train = [
        {key: entry[key] for key in ("step", "loss", "learning_rate")} for entry in state.log_history if "loss" in entry
    ]
    validation = [
        {"step": entry["step"], "loss": entry["eval_loss"]} for entry in state.log_history if "eval_loss" in entry
    ]
    return {
        "train": train,
        "validation": validation,
        "loss_start": validation[0]["loss"],
        "loss_end": validation[-1]["loss"],
        "train_loss": sum(entry["loss"] for entry in train) / len(train),
        "steps": state.global_step,
        "seconds": max(entry["seconds"] for entry in state.log_history if "seconds" in entry),
    }
