"""A base in 4 bits."""

from __future__ import annotations

import pytest
import torch
from healing import TRAIN, VALIDATION, config, logits
from transformers import AutoModelForCausalLM

from greenprune.heal.lora import heal_with_lora
from greenprune.heal.targets import target_modules


def test_nf4_merges_into_full_precision(checkpoint, tmp_path):
    before = AutoModelForCausalLM.from_pretrained(checkpoint).state_dict()
    model, history = heal_with_lora(checkpoint, TRAIN, VALIDATION, config(quantize="nf4"), tmp_path)
    assert history.loss_end < history.loss_start - 0.3
    assert history.loss_merged == pytest.approx(history.loss_end, abs=0.05)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not hasattr(model.config, "quantization_config")
    untouched = "model.layers.0.input_layernorm.weight"
    assert torch.equal(model.state_dict()[untouched], before[untouched])
    change = model.state_dict()["model.layers.0.mlp.up_proj.weight"] - before["model.layers.0.mlp.up_proj.weight"]
    assert torch.linalg.matrix_rank(change, atol=1e-5) <= 8  # an adapter, and no quantisation error


def test_nf4_gradients_are_exact_after_validation(checkpoint):
    """A forward in evaluation mode must not switch the 4-bit layers to kernels that have no backward."""
    from bitsandbytes.functional import dequantize_4bit

    from greenprune.heal.quantised import load_nf4

    def gradient(model) -> torch.Tensor:
        embedded = model.model.embed_tokens(VALIDATION).detach().requires_grad_()
        model.train()(inputs_embeds=embedded).logits.square().sum().backward()
        return embedded.grad

    four_bit = load_nf4(checkpoint)
    dequantised = AutoModelForCausalLM.from_pretrained(checkpoint)
    for name in target_modules(four_bit, "all-linear"):
        weight = four_bit.get_submodule(name).weight
        dequantised.get_submodule(name).weight.data = dequantize_4bit(weight.data, weight.quant_state)
    logits(four_bit.eval())
    assert torch.allclose(gradient(four_bit), gradient(dequantised), rtol=1e-4, atol=1e-4)
