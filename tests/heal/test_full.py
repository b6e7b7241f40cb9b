"""All weights: what is trained, in which dtype, and where a mask holds it back."""

from __future__ import annotations

import pytest
import torch
from healing import TRAIN, VALIDATION, config
from transformers import AutoModelForCausalLM

from greenprune.config import FullHealing
from greenprune.heal.full import KeepZeros, heal_fully


def test_small_steps_are_not_lost_in_16_bits(checkpoint, tmp_path):
    """A step of 1e-5 is below what bf16 resolves; fp32 weights gather eight of them."""
    section = FullHealing(**config().model_dump(include=set(FullHealing.model_fields) - {"method"}))
    section = section.model_copy(update={"learning_rate": 1e-4, "scheduler": "constant_with_warmup", "warmup_steps": 0})
    model, history = heal_fully(checkpoint, TRAIN, VALIDATION, section, tmp_path, "bfloat16")
    dense = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert history.trainable_parameters == sum(p.numel() for p in dense.parameters())
    before, after = (each.get_input_embeddings().weight.bfloat16() for each in (dense, model))
    assert not torch.equal(before, after), "embeddings are trained too"
    assert not any(p.requires_grad for p in model.parameters())


def test_a_zero_stays_whatever_its_gradient(checkpoint):
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    weight = model.model.layers[1].mlp.down_proj.weight
    with torch.no_grad():
        weight[0, ::2] = 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(3):
        model(VALIDATION, labels=VALIDATION).loss.backward()
        KeepZeros().on_pre_optimizer_step(None, None, None, model=model)
        optimizer.step()
        optimizer.zero_grad()
    assert (weight[0, ::2] == 0).all()
    assert (weight[0, 1::2] != 0).all()


def test_full_healing_takes_no_adapters_fields():
    with pytest.raises(ValueError, match="rank"):
        FullHealing(rank=8)
