"""FLAP: heads and channels whose outputs fluctuate least go, and their mean is kept as a bias (An et al. 2023).

What a channel gives is replaced by its mean, so what is lost is its variance, weighed by the columns that read it.
On purpose different from the original (CASIA-IVA-Lab/FLAP):

- the variance is that of all calibration tokens; the original adds up deviations from the mean so far, and none of
  the first sample;
- AL-AM counts the parameters of a head, with grouped-query attention too; the original truncates the number of
  channels that a head is worth to an integer;
- no layer loses all of its heads or channels, and heads leave so that grouped-query attention keeps its shape;
- MM structures take the number of heads from the ratio where it isn't given; the original's default is 8 in all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NoReturn

import torch
from torch import Tensor
from transformers import PreTrainedModel

from greenprune.collect import Statistics
from greenprune.config import FlapPruning
from greenprune.errors import ConfigError
from greenprune.models.decoder import Decoder, LayerView
from greenprune.models.stock_form import fit_class_and_config
from greenprune.models.surgery import add_output_bias
from greenprune.prune import Calibration, Removed
from greenprune.prune.widths import (
    TOLERANCE,
    Counts,
    Kept,
    Ranking,
    Units,
    apply_widths,
    best_kept,
    best_of_all,
    budget,
    global_counts,
    head_slots,
    one_width,
    rounded,
    units_of,
)

# -------------------------------------------------------------------------------------------------- maths

# weight [hidden, in], variance [in], square_sum [in] -> [in]
FLUCTUATIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "WIFV": lambda weight, variance, square_sum: variance * weight.square().sum(dim=0),
    "IFV": lambda weight, variance, square_sum: variance,
    "WIFN": lambda weight, variance, square_sum: weight.abs().mean(dim=0) * square_sum.sqrt(),
}


def standardised(scores: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1, so that layers can be compared."""
    return (scores - scores.mean()) / scores.std().clamp(min=torch.finfo(scores.dtype).tiny)


def compensation(weight: Tensor, mean: Tensor, kept: Tensor) -> Tensor:
    """What the removed inputs give on average: W[:, removed] @ mean[removed]. [out, in], [in], bool [in] -> [out]."""
    return weight[:, ~kept].to(mean) @ mean[~kept]


def uniform_counts(units: Sequence[Units], layers: Sequence[Ranking], config: FlapPruning) -> Counts:
    """UL-UM: heads and channels of every layer give the same share."""
    return [unit.uniform(config.ratio, config.round_to) for unit in units]


def manual_counts(units: Sequence[Units], layers: Sequence[Ranking], config: FlapPruning) -> Counts:
    """UL-MM: every layer loses the same number of heads, and channels make up for the rest."""
    gone = round(slots_to_remove(layers, config) / len(layers))
    wanted = [max(unit.slots - gone, 1) for unit in units]
    counts = [unit.kept(config.ratio, slots, config.round_to) for unit, slots in zip(units, wanted, strict=True)]
    if config.remove_heads is not None and [slots for slots, _ in counts] != wanted:
        refuse_heads(config)
    return counts


def ranked_counts(units: Sequence[Units], layers: Sequence[Ranking], config: FlapPruning) -> Counts:
    """AL-MM: a number of heads goes, in whichever layers they are; channels, ranked apart, make up for the rest."""
    staying = sum(unit.slots for unit in units) - slots_to_remove(layers, config)
    slots = best_of_all([layer.slot_scores for layer in layers], [1] * len(layers), [1] * len(layers), staying)
    spent = sum(unit.slot * count for unit, count in zip(units, slots, strict=True))
    left = budget(units, config.ratio, config.round_to) - spent
    least = sum(unit.channel * min(config.round_to, unit.channels) for unit in units)
    slack = TOLERANCE * sum(unit.total for unit in units)
    if not least - slack <= left <= sum(unit.channel * unit.channels for unit in units) + slack:
        refuse_heads(config)
    channels = best_of_all(
        [layer.channel_scores for layer in layers],
        [unit.channel for unit in units],
        [config.round_to] * len(layers),
        max(left, least),
    )
    widths = rounded(channels, config.round_to, [unit.channels for unit in units])
    return list(zip(slots, widths, strict=True))


