"""Minitron's width pruning: heads, channels and hidden dimensions of the smallest activations go.

Muralidharan et al. 2024, as in NVIDIA ModelOpt; the statistics are `*.minitron` of collect/activations.py. All
prunable layers get one width. Exact widths are taken as they are. A ratio is shared by the targets: heads come
first, for they are few; channels, or else hidden dimensions, make up for the rest.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from greenprune.collect import Statistics
from greenprune.config import MinitronWidthPruning
from greenprune.errors import ConfigError
from greenprune.models.decoder import Decoder, LayerView
from greenprune.models.surgery import keep_hidden
from greenprune.prune import Calibration, Removed
from greenprune.prune.widths import (
    TOLERANCE,
    Kept,
    Units,
    apply_widths,
    best_kept,
    head_slots,
    one_width,
    units_of,
)

MUCH = 0.1  # of the hidden size: what channels can well make up for

# -------------------------------------------------------------------------------------------------- maths


def head_sizes(sizes: Tensor, head_dim: int) -> Tensor:
    """L2 norm over each head's components. [heads * head_dim] -> [heads]."""
    return torch.linalg.vector_norm(sizes.view(-1, head_dim), dim=1)


def widths_for(ratio: float, units: Units, targets: Collection[str], round_to: int) -> tuple[int, int]:
    """Slots and channels that stay of a layer of which `ratio` has to go."""
    if "heads" in targets and "ffn" in targets:
        return units.uniform(ratio, round_to)
    if "ffn" in targets:
        return units.slots, units.channels_for(ratio, units.slots, round_to)
    if "heads" in targets:
        return max(round(units.slots - ratio * units.total / units.slot), 1), units.channels
    return units.slots, units.channels


def hidden_for(share: float, hidden: int, heads: int, round_to: int, slack: float) -> int:
    """How many hidden dimensions stay: about `share` of them.

    A multiple of `round_to` and of the number of heads, which stock configurations of Llama ask for, where that is
    within `slack` of the share; else of `round_to`.
    """
    for multiple in (math.lcm(round_to, heads), round_to):
        kept = min(max(round(share * hidden / multiple), 1) * multiple, hidden)
        if abs(kept / hidden - share) <= slack:
            break
    return kept


def shared_widths(
    ratio: float, units: Units, targets: Collection[str], round_to: int, hidden: int, heads_per_slot: int
) -> tuple[int, int, int]:
    """Slots, channels and hidden dimensions that stay, so that the targets share the ratio.

    A matrix has the hidden size on one side and a width on the other: with both as targets each keeps about
    sqrt(1 - ratio). Raises ConfigError for a ratio that the targets can't reach.
    """
    if "hidden" not in targets:
        kept, dimensions = widths_for(ratio, units, targets, round_to), hidden
    else:
        slots, channels = widths_for(1 - math.sqrt(1 - ratio), units, targets, round_to)
        if "ffn" in targets:
            dimensions = hidden_for(math.sqrt(1 - ratio), hidden, slots * heads_per_slot, round_to, MUCH)
            channels = units.channels_for(1 - (1 - ratio) * hidden / dimensions, slots, round_to)
        else:
            share = (1 - ratio) / (1 - units.removed(slots, channels))
            dimensions = hidden_for(share, hidden, slots * heads_per_slot, round_to, TOLERANCE)
        kept = slots, channels
    reached = 1 - (1 - units.removed(*kept)) * dimensions / hidden
    grains = {"ffn": round_to * units.channel, "heads": units.slot, "hidden": round_to * units.total / hidden}
    if ratio - reached > max(TOLERANCE, min(grains[target] for target in targets) / units.total):
        raise ConfigError(
            f"prune.ratio must be at most {reached:.2f} with prune.targets {', '.join(targets)}, got {ratio}; lower it "
            "or add a target"
        )
    return *kept, dimensions


# ------------------------------------------------------------------------------------------------- wiring


def prune_minitron_width(model: PreTrainedModel, config: MinitronWidthPruning, calibration: Calibration) -> Removed:
    decoder, statistics = Decoder(model), calibration.required_statistics()
    prunable, hidden = config.prunable(len(decoder)), model.get_input_embeddings().embedding_dim
    widths = [widths_of(decoder.view(layer), hidden, config) for layer in prunable]
    counts, dimensions = [(slots, channels) for slots, channels, _ in widths], widths[0][2]
    if config.uniform:
        units = [units_of(decoder.view(layer), config.heads == "kv_group") for layer in prunable]
        counts = one_width(units, counts, config.ratio or 0.0, config.round_to)
    kept = {
        layer: kept_by_sizes(decoder.view(layer), layer, statistics, count, config)
        for layer, count in zip(prunable, counts, strict=True)
    }
    if dimensions < hidden:
        sizes = statistics["hidden.minitron"]
        keep_hidden(model, sorted(sizes.argsort(descending=True, stable=True)[:dimensions].tolist()))
    notes = [f"hidden size {hidden} became {dimensions}"] if dimensions < hidden else []
    return replace(apply_widths(model, kept), notes=notes)


def widths_of(view: LayerView, hidden: int, config: MinitronWidthPruning) -> tuple[int, int, int]:
    """Slots and channels that stay of a layer, and hidden dimensions."""
    units = units_of(view, config.heads == "kv_group")
    heads_per_slot = view.heads // units.slots
    if isinstance(config.targets, Mapping):
        return exact_widths(config.targets, view, hidden, heads_per_slot)
    assert config.ratio is not None, "a list of targets comes with a ratio"
    return shared_widths(config.ratio, units, config.targets, config.round_to, hidden, heads_per_slot)


def kept_by_sizes(
    view: LayerView, layer: int, statistics: Statistics, count: tuple[int, int], config: MinitronWidthPruning
) -> Kept:
    attention, channels = (statistics[f"{part}.minitron"][layer] for part in ("attention", "mlp"))
    heads = head_sizes(attention[: view.out.in_features], view.head_dim)
    slots = head_slots(heads, view.kv_heads, config.heads == "kv_group")
    return best_kept(slots, count[0], channels[: view.channels], count[1])


def exact_widths(targets: Mapping[Any, int], view: LayerView, hidden: int, heads_per_slot: int) -> tuple[int, int, int]:
    """Slots, channels and hidden dimensions that stay. Raises ConfigError for a width that the layer can't have."""
    now = {"heads": view.heads, "ffn": view.channels, "hidden": hidden}
    wanted = now | dict(targets)
    for name, width in wanted.items():
        step = heads_per_slot if name == "heads" else 1
        if not 0 < width <= now[name] or width % step:
            raise ConfigError(
                f"prune.targets.{name} must be one of {step}, {2 * step}, … {now[name]}, got {width}"
                + ("; heads leave in equal number from each KV group" if step > 1 else "")
            )
    return wanted["heads"] // heads_per_slot, wanted["ffn"], wanted["hidden"]
