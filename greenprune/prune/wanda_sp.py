"""Wanda-sp: heads and channels whose columns have the smallest products of weight and input norm go.

The structured form of Wanda that FLAP is compared with (An et al. 2023, section 4). Scores are made of statistics
of the dense model, so that one calibration pass serves all ratios. The original prunes layer after layer and scores
each behind the pruned ones: `sequential` does that, on the calibration tokens. At ratio 0.2 on SmolLM2-135M the two
agree on 95 % of the heads and 92 % of the channels, and the dense statistics leave the lower perplexity
(tests/prune/test_width_reference.py).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from transformers import PreTrainedModel

from greenprune.collect.layerwise import LayerByLayer, squares
from greenprune.config import WandaSpPruning
from greenprune.models.decoder import Decoder, LayerView
from greenprune.models.stock_form import fit_class_and_config
from greenprune.prune import Calibration, Removed
from greenprune.prune.widths import (
    Kept,
    apply_widths,
    best_kept,
    head_slots,
    keep_units,
    kept_of,
    one_width,
    units_of,
)


def input_scores(weight: Tensor, square_sum: Tensor) -> Tensor:
    """Mean over rows of |W_ij| * ||X_j||_2. weight [out, in], square_sum float64 [in] -> [in], on its device."""
    return weight.float().abs().mean(dim=0).to(square_sum) * square_sum.sqrt()


def prune_wanda_sp(model: PreTrainedModel, config: WandaSpPruning, calibration: Calibration) -> Removed:
    counts = counts_of(Decoder(model), config)
    if config.sequential:
        return _prune_layer_by_layer(model, config, counts, calibration)
    statistics, kept = calibration.required_statistics(), {}
    for layer, view in Decoder(model).in_turn(counts):
        attention, mlp = (statistics[f"{part}.square_sum"][layer] for part in ("attention", "mlp"))
        kept[layer] = kept_by_inputs(view, attention, mlp, counts[layer], config)
    return apply_widths(model, kept)


def counts_of(decoder: Decoder, config: WandaSpPruning) -> dict[int, tuple[int, int]]:
    """Slots and channels that stay in each prunable layer."""
    layers = config.prunable(len(decoder))
    units = [units_of(decoder.view(layer), config.heads == "kv_group") for layer in layers]
    counts = [unit.uniform(config.ratio, config.round_to) for unit in units]
    if config.uniform:
        counts = one_width(units, counts, config.ratio, config.round_to)
    return dict(zip(layers, counts, strict=True))


def _prune_layer_by_layer(
    model: PreTrainedModel, config: WandaSpPruning, counts: Mapping[int, tuple[int, int]], calibration: Calibration
) -> Removed:
    walk, kept = LayerByLayer(model, calibration.required_tokens(), calibration.batch_size), {}
    for layer, view in walk.decoder.in_turn(range(max(counts) + 1)):
        if layer in counts:
            means = walk.input_means(layer, {"attention": view.out, "mlp": view.down}, squares)
            found = {name: entry.mean.double().cpu() for entry in means for name in entry.linears}
            kept[layer] = kept_by_inputs(view, found["attention"], found["mlp"], counts[layer], config)
            keep_units(model, layer, kept[layer])
        walk.advance(layer)
    fit_class_and_config(model)
    return kept_of(kept)


def kept_by_inputs(
    view: LayerView, attention: Tensor, mlp: Tensor, count: tuple[int, int], config: WandaSpPruning
) -> Kept:
    """What stays of a layer. attention [>= heads * head_dim], mlp [>= channels]: means of squared inputs."""
    heads = input_scores(view.out.weight.detach(), attention[: view.out.in_features])
    channels = input_scores(view.down.weight.detach(), mlp[: view.channels])
    heads = heads.view(view.heads, view.head_dim).sum(dim=1)
    slots = head_slots(heads, view.kv_heads, config.heads == "kv_group")
    return best_kept(slots, count[0], channels, count[1])
