"""Cutting a random model by hand, and the dense model that it must equal."""

from __future__ import annotations

import torch
from architectures import ARCHITECTURES, logits_of, random_model

from greenprune.models import Decoder, keep_channels, keep_heads
from greenprune.models.architectures import ARCHITECTURES as ENTRIES
from greenprune.models.architectures import Architecture


def entry_of(name: str) -> Architecture:
    """Of a row of the tests: rows such as llama-mha share one."""
    return ENTRIES[name.partition("-")[0]]


HEADS, CHANNELS = [0, 2], [0, 1, 3, 5, 8, 13, 21, 34]  # one head of each KV group, where there are groups
SOME_LAYERS = [1, 4]
GROUPED = [name for name, settings in ARCHITECTURES.items() if settings.get("num_key_value_heads") == 2]
OWN_HEAD_DIM = [name for name in ARCHITECTURES if not entry_of(name).layout.head_dim_from_hidden]


def lively_model(name: str, dtype: torch.dtype = torch.float32):
    """A model in which every head and channel matters, and no bias or norm is trivial."""
    model = random_model(name, dtype)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator).to(dtype)
    return model


def cut(model, layers, heads=HEADS, channels=CHANNELS):
    for layer in layers:
        keep_heads(model, layer, heads)
        keep_channels(model, layer, channels)
    return model


def silence(model, layers, heads=HEADS, channels=CHANNELS):
    """Zero what all but these heads and channels give; the model stays dense."""
    for view in map(Decoder(model).view, layers):
        for linear, kept, size in ((view.out, heads, view.head_dim), (view.down, channels, 1)):
            for unit in set(range(linear.in_features // size)) - set(kept):
                linear.weight.data[:, unit * size : (unit + 1) * size] = 0
    return model


def assert_same(model, reference) -> None:
    torch.testing.assert_close(logits_of(model), logits_of(reference), atol=1e-4, rtol=1e-4)
