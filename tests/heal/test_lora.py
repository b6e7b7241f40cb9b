"""Adapters: what a run gives, and that it can be repeated."""

from __future__ import annotations

import json

import pytest
import torch
from healing import SEQ_LEN, TRAIN, VALIDATION, config, logits, teacher, without_times
from transformers import AutoModelForCausalLM

from greenprune.errors import HealingDiverged
from greenprune.heal.lora import heal_with_lora
from greenprune.models.load import DTYPES
from greenprune.models.loss import mean_loss


def test_loss_falls_and_history_is_whole(healed):
    _, history = healed
    assert history.loss_end < history.loss_start - 0.3
    assert [step.step for step in history.train] == list(range(1, 9))
    assert [point.step for point in history.validation] == [0, 3, 6, 8]
    assert history.validation[-1].loss == history.loss_end
    rates = [step.learning_rate for step in history.train]
    assert rates[:3] == [0.0, 0.01, 0.02]  # two steps of warm-up
    assert rates[-1] < 0.2 * max(rates)
    assert history.steps == 8
    assert history.tokens == 8 * 2 * 2 * SEQ_LEN
    assert history.train_loss == pytest.approx(sum(step.loss for step in history.train) / 8)
    assert history.seconds > 0
    # rank 8 on q, k, v, o (64 to 64, 32, 32, 64) and gate, up, down (64 and 128) of three layers
    assert history.trainable_parameters == 3 * 8 * (2 * 128 + 2 * 96 + 3 * 192)
    json.dumps(history.to_json(), allow_nan=False)


def test_merged_model_is_plain_and_has_the_trained_loss(healed):
    model, history = healed
    assert type(model).__name__ == "LlamaForCausalLM"
    assert not model.training
    assert not any("lora" in name for name in model.state_dict())
    assert history.loss_merged == pytest.approx(history.loss_end, abs=1e-5)


def test_same_seed_same_result(checkpoint, healed, tmp_path):
    model, history = heal_with_lora(checkpoint, TRAIN, VALIDATION, config(), tmp_path)
    assert without_times(history) == without_times(healed[1])
    assert torch.equal(logits(model), logits(healed[0]))


def test_another_seed_another_result(checkpoint, healed, tmp_path):
    _, history = heal_with_lora(checkpoint, TRAIN, VALIDATION, config(seed=1), tmp_path)
    assert history.loss_start == healed[1].loss_start
    assert history.train != healed[1].train


def test_gradient_checkpointing_changes_no_loss(checkpoint, healed, tmp_path):
    _, history = heal_with_lora(checkpoint, TRAIN, VALIDATION, config(gradient_checkpointing=True), tmp_path)
    assert history.loss_end == pytest.approx(healed[1].loss_end, abs=1e-5)


def test_accumulated_batches_count_as_one(checkpoint, tmp_path):
    options = {"steps": 3, "dropout": 0.0, "loss": {"ce": 0.3, "kd": 0.7}}
    ends = []
    for batch_size, accumulated in ((4, 1), (1, 4)):
        section = config(batch_size=batch_size, gradient_accumulation=accumulated, **options)
        work, said = tmp_path / f"{batch_size}", teacher(tmp_path / f"record{batch_size}")
        _, history = heal_with_lora(checkpoint, TRAIN, VALIDATION, section, work, teacher=said)
        ends.append([step.loss for step in history.train] + [history.loss_end])
    assert ends[0] == pytest.approx(ends[1], rel=1e-4)


def test_bf16_rounds_the_forward_and_keeps_fp32_weights(checkpoint, healed, tmp_path):
    model, history = heal_with_lora(checkpoint, TRAIN, VALIDATION, config(bf16=True), tmp_path)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert history.loss_end != healed[1].loss_end
    assert history.loss_end == pytest.approx(healed[1].loss_end, abs=0.1)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtype_is_kept(checkpoint, tmp_path, dtype):
    model, history = heal_with_lora(checkpoint, TRAIN, VALIDATION, config(steps=3), tmp_path, dtype)
    assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}
    assert history.loss_end < history.loss_start


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_merged_loss_is_that_of_the_model_in_its_dtype(checkpoint, tmp_path, dtype):
    model, history = heal_with_lora(checkpoint, TRAIN, VALIDATION, config(), tmp_path, dtype)
    assert model.dtype == DTYPES[dtype]
    assert history.loss_merged == mean_loss(model, VALIDATION, config().batch_size)


def test_a_cast_that_leaves_no_finite_loss_is_said(checkpoint, tmp_path):
    large = AutoModelForCausalLM.from_pretrained(checkpoint)
    with torch.no_grad():
        large.model.norm.weight.fill_(1e5)  # beyond float16
        large.get_output_embeddings().weight.mul_(1e-5)
    large.save_pretrained(tmp_path / "large")
    with pytest.raises(HealingDiverged, match=r"finite loss in model\.dtype float16, got nan; use bfloat16"):
        heal_with_lora(tmp_path / "large", TRAIN, VALIDATION, config(steps=1, warmup_steps=0), tmp_path, "float16")
