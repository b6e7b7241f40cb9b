"""Inputs beyond learned positions are refused, whoever asks."""

from __future__ import annotations

import pytest
import torch
from tiny_causal import tiny

from greenprune.benchmark.workload import measure_workload
from greenprune.config import EnergyConfig
from greenprune.energy import ReplayMeter
from greenprune.engines.perplexity import perplexity
from greenprune.engines.positions import learned_positions
from greenprune.engines.transformers import TransformersEngine
from greenprune.errors import ModelError


def test_lengths_beyond_learned_positions_are_refused():
    assert (learned_positions(tiny("opt")), learned_positions(tiny("gpt2"))) == (64, 64)
    assert learned_positions(tiny("llama")) is None
    with pytest.raises(ModelError, match=r"at most 64 tokens, the positions opt has learned, got 65"):
        perplexity(tiny("opt"), torch.zeros(1, 65, dtype=torch.long))
    with pytest.raises(ModelError, match=r"prompt_len \+ decode_len must be at most 64 tokens.*got 80"):
        measure_workload(TransformersEngine(tiny("opt")), EnergyConfig(prompt_len=64, decode_len=16), ReplayMeter([]))
