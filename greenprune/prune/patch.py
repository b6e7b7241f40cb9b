"""A removed block's stand-in: the MLP before it does its work too, as far as it can (prune.patch).

What is missing behind a block is the dense model's state there, less what the pruned model has before it. A linear map
of what the MLP before the block gives is fitted to it, by ridge regression towards no change, and merged into the MLP's
output projection: so the checkpoint stays what it is. ReplaceMe (2025, arXiv:2505.02819), but that its map is shrunk
towards 0, not towards the identity. `least_squares` fits the output projection itself, from what it reads: more
freedom, and sums of channels² in place of hidden².

Several blocks get one map each, from the first on, each behind those before it. A block with no layer before it, or
one that `skip_first` leaves as it is, has no stand-in: a note says so.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn
from transformers import PreTrainedModel

from greenprune.config import DepthPruning
from greenprune.models.decoder import Decoder
from greenprune.models.in_files import borrowed
from greenprune.models.surgery import in_place_of
from greenprune.prune import Calibration, Removed
from greenprune.prune.reconstruct import Refit, SideBySide
from greenprune.prune.ridge import RegressionSums

# -------------------------------------------------------------------------------------------------- maths


def blocks_of(layers: Collection[int]) -> list[range]:
    """Contiguous runs: [3, 4, 7] -> 3..4, 7..7."""
    starts = [layer for layer in sorted(layers) if layer - 1 not in layers]
    stops = [layer + 1 for layer in sorted(layers) if layer + 1 not in layers]
    return [range(start, stop) for start, stop in zip(starts, stops, strict=True)]


class OutputMap(Refit):
    """A linear map of what a projection gives, [hidden, hidden], merged into the projection."""

    def __init__(self, linear: nn.Linear, device: torch.device) -> None:
        self.linear, self.inputs = linear, linear.out_features
        self.sums = RegressionSums(self.inputs, self.inputs, device, constant=linear.bias is not None)

    @torch.no_grad()
    def correct(self, of_all: bool = True) -> float:
        linear, (correction, ridge) = self.linear, self.sums.solve(of_all)
        change = correction[: self.inputs].T
        weight = linear.weight + (change @ linear.weight.to(change)).to(linear.weight)
        linear.weight = in_place_of(weight, linear.weight)
        if linear.bias is not None:
            moved = change @ linear.bias.to(change) + correction[self.inputs]
            linear.bias = in_place_of(linear.bias + moved.to(linear.bias), linear.bias)
        return ridge


# ------------------------------------------------------------------------------------------------- wiring


def patch(
    model: PreTrainedModel, dense: PreTrainedModel, removed: Removed, config: DepthPruning, calibration: Calibration
) -> list[str]:
    """Change the MLP before each removed block; gives what a user should know."""
    blocks = blocks_of(removed.layers_removed)
    before = {block.start - 1: block for block in blocks if block.start > (config.skip_first or 0)}
    notes = [f"{_named(block)}: patched by no layer before" for block in blocks if block.start - 1 not in before]
    if not before:
        return notes
    kept = [layer for layer in range(len(Decoder(dense))) if layer not in removed.layers_removed]
    behind = max(blocks[0].start - 1, 0)  # so many layers the dense states have seen
    both = SideBySide(dense, model, calibration, behind)
    for place in range(behind, kept.index(max(before)) + 1):
        goal = max((block.stop for block in blocks if block.start == kept[place] + 1), default=kept[place] + 1)
        for layer, _ in both.dense.decoder.in_turn(range(behind, goal)):
            both.dense.advance(layer)
        behind = goal
        with borrowed(both.pruned.decoder.layers[place]):
            if block := before.get(kept[place]):
                ridge = _patch_layer(both, place, config)
                notes.append(f"{_named(block)}: patched by layer {kept[place]}, ridge {ridge:g}")
            both.pruned.advance(place)
    return notes


def _patch_layer(both: SideBySide, place: int, config: DepthPruning) -> float:
    """Bring what a layer of the pruned model gives to the dense states; gives the ridge."""
    down, linear = both.pruned.decoder.view(place).down, config.patch == "linear"
    fit = OutputMap(down, both.device) if linear else Refit(down, both.device)
    for rows in both.rows:
        output, seen = both.pruned.watched(place, {"down": down}, rows)
        missing = (both.dense.states[rows].to(both.device) - output).flatten(0, 1)
        fit.add(seen["down"].given if linear else seen["down"].read, missing, both.weights(rows), both.held(rows))
    return fit.correct()


def _named(block: range) -> str:
    return f"layer {block.start}" if len(block) == 1 else f"layers {block.start} to {block.stop - 1}"
