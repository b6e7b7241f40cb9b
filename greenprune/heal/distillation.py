"""How far a student's predictions are from its teacher's, of whom only the likeliest tokens are known.

A teacher's prediction is kept as its k likeliest tokens with their log-probabilities. All other tokens are one bucket
that has the rest, for the teacher and for the student, so that both are distributions over k + 1 outcomes and the
divergence is never more than that over the whole vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

FLOOR = 1e-6  # of the bucket: the rest of a rounded sum may be nothing, and a logarithm of it has no gradient


def likeliest(logits: Tensor, k: int, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """The k likeliest tokens of each position, most likely first, and their log-probabilities in nats.

    logits [..., vocabulary]; returns long [..., k] and float32 [..., k]. Both with as many as the vocabulary has where
    that is fewer.
    """
    scaled = _scaled(logits, temperature)
    values, ids = scaled.topk(min(k, scaled.shape[-1]), dim=-1)
    return ids, values - scaled.logsumexp(-1, keepdim=True)


def divergence(logits: Tensor, ids: Tensor, log_probs: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) of each position, in nats: over the teacher's tokens and the rest as one bucket.

    logits [..., vocabulary] of the student; ids long and log_probs [..., k] of the teacher, as `likeliest` gives them,
    at the same temperature. Returns float32 [...]; a gradient flows into the logits. (Hinton et al. 2015, section 2;
    there the gradient is multiplied by temperature², which is for the caller to do.)
    """
    scaled = _scaled(logits, temperature)
    student = scaled.gather(-1, ids) - scaled.logsumexp(-1, keepdim=True)
    teacher = log_probs.float()
    kept = 1 - FLOOR
    rest = (1 - kept * teacher.exp().sum(-1)).clamp(min=FLOOR)
    log_rest_of_student = torch.log1p(-kept * student.exp().sum(-1).clamp(max=1))  # rounded, it may be more
    known = kept * (teacher.exp() * (teacher - student)).sum(-1)
    return known + rest * (rest.log() - log_rest_of_student)


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    """In fp32; no copy where there is nothing to do: these are the largest tensors of a step."""
    return logits.float() if temperature == 1 else logits.float() / temperature
