"""LLM-Pruner: coupled rows and columns go together, those that the loss needs least (Ma et al. 2023).

Every weight has a score; summed over the row that makes a channel, or the column that reads it, it is that channel's
in one matrix; a reduction over the coupled matrices gives the channel's, and the sum over head_dim channels a head's.
On purpose different from the original (horseee/LLM-Pruner):

- a KV group is scored with the contiguous query heads that read it; the original folds them by stride, and so mixes the
  query heads of different groups into the score of one;
- by default grouped query heads are scored on their own and leave within their groups, and KV heads stay;
- the MLP's widths are multiples of `round_to`, and where whole heads would miss the ratio by more than
  widths.TOLERANCE of a layer, the number of channels makes up for it. With round_to=1, models of many heads keep the
  original's counts;
- the global threshold is set where the parameters reach the ratio; no layer loses all heads or channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from greenprune.collect import Statistics, collect
from greenprune.collect.gradients import part_sums
from greenprune.config import LlmPrunerPruning
from greenprune.models.decoder import Decoder, LayerView
from greenprune.prune import Calibration, Removed
from greenprune.prune.sequence import composed
from greenprune.prune.widths import (
    TOLERANCE,
    Counts,
    Ranking,
    Units,
    apply_widths,
    best_kept,
    global_counts,
    head_slots,
    one_width,
    units_of,
)

# -------------------------------------------------------------------------------------------------- maths

# Over the coupled matrices: [matrices, channels] -> [channels]
REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda scores: scores.sum(dim=0),
    "mean": lambda scores: scores.mean(dim=0),
    "max": lambda scores: scores.amax(dim=0),
    "prod": lambda scores: scores.prod(dim=0),
    "first": lambda scores: scores[0],  # the root of the group: queries or keys, gates or first projections
}
# Of a weight, for the importances that need no gradient
MAGNITUDES: dict[str, Callable[[Tensor], Tensor]] = {"l1": torch.abs, "l2": torch.square}


def reduced(scores: Sequence[Tensor], reduction: str) -> Tensor:
    """One score a channel out of one in each coupled matrix, in float64 for the sake of products."""
    return REDUCTIONS[reduction](torch.stack([part.double() for part in scores]))


def folded(scores: Tensor, kv_heads: int, head_dim: int) -> Tensor:
    """Scores of query heads added up in those of the KV head they read: [heads * head_dim] -> [kv_heads * head_dim]."""
    return scores.view(kv_heads, -1, head_dim).sum(dim=1).flatten()


def head_scores(
    parts: Mapping[str, Tensor], kv_heads: int, head_dim: int, reduction: str, whole_groups: bool
) -> Tensor:
    """Scores of query heads [heads], of all that leaves with them; of whole groups, the same for all heads in one."""
    query, out = parts["query"], parts["out"]
    group = len(query) // head_dim // kv_heads
    if group > 1 and not whole_groups:
        coupled = [query, out]  # keys and values serve the heads that stay
    elif group > 1:
        coupled = [parts["key"], folded(query, kv_heads, head_dim), parts["value"], folded(out, kv_heads, head_dim)]
    else:
        coupled = [query, parts["key"], parts["value"], out]
    heads = reduced(coupled, reduction).view(-1, head_dim).sum(dim=1)
    return heads.repeat_interleave(group) / group if whole_groups else heads


def channel_scores(parts: Mapping[str, Tensor], reduction: str) -> Tensor:
    return reduced([parts[name] for name in ("gate", "up", "down") if name in parts], reduction)


def local_counts(units: Units, head_dim: int, ratio: float, round_to: int) -> tuple[int, int]:
    """Slots and channels that stay in a layer: where whole groups leave, the original's counts if they come near.

    Of C rows int(C * (1 - ratio)) stay, and a head of which some stay stays whole.
    """
    rows = units.slots * head_dim
    slots = units.slots - (rows - int(rows * (1 - ratio))) // head_dim
    channels = min(max(round(int(units.channels * (1 - ratio)) / round_to), 1) * round_to, units.channels)
    if units.whole and slots and abs(units.removed(slots, channels) - ratio) <= TOLERANCE:
        return slots, channels
    return units.by_share(ratio, round_to)


# ------------------------------------------------------------------------------------------------- wiring


def prune_llm_pruner(model: PreTrainedModel, config: LlmPrunerPruning, calibration: Calibration) -> Removed:
    total, goals = len(Decoder(model)), Goals(model, config)
    removed, statistics = Removed(), calibration.statistics
    for step in range(1, config.iterations + 1):
        if step > 1 and (want := config.statistics()):
            statistics = collect(model, calibration.required_tokens(), want, batch_size=calibration.batch_size)
        layers = rank_layers(model, config, statistics, goals.whole_groups)
        kept = {
            layer: best_kept(ranking.slots, slots, ranking.channel_scores, channels)
            for (layer, ranking), (slots, channels) in zip(
                layers.items(), goals.counts(step, list(layers.values())), strict=True
            )
        }
        removed = composed(removed, apply_widths(model, kept), total)
    return removed


class Goals:
    """How much of each layer of a dense model stays after each step; the share removed grows by steps of one size.

    whole_groups: of each prunable layer, whether its slots are KV heads with their query heads.
    """

    def __init__(self, dense: PreTrainedModel, config: LlmPrunerPruning) -> None:
        decoder, self.config = Decoder(dense), config
        views = {layer: decoder.view(layer) for layer in config.prunable(len(decoder))}
        self.head_dim = next(iter(views.values())).head_dim
        self.units = [units_of(view, config.heads == "kv_group") for view in views.values()]
        self.whole_groups = {layer: units.whole for layer, units in zip(views, self.units, strict=True)}

    def counts(self, step: int, layers: Sequence[Ranking]) -> Counts:
        """Slots and channels that stay in each layer after a step; layers: as the step before left them."""
        config, share = self.config, self.config.ratio * step / self.config.iterations
        if config.scope == "global" and not config.uniform:
            return global_counts(self.units, layers, share, config.round_to)
        # Heads leave in leaps and channels make up for them, so neither must leave before its time is over.
        return [
            (min(len(layer.slots), max(now[0], last[0])), min(len(layer.channel_scores), max(now[1], last[1])))
            for layer, now, last in zip(layers, self._local(share), self._local(config.ratio), strict=True)
        ]

    def _local(self, ratio: float) -> Counts:
        round_to = self.config.round_to
        counts = [local_counts(units, self.head_dim, ratio, round_to) for units in self.units]
        return one_width(self.units, counts, ratio, round_to) if self.config.uniform else counts


def rank_layers(
    model: PreTrainedModel, config: LlmPrunerPruning, statistics: Statistics | None, whole_groups: Mapping[int, bool]
) -> dict[int, Ranking]:
    """The slots and channels of the layers named by `whole_groups`, scored; statistics: of the model as it is."""
    decoder, random = Decoder(model), torch.Generator().manual_seed(config.seed)
    rankings = {}
    for layer, view in decoder.in_turn(whole_groups):
        whole = whole_groups[layer]
        parts = part_scores(view, layer, config, statistics, random)
        heads = head_scores(parts, view.kv_heads, view.head_dim, config.reduction, whole)
        slots = head_slots(heads, view.kv_heads, whole)
        if not whole and view.heads == view.kv_heads:
            slots = [list(range(view.heads))]  # one query head is left in each group, and stays
        slot_scores = heads[torch.tensor(slots)].sum(dim=1)
        rankings[layer] = Ranking(slots, slot_scores, channel_scores(parts, config.reduction))
    return rankings


def part_scores(
    view: LayerView, layer: int, config: LlmPrunerPruning, statistics: Statistics | None, random: torch.Generator
) -> dict[str, Tensor]:
    """Scores of the channels of each coupled part, on the CPU."""
    widths = part_widths(view)
    if config.importance == "random":
        return {part: torch.rand(width, generator=random) for part, width in widths.items()}
    if magnitude := MAGNITUDES.get(config.importance):
        sums = part_sums(view, lambda linear: magnitude(linear.weight.detach().float()))
        return {part: scores.cpu() for part, scores in sums.items()}
    assert statistics is not None, "the method's entry asks for statistics"
    return {part: statistics[f"{config.importance}.{part}"][layer, :width] for part, width in widths.items()}


def part_widths(view: LayerView) -> dict[str, int]:
    """The coupled parts of a layer and how many channels each makes or reads."""
    heads, kv_heads = view.heads * view.head_dim, view.kv_heads * view.head_dim
    gate = {} if view.gate is None else {"gate": view.channels}
    attention = {"query": heads, "key": kv_heads, "value": kv_heads, "out": heads}
    return attention | gate | {"up": view.channels, "down": view.channels}
