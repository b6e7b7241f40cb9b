"""Change a model's shape in place, so that it saves as an ordinary checkpoint of its own architecture."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn
from transformers import PreTrainedModel

from greenprune.errors import ModelError
from greenprune.models.decoder import Decoder


def remove_layers(model: PreTrainedModel, indices: Collection[int]) -> None:
    """Remove decoder layers (0-based) in place; the rest keep their order and are numbered anew.

    Raises ModelError for an index that isn't there or when no layer would be left.
    """
    decoder = Decoder(model)
    total, gone = len(decoder), set(indices)
    if not gone <= set(range(total)) or len(gone) >= total:
        raise ModelError(f"layers to remove must be some but not all of 0..{total - 1}, got {sorted(gone)}")
    kept = [index for index in range(total) if index not in gone]
    decoder.owner.layers = nn.ModuleList([decoder.layers[index] for index in kept])
    for position, layer in enumerate(decoder.layers):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = position  # the KV cache indexes by it
    _keep_layers_in_config(model, kept, total)


def _keep_layers_in_config(model: PreTrainedModel, kept: list[int], total: int) -> None:
    """Set the layer count and cut lists with an entry a layer (`layer_types` and its like)."""
    config = model.config
    for name, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == total:
            setattr(config, name, [value[index] for index in kept])
    config.num_hidden_layers = len(kept)
    if hasattr(config, "max_window_layers"):  # Qwen: layers from this one on use the sliding window
        config.max_window_layers = sum(index < config.max_window_layers for index in kept)
