"""2SSP: channels of small activations go from every MLP, then attention sublayers one by one (Sandri et al. 2025).

Each layer keeps the same number of channels: those with the largest mean, over samples, of the L2 norm over tokens of
what they give. Behind them attention sublayers leave, each time the one without which the model predicts the first
calibration sample best. How many, the paper's formula says: it grows faster than the ratio where MLPs are large beside
attention.

From the paper alone. Where it says nothing: channels make up for what whole sublayers miss of the ratio; of equals the
first goes.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor
from transformers import PreTrainedModel

from greenprune.collect.layerwise import LayerByLayer
from greenprune.collect.removal import losses_without_attention
from greenprune.config import TwoStagePruning
from greenprune.errors import ConfigError
from greenprune.models.decoder import Decoder, of_one_width
from greenprune.models.stock_form import fit_class_and_config
from greenprune.models.surgery import keep_channels, remove_attention
from greenprune.prune import Calibration, Removed, parameter_count
from greenprune.prune.widths import units_of

log = logging.getLogger("greenprune")

# -------------------------------------------------------------------------------------------------- maths


def attentions_to_remove(layers: int, ratio: float, mlp: int, attention: int, alpha: float) -> int:
    """How many attention sublayers go. mlp, attention: parameters of one of each. Section 3.3 of the paper."""
    return round(layers * ratio ** (mlp / attention / alpha))


def channel_sizes(values: Tensor) -> Tensor:
    """Sum over samples of the L2 norm over tokens. values [B, T, channels] -> float64 [channels]."""
    return torch.linalg.vector_norm(values.float(), dim=1).double().sum(dim=0)


# ------------------------------------------------------------------------------------------------- wiring


def prune_in_two_stages(model: PreTrainedModel, config: TwoStagePruning, calibration: Calibration) -> Removed:
    decoder, tokens = Decoder(model), calibration.required_tokens()
    prunable = config.prunable(len(decoder))
    channels, attentions = what_goes(decoder, config)
    kept = {layer: largest(sizes, channels) for layer, sizes in sizes_by_layer(model, prunable, calibration).items()}
    for layer, _ in decoder.in_turn(prunable):
        if channels < decoder.view(layer).channels:
            keep_channels(model, layer, kept[layer])
    attending = list(prunable)
    for _ in range(attentions):
        losses = losses_without_attention(model, tokens[:1], attending)
        layer = attending.pop(int(losses.argmin()))
        remove_attention(model, layer)
        log.info("attention of layer %d removed: loss %.4f", layer, losses.min())
    fit_class_and_config(model)
    return Removed(
        kept_heads={layer: list(range(decoder.view(layer).heads)) for layer in prunable},
        kept_channels=kept,
        notes=[f"attention removed from layers {sorted(set(prunable) - set(attending))}"] if attentions else [],
    )


def what_goes(decoder: Decoder, config: TwoStagePruning) -> tuple[int, int]:
    """Channels that every layer keeps, and attention sublayers that go. Raises ConfigError for a ratio too high."""
    prunable = config.prunable(len(decoder))
    views = [decoder.view(layer) for layer in prunable]
    if not of_one_width(views):
        raise ConfigError(
            "two_stage needs layers of one width, got a model whose layers differ; let it come first (method sequence)"
        )
    units, attention = units_of(views[0], whole_groups=False), parameter_count(views[0].attention)
    mlp = units.channels * units.channel
    gone = attentions_to_remove(len(views), config.ratio, mlp, attention, config.alpha)
    gone = min(gone, len(views), int(config.ratio * units.total * len(views) / attention))
    wanted = units.channels - (config.ratio * units.total - gone * attention / len(views)) / units.channel
    channels = min(round(wanted / config.round_to) * config.round_to, units.channels)
    if channels < config.round_to:
        most = (mlp - config.round_to * units.channel + gone * attention / len(views)) / units.total
        raise ConfigError(
            f"prune.ratio must be at most {most:.2f} here, where {gone} attention sublayers go and every MLP keeps "
            f"prune.round_to channels, got {config.ratio}; lower it or raise prune.alpha"
        )
    return channels, gone


def sizes_by_layer(model: PreTrainedModel, layers: range, calibration: Calibration) -> dict[int, Tensor]:
    """`channel_sizes` of each of these layers of the dense model."""
    walk = LayerByLayer(model, calibration.required_tokens(), calibration.batch_size)
    found: dict[int, Tensor] = {}
    for layer, view in walk.decoder.in_turn(range(layers.stop)):
        if layer in layers:
            found[layer] = torch.zeros(view.channels, dtype=torch.float64)
        for rows in walk.rows:
            output, seen = walk.watched(layer, {"down": view.down}, rows)
            if layer in layers:
                found[layer] += channel_sizes(seen["down"].read.unflatten(0, (len(rows), -1))).cpu()
            walk.states[rows] = output.cpu()
    return found


def largest(sizes: Tensor, count: int) -> list[int]:
    """Of equals the first. Ascending."""
    return sorted(sizes.argsort(descending=True, stable=True)[:count].tolist())
