"""Masks that learn a shape, on the real model: the exact one, and better than the same shape chosen, then healed."""

from __future__ import annotations

import copy

import pytest
import torch

from greenprune import PruneConfig, perplexity, prune
from greenprune.data import calibration_tokens, drawn_in_passes
from greenprune.models import Decoder
from greenprune.prune.sheared import mean_next_token_loss, rate

pytestmark = [pytest.mark.real, pytest.mark.slow]
WIDTH = {"heads": 6, "ffn": 1280, "hidden": 544}
BLOCKS, RATE = 100, 3e-4


def test_the_shape_is_exact_in_every_dimension(real_model, calibration):
    model = copy.deepcopy(real_model[0])
    fields = {"targets": {"layers": 27, **WIDTH}, "steps": 4, "batch_size": 1}
    prune(model, PruneConfig(method="sheared", **fields), calibration=calibration)
    views = Decoder(model).views()
    assert {(view.heads, view.channels) for view in views} == {(6, 1280)}
    assert (len(views), model.get_input_embeddings().embedding_dim) == (27, 544)


@pytest.mark.timeout(3600)
def test_unhealed_it_is_better_than_minitron_width_healed_on_as_many_tokens(real_model, segments):
    text = calibration_tokens("pypi:openwebtext", real_model[1], BLOCKS, 256, seed=None)
    sheared, healed = (copy.deepcopy(real_model[0]) for _ in range(2))
    fields = {"steps": BLOCKS, "batch_size": 1, "learning_rate": RATE}
    prune(sheared, PruneConfig(method="sheared", targets=WIDTH, **fields), calibration=text)
    prune(healed, PruneConfig(method="minitron_width", targets=WIDTH), calibration=text[:32], batch_size=4)
    heal(healed, text)
    assert perplexity(sheared, segments) < perplexity(healed, segments)


def heal(model, text) -> None:
    """All weights, with the optimizer, schedule and order that sheared's weights have."""
    model.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, len(text)))
    for row in drawn_in_passes(len(text), len(text), torch.Generator().manual_seed(0)):
        mean_next_token_loss(model, text[row : row + 1]).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
