"""Token perplexity as the pruning papers take it: equal segments of a text, each on its own, no BOS.

    ppl = perplexity(model, segments)          # LongTensor [num_segments, seq_len]

texts.py takes it on the texts that a configuration names.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import nn
from transformers import PreTrainedModel

from greenprune.benchmark.positions import check_length
from greenprune.errors import ConfigError
from greenprune.models.decoder import LAYOUTS, LOGITS_AT_ONCE, Decoder


def perplexity(model: PreTrainedModel, segments: torch.Tensor, batch_size: int = 1) -> float:
    """exp of the mean next-token cross-entropy over all segments.

    segments: LongTensor [num_segments, seq_len], each predicted on its own, so seq_len − 1 targets each; no
    padding. batch_size: segments a forward. The loss is taken in fp32 whatever the model's dtype. Wanda and
    SparseGPT take seq_len = 2048 or the model's maximum, LLM-Pruner and FLAP 128.

    Raises ConfigError for segments of another shape, ModelError for segments beyond learned positions.
    """
    if segments.ndim != 2 or segments.shape[0] < 1 or segments.shape[1] < 2:
        raise ConfigError(
            "segments must be [num_segments >= 1, seq_len >= 2], got shape "
            f"{list(segments.shape)}; cut the text with greenprune.data.token_blocks"
        )
    check_length(model, segments.shape[1], "a perplexity segment")
    training = model.training
    model.eval()
    total = 0.0
    try:
        with torch.inference_mode():
            for batch in segments.split(batch_size):
                total += cross_entropy(model, batch.to(model.device))
    finally:
        model.train(training)
    return math.exp(total / (segments.shape[0] * (segments.shape[1] - 1)))


def cross_entropy(model: PreTrainedModel, ids: torch.Tensor) -> float:
    """Sum of the cross-entropies of all next tokens of `ids` [batch, seq_len]."""
    total, begin = 0.0, 1
    for logits in _logits(model, ids):
        targets = ids[:, begin : begin + logits.shape[1]]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum")
        total, begin = total + loss.item(), begin + logits.shape[1]
    assert begin == ids.shape[1], "each token but the first is a target once"
    return total


def _logits(model: PreTrainedModel, ids: torch.Tensor) -> Iterator[torch.Tensor]:
    """The logits that predict tokens 1, 2, …, in pieces [batch, some positions, vocabulary].

    All of them together would be the largest tensor of the pass: 1 GiB for 2048 tokens of a 128k vocabulary.
    """
    if model.get_output_embeddings() is None or model.config.model_type not in LAYOUTS:
        yield model(input_ids=ids, use_cache=False).logits[:, :-1]
        return
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    vocabulary = model.config.get_text_config().vocab_size
    for piece in hidden.split(max(1, LOGITS_AT_ONCE // (vocabulary * ids.shape[0])), dim=1):
        yield Decoder(model).logits(piece)
