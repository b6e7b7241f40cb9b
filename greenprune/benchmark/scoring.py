"""An engine as lm-eval asks it."""

from __future__ import annotations

from lm_eval.api.model import LM
from transformers import PreTrainedTokenizerBase

from greenprune.benchmark.logits_lm import LogitsLM
from greenprune.benchmark.shared_prefix import SharedPrefixLM
from greenprune.config import BenchmarkConfig
from greenprune.engines import ScoringEngine
from greenprune.engines.llama_cpp import LlamaCppEngine
from greenprune.engines.positions import learned_positions
from greenprune.engines.transformers import TransformersEngine


def scorer(engine: ScoringEngine, tokenizer: PreTrainedTokenizerBase, config: BenchmarkConfig) -> LM:
    """The model for inputs of at most `config.max_length` tokens, or as many as it can take."""
    if isinstance(engine, LlamaCppEngine):
        return LogitsLM(engine, tokenizer, config.max_length)
    assert isinstance(engine, TransformersEngine), "the only other engine whose model is in this process"
    return SharedPrefixLM(
        pretrained=engine.model,
        tokenizer=tokenizer,
        batch_size=config.batch_size,
        max_length=min(config.max_length, learned_positions(engine.model) or config.max_length),
    )
