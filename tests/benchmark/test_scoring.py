"""What lm-eval is told of an engine is what its model says."""

from __future__ import annotations

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from tiny_causal import tiny

from greenprune.benchmark.scoring import scorer
from greenprune.config import BenchmarkConfig
from greenprune.engines.transformers import TransformersEngine


def test_scores_are_those_of_the_model(engine, llama, tokenizer):
    asked = scorer(engine, tokenizer, BenchmarkConfig(max_length=64, batch_size=2))
    assert isinstance(asked, LM)
    pairs = [("Stone", " fell"), ("Stone", " is grey"), ("A gem", ".")]
    found = asked.loglikelihood([Instance("loglikelihood", {}, pair, 0) for pair in pairs])
    for (context, continuation), (value, _) in zip(pairs, found, strict=True):
        ids = torch.tensor([tokenizer(context + continuation)["input_ids"]])
        length = len(tokenizer(continuation)["input_ids"])
        with torch.no_grad():
            each = llama(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
        assert value == pytest.approx(each[-length:].sum().item(), rel=1e-4)


def test_a_scorer_takes_no_more_than_learned_positions(tokenizer):
    assert scorer(TransformersEngine(tiny("opt")), tokenizer, BenchmarkConfig(max_length=512)).max_length == 64
