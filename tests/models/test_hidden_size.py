"""A smaller hidden size equals a dense model that writes nothing into the dimensions that go."""

from __future__ import annotations

import pytest
import torch
from architectures import assert_generates, assert_reloads
from cutting import OWN_HEAD_DIM, assert_same, lively_model

from greenprune.errors import ModelError
from greenprune.models import Decoder, fit_class_and_config, keep_hidden


def without_dims(name: str, kept: list[int]):
    """A dense model that writes nothing into the dims that go, so that its norms see the others only."""
    model = lively_model(name)
    gone = sorted(set(range(32)) - set(kept))
    model.get_input_embeddings().weight.data[:, gone] = 0
    for view in map(Decoder(model).view, range(6)):
        for linear in (view.out, view.down):
            linear.weight.data[gone] = 0
        for path in view.layout.output_norms:
            view.norms[path].weight.data[gone] = -1.0 if "gemma" in name else 0.0  # Gemma multiplies by 1 + weight
    return model


def norms_of(model):
    decoder = Decoder(model)
    inner = [norm for layer in range(6) for norm in decoder.view(layer).norms.values()]
    return [*inner, model.get_submodule(decoder.layout.final_norm)]


@pytest.mark.parametrize("name", OWN_HEAD_DIM)
@pytest.mark.parametrize("size", [24, 26])
def test_kept_hidden_dims(name, size, tmp_path):
    """An RMS norm over `size` of 32 dims, the rest zero, is that over 32 times sqrt(size / 32)."""
    kept = sorted(torch.randperm(32, generator=torch.Generator().manual_seed(2))[:size].tolist())
    model, reference = without_dims(name, kept), without_dims(name, kept)
    keep_hidden(model, kept)
    refused = size % 4 and name in ("gemma2", "gemma3_text")
    assert fit_class_and_config(model) == ("trust_remote_code" if refused else "transformers")
    assert (model.config.model_type == name.partition("-")[0]) == (not size % 4 or "llama" not in name)
    assert model.config.hidden_size == size
    assert_generates(model)
    assert_reloads(model, tmp_path)

    for norm in norms_of(model):
        name_of_eps = "eps" if hasattr(norm, "eps") else "variance_epsilon"
        setattr(norm, name_of_eps, getattr(norm, name_of_eps) * 32 / size)
        offset = 1.0 if "gemma" in name else 0.0
        norm.weight.data = (norm.weight.data + offset) * (size / 32) ** -0.5 - offset
    embeddings = model.get_input_embeddings()
    if "gemma" in name:
        assert float(embeddings.embed_scale) == pytest.approx(size**0.5)
        embeddings.embed_scale.fill_(32**0.5)
    assert_same(model, reference)


def test_hidden_weights_by_hand():
    dense, model, kept = lively_model("llama-mha"), lively_model("llama-mha"), [1, 4, 30]
    keep_hidden(model, kept)
    assert model.lm_head.weight is model.model.embed_tokens.weight  # still tied
    before, layer = dense.model.layers[0], model.model.layers[0]
    assert torch.equal(model.model.embed_tokens.weight, dense.model.embed_tokens.weight[:, kept])
    assert torch.equal(layer.self_attn.q_proj.weight, before.self_attn.q_proj.weight[:, kept])
    assert torch.equal(layer.self_attn.o_proj.weight, before.self_attn.o_proj.weight[kept])
    assert torch.equal(layer.mlp.gate_proj.weight, before.mlp.gate_proj.weight[:, kept])
    assert torch.equal(layer.mlp.down_proj.weight, before.mlp.down_proj.weight[kept])
    assert torch.equal(layer.input_layernorm.weight, before.input_layernorm.weight[kept])
    assert torch.equal(model.model.norm.weight, dense.model.norm.weight[kept])


@pytest.mark.parametrize("name", ["opt", "gpt_neox"])
def test_hidden_size_that_makes_the_head_size_is_refused(name):
    model = lively_model(name)
    with pytest.raises(ModelError, match=f"got {name}, which derives it"):
        keep_hidden(model, range(24))
    assert_same(model, lively_model(name))