def adaptive_counts(units: Sequence[Units], layers: Sequence[Ranking], config: FlapPruning) -> Counts:
    """AL-AM: heads and channels of all layers in one ranking."""
    return global_counts(units, layers, config.ratio, config.round_to)


COUNTS = {"UL-UM": uniform_counts, "UL-MM": manual_counts, "AL-MM": ranked_counts, "AL-AM": adaptive_counts}


def slots_to_remove(layers: Sequence[Ranking], config: FlapPruning) -> int:
    """Of all layers together, for the structures in which the number of heads is set and not found."""
    slots = sum(len(layer.slots) for layer in layers)
    heads = sum(len(slot) for layer in layers for slot in layer.slots)
    wanted = config.ratio * heads if config.remove_heads is None else config.remove_heads
    return min(round(wanted * slots / heads), slots - len(layers))  # each layer keeps one


def refuse_heads(config: FlapPruning) -> NoReturn:
    raise ConfigError(
        f"prune.remove_heads must leave channels to make up for the rest of prune.ratio {config.ratio}, got "
        f"{config.remove_heads}; change it, or let prune.structure AL-AM find the number of heads"
    )


# ------------------------------------------------------------------------------------------------- wiring


def prune_flap(model: PreTrainedModel, config: FlapPruning, calibration: Calibration) -> Removed:
    decoder, statistics = Decoder(model), calibration.required_statistics()
    prunable = config.prunable(len(decoder))
    layers = [rank_layer(view, layer, statistics, config) for layer, view in decoder.in_turn(prunable)]
    units = [units_of(decoder.view(layer), config.heads == "kv_group") for layer in prunable]
    counts = COUNTS[config.structure](units, layers, config)
    if config.uniform:
        counts = one_width(units, counts, config.ratio, config.round_to)
    kept = {
        index: best_kept(layer.slots, slots, layer.channel_scores, channels)
        for index, layer, (slots, channels) in zip(prunable, layers, counts, strict=True)
    }
    biases = {layer: mean_outputs(view, layer, statistics, kept[layer]) for layer, view in decoder.in_turn(kept)}
    removed = apply_widths(model, kept)
    if config.bias:
        for layer, (attention, mlp) in biases.items():
            add_output_bias(model, layer, attention, mlp)
        fit_class_and_config(model)
    return removed


def rank_layer(view: LayerView, layer: int, statistics: Statistics, config: FlapPruning) -> Ranking:
    channels = standardised(_scores(view.down.weight, "mlp", layer, statistics, config))
    attention = standardised(_scores(view.out.weight, "attention", layer, statistics, config).square())
    heads = attention.view(view.heads, view.head_dim).mean(dim=1)
    slots = head_slots(heads, view.kv_heads, config.heads == "kv_group")
    return Ranking(slots, heads[torch.tensor(slots)].mean(dim=1), channels)


def _scores(weight: Tensor, part: str, layer: int, statistics: Statistics, config: FlapPruning) -> Tensor:
    """Of the inputs of a projection, float64, on the CPU: [inputs]."""
    weight = weight.detach().float()
    variance, square_sum = (
        statistics[f"{part}.{name}"][layer, : weight.shape[1]].to(weight) for name in ("variance", "square_sum")
    )
    return FLUCTUATIONS[config.metric](weight, variance, square_sum).double().cpu()


def mean_outputs(
    view: LayerView, layer: int, statistics: Statistics, kept: Kept
) -> tuple[Tensor | None, Tensor | None]:
    """What attention and MLP lose on average, float64 [hidden]; None where nothing is lost."""
    heads, channels = torch.zeros(view.heads, dtype=torch.bool), torch.zeros(view.channels, dtype=torch.bool)
    heads[kept.heads] = channels[kept.channels] = True
    parts = (
        ("attention", view.out, heads.repeat_interleave(view.head_dim)),
        ("mlp", view.down, channels),
    )
    attention, mlp = (
        None
        if stays.all()
        else compensation(linear.weight.detach().cpu(), statistics[f"{part}.mean"][layer, : len(stays)], stays)
        for part, linear, stays in parts
    )
    return attention, mlp
