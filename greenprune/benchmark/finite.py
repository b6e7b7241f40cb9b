"""No answer is read from logits that aren't numbers: argmax would take the first choice for the best."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from transformers import LogitsProcessor

from greenprune.errors import ModelError

_REMEDY = "use model.dtype bfloat16 or float32, or prune less"


def check_finite(task: str | None, log_likelihoods: Iterable[float]) -> None:
    """Raises ModelError, which names the task, at the first log-likelihood that is NaN or infinite."""
    for value in log_likelihoods:
        if not math.isfinite(value):
            raise ModelError(
                f"{task or 'a task'}: logits must be finite to be scored, got a log-likelihood of {value}; {_REMEDY}"
            )


class FiniteLogits(LogitsProcessor):
    """Raises ModelError where a generated token would be chosen among logits without a finite best one."""

    def __init__(self, task: str | None) -> None:
        self.task = task or "a task"

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """scores: [batch, vocabulary], -inf where a token is barred; given back as they are."""
        best = scores.max(dim=-1).values
        if not best.isfinite().all():
            got = best[~best.isfinite()][0].item()
            raise ModelError(f"{self.task}: logits must be finite to be generated from, got {got}; {_REMEDY}")
        return scores
