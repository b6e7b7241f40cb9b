"""The view of a layer shows all of it, in every architecture."""

from __future__ import annotations

import pytest
import torch
from architectures import ARCHITECTURES, logits_of
from cutting import entry_of, lively_model

from greenprune.models import Decoder


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_view(name):
    view = Decoder(lively_model(name)).view(1)
    kv_heads = ARCHITECTURES[name].get("num_key_value_heads", 4)
    assert (view.heads, view.kv_heads, view.head_dim, view.channels) == (4, kv_heads, 8, 48)
    shapes = [rows.weight.shape for rows in (view.query, view.key, view.value, view.up)]
    assert shapes == [(32, 32), (kv_heads * 8, 32), (kv_heads * 8, 32), (48, 32)]
    assert (view.gate is None) == (entry_of(name).layout.gate is None)
    assert view.query.bias is None or view.query.bias.shape == (32,)

    parts = [rows for rows in (view.query, view.key, view.value, view.gate, view.up) if rows is not None]
    for linear in view.linears.values():  # the parts make up each matrix, each row once
        indices = [rows.index for rows in parts if rows.linear is linear]
        whole = torch.cat(indices).sort().values.tolist() if indices else list(range(linear.out_features))
        assert whole == list(range(linear.out_features))
        assert bool(indices) != (linear in (view.out, view.down))
    matrices = sum(parameter.numel() for parameter in view.module.parameters() if parameter.dim() == 2)
    assert sum(linear.weight.numel() for linear in view.linears.values()) == matrices
    vectors = [norm.weight for norm in view.norms.values()]
    biases = [linear.bias for linear in view.linears.values() if linear.bias is not None]
    biases += [norm.bias for norm in view.norms.values() if getattr(norm, "bias", None) is not None]
    norms_of_heads = 2 if hasattr(view.attention, "q_norm") else 0
    assert len(vectors) + len(biases) + norms_of_heads == sum(p.dim() == 1 for p in view.module.parameters())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_linears_are_in_order_of_execution(name):
    model, order = lively_model(name), []
    view = Decoder(model).view(0)
    for path, linear in view.linears.items():
        linear.register_forward_hook(lambda *_, path=path: order.append(path))
    logits_of(model)
    assert order == list(view.linears)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_norms_feed_attention_and_mlp(name):
    model, seen = lively_model(name), {}
    view = Decoder(model).view(2)
    for norm, reader in ((view.input_norm, view.query.linear), (view.mlp_norm, view.up.linear)):
        norm.register_forward_hook(lambda module, _, output: seen.update({module: output}))
        reader.register_forward_pre_hook(lambda module, inputs: seen.update({module: inputs[0]}))
    logits_of(model)
    for norm, reader in ((view.input_norm, view.query.linear), (view.mlp_norm, view.up.linear)):
        assert torch.equal(seen[norm].flatten(), seen[reader].flatten())
