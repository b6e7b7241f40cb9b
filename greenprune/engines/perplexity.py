"""Token perplexity as the pruning papers take it: equal segments of a text, each on its own.

    ppl = perplexity(model, segments)          # LongTensor [num_segments, seq_len]

texts.py takes it on the texts that a configuration names.
"""

from __future__ import annotations

import math
import sys

import torch
from transformers import PreTrainedModel

from greenprune.engines.positions import check_length
from greenprune.errors import ConfigError
from greenprune.models.loss import mean_loss

LARGEST_LOSS = math.log(sys.float_info.max)


def perplexity(model: PreTrainedModel, segments: torch.Tensor, batch_size: int = 1) -> float:
    """exp of the mean next-token cross-entropy over all segments.

    segments: LongTensor [num_segments, seq_len], each predicted on its own, so seq_len − 1 targets each; no
    padding. The first one, which may be BOS, is never a target. batch_size: segments a forward. The loss is taken in
    fp32 whatever the model's dtype. Wanda and SparseGPT take seq_len = 2048 or the model's maximum, LLM-Pruner and
    FLAP 128.

    A loss that is NaN, infinite, or beyond what a float can be the exponential of, gives inf.
    Raises ConfigError for segments of another shape, ModelError for segments beyond learned positions.
    """
    check_segments(segments)
    check_length(model, segments.shape[1], "a perplexity segment")
    loss = mean_loss(model, segments, batch_size)
    return math.exp(loss) if loss < LARGEST_LOSS else math.inf


def check_segments(segments: torch.Tensor) -> None:
    """Raises ConfigError for anything but [num_segments >= 1, seq_len >= 2]."""
    if segments.ndim != 2 or segments.shape[0] < 1 or segments.shape[1] < 2:
        raise ConfigError(
            "segments must be [num_segments >= 1, seq_len >= 2], got shape "
            f"{list(segments.shape)}; cut the text with greenprune.data.token_blocks"
        )
