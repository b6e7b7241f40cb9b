"""While a model trains: stop where it diverges, say how far it is."""

from __future__ import annotations

import logging
import math
import time
from typing import Any

from transformers import TrainerCallback, TrainerState, TrainingArguments

from greenprune.errors import HealingDiverged

PROGRESS_EVERY_S = 5.0
log = logging.getLogger("greenprune")


class DivergenceStop(TrainerCallback):
    """Raises HealingDiverged at the first loss that is not finite or above the limit.

    The limit is `divergence_factor` times the first validation loss. distils: the training loss has another scale then,
    and must only be finite.
    """

    def __init__(self, divergence_factor: float, distils: bool = False) -> None:
        self.divergence_factor, self.distils = divergence_factor, distils

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: Any, logs: dict[str, float], **_: Any
    ) -> None:
        for key, kind in (("loss", "training"), ("eval_loss", "validation")):
            if key in logs:
                self._check(state, kind, logs[key])

    def _check(self, state: TrainerState, kind: str, loss: float) -> None:
        limit = self.divergence_factor * _validation_losses(state)[0]
        held_to_it = kind == "validation" or not self.distils
        if not math.isfinite(loss) or (held_to_it and loss > limit):
            raise HealingDiverged(
                f"heal: the loss must stay finite and below {limit:.3f} (heal.divergence_factor "
                f"{self.divergence_factor:g} times the first validation loss), got a {kind} loss of "
                f"{loss:.3f} at step {state.global_step} of {state.max_steps}; lower heal.learning_rate or "
                "raise heal.warmup_steps"
            )


def finite_loss(loss: float, dtype: str) -> float:
    """The merged model's loss. Raises HealingDiverged where casting to `dtype` left it none."""
    if not math.isfinite(loss):
        raise HealingDiverged(
            f"heal: the merged model must have a finite loss in model.dtype {dtype}, got {loss}; use bfloat16 or "
            "float32"
        )
    return loss


class TrainingProgress(TrainerCallback):
    """Says now and then how far training is, and stamps each entry of the Trainer's log with the seconds so far.

    The seconds of a former attempt count: its log came back with the checkpoint.
    """

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
        if "loss" in logs and (now >= self.next_line or state.global_step == state.max_steps):
            self.next_line = now + PROGRESS_EVERY_S
            self._say(state, logs, now)

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
