"""How wide every layer becomes: what can leave a layer, what that saves, and how a ratio is reached.

Heads leave in slots, so that grouped-query attention keeps its shape: by default a slot has one query head of
every KV group and the KV heads stay; with `kv_group`, and where each query head has its own KV head, a slot is a
KV head and the query heads that read it. Channels leave one by one, and widths are rounded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor
from transformers import PreTrainedModel

from greenprune.errors import ConfigError
from greenprune.models.decoder import Decoder, LayerView
from greenprune.models.stock_form import fit_class_and_config
from greenprune.models.surgery import keep_channels, keep_heads
from greenprune.prune import Removed, parameter_count

TOLERANCE = 0.04  # of a layer's parameters: how far the original's counts may miss the ratio

# -------------------------------------------------------------------------------------------------- maths


def head_slots(scores: Tensor, kv_heads: int, whole_groups: bool) -> list[list[int]]:
    """The query heads of each slot, the slot to remove first first. scores [heads], lower is less important.

    The j-th lowest head of every KV group makes the j-th slot; with `whole_groups` a KV group does, ranked by the
    sum of its scores.
    """
    groups = scores.view(kv_heads, -1)
    first = torch.arange(kv_heads)[:, None] * groups.shape[1]
    if whole_groups or groups.shape[1] == 1:
        order = groups.sum(dim=1).argsort(stable=True)
        return (first + torch.arange(groups.shape[1]))[order].tolist()
    return (first + groups.argsort(dim=1, stable=True).cpu()).T.tolist()


def rounded(counts: Sequence[int], round_to: int, full: Sequence[int]) -> list[int]:
    """Widths near the counts whose sum stays: multiples of `round_to`, or a layer's full width; none is 0.

    The largest remainders are rounded up.
    """
    widths = [
        most if count == most else max(count // round_to * round_to, min(round_to, most))
        for count, most in zip(counts, full, strict=True)
    ]
    while sum(widths) + round_to / 2 <= sum(counts):
        layer = max(
            (layer for layer, width in enumerate(widths) if width < full[layer]),
            key=lambda layer: counts[layer] - widths[layer],
        )
        widths[layer] = min(widths[layer] + round_to, full[layer])
    return widths


def refuse_ratio(ratio: float, most: float) -> NoReturn:
    raise ConfigError(
        f"prune.ratio must be at most {most:.2f} here, where every layer keeps heads and prune.round_to channels, got "
        f"{ratio}; lower it, try prune.heads=kv_group, or remove whole layers too (method sequence)"
    )


def best_of_all(scores: Sequence[Tensor], costs: Sequence[float], least: Sequence[int], budget: float) -> list[int]:
    """How many units stay of each kind, when all are ranked together and kept while the budget lasts.

    scores: [units] of each kind, higher stays; costs: of one unit of each kind; least: units of each kind that stay
    in any case. The sum of costs is the one nearest to the budget.
    """
    protected = [values.clone() for values in scores]
    for values, count in zip(protected, least, strict=True):
        values[values.argsort(descending=True, stable=True)[:count]] = torch.inf
    ranked = torch.cat(protected)
    spent = torch.cat([torch.full_like(values, cost) for values, cost in zip(scores, costs, strict=True)])
    order = ranked.argsort(descending=True, stable=True)
    count = int((spent[order].cumsum(dim=0) - budget).abs().argmin()) + 1
    kept = torch.zeros_like(ranked, dtype=torch.bool)
    kept[order[:count]] = True
    return [int(part.sum()) for part in kept.split([len(values) for values in scores])]


@dataclass(frozen=True)
class Units:
    """What can leave a layer. total: all its parameters; slot, channel: parameters of one of each.

    whole: a slot is a KV head with all its query heads, not one query head of each KV head.
    """

    total: int
    slot: int
    slots: int
    whole: bool
    channel: int
    channels: int

    @property
    def fixed(self) -> int:
        """Parameters that stay whatever leaves: norms, output biases, and keys and values in a group."""
        return self.total - self.slots * self.slot - self.channels * self.channel

    def removed(self, slots: int, channels: int) -> float:
        """The share of the layer that is gone where so many stay."""
        return 1 - (self.fixed + slots * self.slot + channels * self.channel) / self.total

    def channels_for(self, ratio: float, slots: int, round_to: int) -> int:
        """How many channels stay, as a multiple of `round_to`, so that the layer comes nearest to the ratio."""
        wanted = ((1 - ratio) * self.total - self.fixed - slots * self.slot) / self.channel
        if wanted > self.channels - round_to / 2:
            return self.channels
        return max(round(wanted / round_to) * round_to, min(round_to, self.channels))

    def kept(self, ratio: float, slots: int, round_to: int) -> tuple[int, int]:
        """Slots and channels that stay: these slots, or as near as it takes for channels to make up for the rest.

        Raises ConfigError for a ratio that no width reaches.
        """
        fits = [(count, self.channels_for(ratio, count, round_to)) for count in range(1, self.slots + 1)]
        misses = {fit: abs(self.removed(*fit) - ratio) for fit in fits}
        least = min(misses.values())
        if least > max(TOLERANCE, round_to * self.channel / self.total):
            refuse_ratio(ratio, self.removed(1, min(round_to, self.channels)))
        near = [fit for fit in fits if misses[fit] <= max(TOLERANCE, least)]
        return min(near, key=lambda fit: (abs(fit[0] - slots), misses[fit]))

    def uniform(self, ratio: float, round_to: int) -> tuple[int, int]:
        """Slots and channels that stay where heads and channels each give their share.

        Whole slots: the counts of the originals, int(ratio * n) of both, where they come near the ratio.
        """
        slots, channels = (count - int(ratio * count) for count in (self.slots, self.channels))
        channels = min(max(round(channels / round_to), 1) * round_to, self.channels)
        if self.whole and abs(self.removed(slots, channels) - ratio) <= TOLERANCE:
            return slots, channels
        return self.by_share(ratio, round_to)

    def by_share(self, ratio: float, round_to: int) -> tuple[int, int]:
        """Slots and channels that stay where the slots' share is rounded, and channels make up for the rest.

        Whole slots: to the nearest. Else down: a slot within groups is a third of the heads where three share a KV
        head, and taking it for a fifth costs far more than the channels do (experiments/LOG.md).
        """
        gone = ratio * self.slots
        return self.kept(ratio, self.slots - (round(gone) if self.whole else int(gone)), round_to)


Counts = list[tuple[int, int]]  # slots and channels that stay, for each layer


def budget(units: Sequence[Units], ratio: float, round_to: int) -> float:
    """Parameters of heads and channels that stay. Raises ConfigError where they aren't enough for the least width."""
    total, fixed = sum(unit.total for unit in units), sum(unit.fixed for unit in units)
    least = sum(unit.slot + min(round_to, unit.channels) * unit.channel for unit in units)
    if (1 - ratio) * total < fixed + least:
        refuse_ratio(ratio, 1 - (fixed + least) / total)
    return (1 - ratio) * total - fixed


