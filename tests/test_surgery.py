"""Models cut by hand equal dense ones whose cut parts give nothing; and what they save loads anywhere."""

from __future__ import annotations

import pytest
import torch
from architectures import ARCHITECTURES, TOKENS, logits_of, random_model
from transformers import AutoModelForCausalLM

from greenprune.models import (
    Decoder,
    keep_channels,
    keep_heads,
    settle,
)

HEADS, CHANNELS = [0, 2], [0, 1, 3, 5, 8, 13, 21, 34]  # heads 0 and 2 of 4: one of each KV group


def lively_model(name: str, dtype: torch.dtype = torch.float32):
    """Random weights of a size that makes every head and channel matter, and biases and norms that aren't trivial."""
    model = random_model(name, dtype)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator).to(dtype)
    return model


def silence(model, layer: int, heads=None, channels=None) -> None:
    """Zero what all but these heads and channels give, in the dense model."""
    view = Decoder(model).view(layer)
    for linear, kept, size in ((view.out, heads, view.head_dim), (view.down, channels, 1)):
        if kept is not None:
            for unit in set(range(linear.in_features // size)) - set(kept):
                linear.weight.data[:, unit * size : (unit + 1) * size] = 0


def assert_same(model, reference) -> None:
    torch.testing.assert_close(logits_of(model), logits_of(reference), atol=1e-5, rtol=1e-5)


def assert_generates(model) -> None:
    with_cache, without = (
        model.generate(TOKENS, max_new_tokens=6, min_new_tokens=6, do_sample=False, use_cache=use)
        for use in (True, False)
    )
    assert torch.equal(with_cache, without)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_view(name):
    model = lively_model(name)
    view = Decoder(model).view(1)
    grouped = ARCHITECTURES[name].get("num_key_value_heads", 4)
    assert (view.heads, view.kv_heads, view.head_dim, view.channels) == (4, grouped, 8, 48)
    assert view.query.weight.shape == (32, 32)
    assert view.key.weight.shape == view.value.weight.shape == (grouped * 8, 32)
    assert view.up.weight.shape == (48, 32)
    parts = [rows for rows in (view.query, view.key, view.value, view.gate, view.up) if rows is not None]
    for linear in view.linears.values():  # the parts are the whole of each matrix, each row once
        indices = [rows.index for rows in parts if rows.linear is linear]
        if indices:
            assert torch.cat(indices).sort().values.tolist() == list(range(linear.out_features))
        else:
            assert linear in (view.out, view.down)
    assert sum(m.weight.numel() for m in view.linears.values()) == sum(
        p.numel() for p in view.module.parameters() if p.dim() == 2
    )
    assert all(norm.weight.shape == (32,) for norm in view.norms.values())


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("layers", [range(6), [1, 4]], ids=["uniform", "per-layer"])
def test_cut_equals_silenced(name, layers, tmp_path):
    model, reference = lively_model(name), lively_model(name)
    for layer in layers:
        keep_heads(model, layer, HEADS)
        keep_channels(model, layer, CHANNELS)
        silence(reference, layer, HEADS, CHANNELS)
    assert_same(model, reference)
    needs = settle(model)
    assert_same(model, reference)
    assert_generates(model)
    model.save_pretrained(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=needs == "trust_remote_code")
    torch.testing.assert_close(logits_of(reloaded), logits_of(model), atol=0, rtol=0)
