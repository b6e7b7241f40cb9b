"""Perplexity is that of the whole logits."""

from __future__ import annotations

import pytest
import torch
from tiny_causal import ARCHITECTURES, VOCABULARY, tiny
from torch import nn

from greenprune.engines.perplexity import perplexity
from greenprune.errors import ConfigError


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("positions_at_once", [5, 1000])
def test_perplexity_is_that_of_the_whole_logits(architecture, positions_at_once, monkeypatch):
    monkeypatch.setattr("greenprune.models.loss.LOGITS_AT_ONCE", positions_at_once * VOCABULARY)
    model, segments = tiny(architecture), torch.randint(VOCABULARY, (3, 32))
    with torch.no_grad():
        logits = model(segments).logits[:, :-1]
    expected = nn.functional.cross_entropy(logits.flatten(0, 1), segments[:, 1:].flatten()).exp().item()
    assert perplexity(model, segments) == pytest.approx(expected, rel=1e-5)
    assert perplexity(model, segments, batch_size=2) == pytest.approx(expected, rel=1e-5)


def test_perplexity_is_taken_in_evaluation_mode_and_restores_the_mode():
    model = tiny("opt", dropout=0.5)
    segments = torch.randint(VOCABULARY, (1, 16))
    expected = perplexity(model, segments)
    model.train()
    assert perplexity(model, segments) == expected
    assert model.training


@pytest.mark.parametrize("shape", [(4,), (0, 8), (2, 1)])
def test_perplexity_refuses_other_shapes(llama, shape):
    with pytest.raises(ConfigError, match="segments must be"):
        perplexity(llama, torch.zeros(shape, dtype=torch.long))
