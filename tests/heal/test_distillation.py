"""The divergence from a teacher: worked by hand on four tokens, and beside that over the whole vocabulary."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch.nn.functional import kl_div, log_softmax
from transformers import TrainerState

from greenprune.heal.distillation import divergence, likeliest
from greenprune.heal.history import history_of

TEACHER = torch.tensor([[4.0, 2.0, 1.0, 1.0]]).log()  # probabilities 1/2, 1/4, 1/8, 1/8
STUDENT = torch.tensor([[2.0, 2.0, 3.0, 1.0]]).log()  # 1/4, 1/4, 3/8, 1/8


def test_the_likeliest_tokens_in_their_order():
    ids, log_probs = likeliest(TEACHER, 2)
    assert ids.tolist() == [[0, 1]]
    assert log_probs.exp()[0].tolist() == pytest.approx([0.5, 0.25])
    assert likeliest(TEACHER, 9)[0].shape == (1, 4), "no more than there are"


def test_the_rest_is_one_bucket():
    """1/2 ln 2 over token 0, 1/4 ln 1 over token 1, and 1/4 against 1/2 for the others together."""
    by_hand = 0.5 * math.log(0.5 / 0.25) + 0.25 * math.log(1) + 0.25 * math.log(0.25 / 0.5)
    assert divergence(STUDENT, *likeliest(TEACHER, 2)).item() == pytest.approx(by_hand, abs=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_with_every_token_it_is_the_divergence_itself(temperature):
    torch.manual_seed(0)
    teacher, student = torch.randn(2, 5, 100) * 3
    whole = kl_div(
        log_softmax(student / temperature, -1),
        log_softmax(teacher / temperature, -1),
        log_target=True,
        reduction="none",
    ).sum(-1)
    found = divergence(student, *likeliest(teacher, 100, temperature), temperature)
    assert torch.allclose(found, whole, atol=1e-4)
    fewer = divergence(student, *likeliest(teacher, 10, temperature), temperature)
    assert (fewer <= whole + 1e-5).all(), "merging outcomes hides differences, it makes none"


def test_a_student_like_its_teacher_has_none_and_no_gradient():
    torch.manual_seed(0)
    logits = (torch.randn(7, 1000) * 4).requires_grad_()
    ids, log_probs = likeliest(logits.detach(), 16)
    loss = divergence(logits, ids, log_probs.half())  # as it is stored
    assert loss.abs().max() < 2e-3
    (gradient,) = torch.autograd.grad(divergence(logits, ids, log_probs).sum(), logits)
    assert gradient.abs().max() < 1e-5


def test_a_student_that_knows_no_rest_is_pulled_back():
    """All of its mass is on the teacher's tokens, where the teacher keeps a tenth for the others."""
    student = torch.tensor([[30.0, 30.0, 0.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[0.45, 0.45, 0.05, 0.05]]).log()
    loss = divergence(student, *likeliest(teacher, 2))
    assert math.isfinite(loss.item())
    assert loss.item() > 1
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    assert gradient.isfinite().all()


def test_a_sure_student_is_no_division_by_nothing():
    """Of logits as large as these the rounded probabilities sum to a little more than 1, farther than FLOOR."""
    behind = torch.linspace(2, 12, 1001)
    logits = torch.stack([torch.zeros(1001), torch.full((1001,), 40.0), 40 - behind, torch.full((1001,), -3.0)], dim=1)
    logits.requires_grad_()
    apart = divergence(logits, torch.tensor([[1, 2]] * 1001), torch.tensor([[-0.1, -3.0]] * 1001))
    apart.sum().backward()
    assert apart.isfinite().all()
    assert logits.grad.isfinite().all()


def test_a_divergence_that_is_not_finite_costs_no_training_that_ended_well():
    logged = [{"step": 1, "loss": 2.0, "learning_rate": 0.1, "seconds": 1.0}]
    logged += [{"step": 0, "eval_loss": 3.0, "eval_kl": 0.5}, {"step": 1, "eval_loss": 2.0, "eval_kl": math.nan}]
    state = TrainerState(global_step=1, log_history=logged)
    facts = {"loss_merged": 2.0, "tokens_per_step": 8, "trainable_parameters": 1, "peak_memory_bytes": None}
    history = history_of(state, **facts)
    assert [point.kl for point in history.validation] == [0.5, None]
    json.dumps(history.to_json(), allow_nan=False)
