"""The loss is that of all logits at once, however many positions are taken at a time."""

from __future__ import annotations

import pytest
import torch
from architectures import ARCHITECTURES, TOKENS, random_model

from greenprune.models import Decoder, loss
from greenprune.models.loss import cross_entropy, loss_gradient, mean_loss, total_loss


def test_cross_entropy_by_hand():
    logits = torch.tensor([[[0.0, 0.0], [0.0, 0.0]]], dtype=torch.bfloat16)
    found = cross_entropy(logits, torch.tensor([[0, 1]]))
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(2 * torch.tensor(2.0).log().item())


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("positions", [1, 7, 1000])
def test_losses_are_those_of_the_whole_logits(name, positions, monkeypatch):
    monkeypatch.setattr(loss, "LOGITS_AT_ONCE", positions * len(TOKENS) * 64)
    model = random_model(name)
    with torch.no_grad():
        whole = model(TOKENS, labels=TOKENS).loss.item()
        assert total_loss(model, TOKENS) == pytest.approx(whole * 4 * 15, rel=1e-5)
    assert mean_loss(model, TOKENS, batch_size=3) == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("name", ["llama", "gemma2", "opt"])
@pytest.mark.parametrize("positions", [1, 7, 1000])
def test_the_gradient_is_that_of_the_whole_logits_which_are_never_held(name, positions, monkeypatch):
    held = []
    monkeypatch.setattr(loss, "LOGITS_AT_ONCE", positions * len(TOKENS) * 64)
    monkeypatch.setattr(
        loss, "cross_entropy", lambda logits, of: held.append(logits.shape[1]) or cross_entropy(logits, of)
    )
    model = random_model(name)
    states = model.base_model(input_ids=TOKENS).last_hidden_state[:, :-1].detach().requires_grad_()
    whole = cross_entropy(Decoder(model).logits(states), TOKENS[:, 1:])
    (expected,) = torch.autograd.grad(whole, states)
    torch.testing.assert_close(loss_gradient(model, states, TOKENS[:, 1:]), expected)
    assert max(held) == min(positions, 15)


def test_the_mean_is_taken_in_evaluation_mode_and_leaves_the_mode():
    model = random_model("opt")
    expected = mean_loss(model, TOKENS)
    assert mean_loss(model.train(), TOKENS) == expected
    assert model.training