@dataclass(frozen=True)
class Ranking:
    """A layer's slots of heads, the worst first, their scores [slots], and those of channels [channels]."""

    slots: list[list[int]]
    slot_scores: Tensor
    channel_scores: Tensor


def global_counts(units: Sequence[Units], layers: Sequence[Ranking], ratio: float, round_to: int) -> Counts:
    """The counts of one threshold over the slots and channels of all layers, each at the price of its parameters.

    units, ratio: of the dense layers; layers: what is left to choose from.
    """
    counts = best_of_all(
        [layer.slot_scores for layer in layers] + [layer.channel_scores for layer in layers],
        [unit.slot for unit in units] + [unit.channel for unit in units],
        [1] * len(layers) + [round_to] * len(layers),
        budget(units, ratio, round_to),
    )
    slots, channels = counts[: len(layers)], counts[len(layers) :]
    widths = rounded(channels, round_to, [len(layer.channel_scores) for layer in layers])
    return list(zip(slots, widths, strict=True))


def one_width(units: Sequence[Units], counts: Counts, ratio: float, round_to: int) -> Counts:
    """The counts of all layers brought to one width that reaches the same ratio."""
    if len(set(counts)) == 1:
        return counts
    if len(set(units)) > 1:
        raise ConfigError(
            "prune.uniform needs layers of one width, got a model whose layers differ; set prune.uniform=false"
        )
    mean = sum(slots for slots, _ in counts) / len(counts)
    return [units[0].kept(ratio, round(mean), round_to)] * len(counts)


# ------------------------------------------------------------------------------------------------- wiring


def units_of(view: LayerView, whole_groups: bool) -> Units:
    query, key = (_parameters_per_row(rows) for rows in (view.query.linear, view.key.linear))
    group = view.heads // view.kv_heads
    head = view.head_dim * (query + view.out.out_features)
    whole = whole_groups or group == 1
    if whole:
        slot, slots = group * head + 2 * view.head_dim * key, view.kv_heads
    else:
        slot, slots = view.kv_heads * head, group
    inputs = [view.up.linear] if view.gate is None else [view.up.linear, view.gate.linear]
    channel = sum(map(_parameters_per_row, inputs)) + view.down.out_features
    return Units(parameter_count(view.module), slot, slots, whole, channel, view.channels)


def _parameters_per_row(linear: torch.nn.Linear) -> int:
    return linear.in_features + (linear.bias is not None)


@dataclass(frozen=True)
class Kept:
    """What stays of a layer, ascending."""

    heads: list[int]
    channels: list[int]


def best_kept(head_slots: Sequence[Sequence[int]], slots: int, channel_scores: Tensor, channels: int) -> Kept:
    """The `slots` last slots and the `channels` best channels; of equal scores the first stay."""
    best = channel_scores.argsort(descending=True, stable=True)[:channels]
    kept = head_slots[len(head_slots) - slots :]
    return Kept(sorted(head for slot in kept for head in slot), sorted(best.tolist()))


def keep_units(model: PreTrainedModel, layer: int, kept: Kept) -> None:
    """Remove all but these heads and channels of a layer in place; `fit_class_and_config` must follow."""
    view = Decoder(model).view(layer)
    if len(kept.heads) < view.heads:
        keep_heads(model, layer, kept.heads)
    if len(kept.channels) < view.channels:
        keep_channels(model, layer, kept.channels)


def apply_widths(model: PreTrainedModel, kept: Mapping[int, Kept]) -> Removed:
    """Narrow the layers in place, and make class and configuration fit."""
    for layer, _ in Decoder(model).in_turn(kept):
        keep_units(model, layer, kept[layer])
    fit_class_and_config(model)
    return kept_of(kept)


def kept_of(kept: Mapping[int, Kept]) -> Removed:
    """What a method says that it left."""
    return Removed(
        kept_heads={layer: units.heads for layer, units in kept.items()},
        kept_channels={layer: units.channels for layer, units in kept.items()},
    )
