"""What width pruning took from a layer, made up for by the output projections that stay (prune.reconstruct).

Layer by layer behind the pruned ones, attention first: the correction D of an output projection's kept weights is the
ridge regression of what is missing on what the projection reads. Missing is what the dense layer's attention or MLP
gives more, and what the residual stream lacks already from the layers before: so errors don't add up. The shape
stays, so a stock checkpoint stays one. FLAP's bias is the case of no inputs but a constant.

Where a norm stands on what attention and MLP give (Gemma 2 and 3, GLM-4), the stream's error can't be added to it, and
only the projection's own output is made up for.

Source: local reconstruction after pruning ("A Free Lunch", 2025, arXiv:2510.14444); the sums and the choice of the
ridge are ours (ridge.py).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from greenprune.collect.layerwise import LayerByLayer
from greenprune.config import RatioPruning
from greenprune.models.in_files import borrowed
from greenprune.models.stock_form import fit_class_and_config
from greenprune.models.surgery import give_zero_bias, in_place_of
from greenprune.prune import Calibration, Removed
from greenprune.prune.ridge import RegressionSums, held_back


class Refit:
    """One output projection, corrected by a regression; only its bias where `bias_only`."""

    def __init__(self, linear: nn.Linear, device: torch.device, bias_only: bool = False) -> None:
        if bias_only and linear.bias is None:
            give_zero_bias(linear)
        self.linear, self.inputs = linear, 0 if bias_only else linear.in_features
        self.sums = RegressionSums(self.inputs, linear.out_features, device, constant=linear.bias is not None)

    def add(self, read: Tensor, missing: Tensor, weights: Tensor, held: Tensor) -> None:
        """read [N, in], missing [N, out], weights [N], held bool [N]."""
        self.sums.add(read[:, : self.inputs], missing, weights, held)

    @torch.no_grad()
    def correct(self, of_all: bool = True) -> float:
        """Change the projection; gives the ridge. of_all: held-back tokens count too, once they have chosen it."""
        linear, (correction, ridge) = self.linear, self.sums.solve(of_all)
        if self.inputs:
            linear.weight = in_place_of(linear.weight + correction[: self.inputs].T.to(linear.weight), linear.weight)
        if linear.bias is not None:
            linear.bias = in_place_of(linear.bias + correction[self.inputs].to(linear.bias), linear.bias)
        return ridge


class SideBySide:
    """A dense model and what pruning made of it, on the same tokens, layer by layer."""

    def __init__(self, dense: PreTrainedModel, pruned: PreTrainedModel, calibration: Calibration, first: int) -> None:
        """first: the layer with which they begin to differ."""
        tokens, batch_size = calibration.required_tokens(), calibration.batch_size
        self.dense, self.pruned = (LayerByLayer(model, tokens, batch_size) for model in (dense, pruned))
        for layer, _ in self.dense.decoder.in_turn(range(first)):
            self.dense.advance(layer)
        self.pruned.states = self.dense.states.clone()

    @property
    def device(self) -> torch.device:
        return self.pruned.device

    @property
    def rows(self) -> tuple[Tensor, ...]:
        return self.pruned.rows

    def held(self, rows: Tensor) -> Tensor:
        """Which tokens of some samples are held back, bool [N]."""
        return held_back(rows).repeat_interleave(self.pruned.states.shape[1]).to(self.device)

    def weights(self, rows: Tensor) -> Tensor:
        """Of the tokens of some samples, [N]: what is missing counts relative to the size of the dense state.

        A norm divides by that size before anything reads the state; and some tokens' are hundreds of times larger.
        """
        sizes = torch.linalg.vector_norm(self.dense.states[rows].to(self.device).float(), dim=-1).flatten()
        return sizes.clamp(min=torch.finfo(torch.float32).tiny).reciprocal()

    def missing(self, rows: Tensor) -> Tensor:
        """What the pruned states of some samples lack, [N, hidden]."""
        return (self.dense.states[rows].to(self.device) - self.pruned.states[rows].to(self.device)).flatten(0, 1)


def reconstruct(
    model: PreTrainedModel, dense: PreTrainedModel, removed: Removed, config: RatioPruning, calibration: Calibration
) -> list[str]:
    """By least squares, or by biases alone."""
    layers, bias_only = sorted(removed.kept_heads), config.reconstruct == "bias"
    both, ridges = SideBySide(dense, model, calibration, layers[0]), []
    for layer in range(layers[0], layers[-1] + 1):
        with borrowed(both.dense.decoder.layers[layer]), borrowed(both.pruned.decoder.layers[layer]):
            ridges += refit_layer(both, layer, bias_only, of_all=config.reconstruct != "windows")
            both.pruned.advance(layer)
    if bias_only:
        fit_class_and_config(model)
        return ["output projections reconstructed by biases"]
    return [f"output projections reconstructed by least squares, ridge {min(ridges):g} to {max(ridges):g}"]


def refit_layer(both: SideBySide, layer: int, bias_only: bool, of_all: bool) -> list[float]:
    """Correct both output projections; gives their ridges. The dense states are those behind the layer then."""
    view, dense = both.pruned.decoder.view(layer), both.dense.decoder.view(layer)
    added = both.pruned.decoder.adds_outputs
    wanted = torch.empty_like(both.dense.states)  # the layer's output, or where that is no sum, its MLP's
    attention = Refit(view.out, both.device, bias_only)
    for rows in both.rows:
        output, theirs = both.dense.watched(layer, {"out": dense.out, "down": dense.down}, rows)
        ours = both.pruned.watched(layer, {"out": view.out}, rows)[1]["out"]
        missing = theirs["out"].given - ours.given
        attention.add(
            ours.read, missing + both.missing(rows) if added else missing, both.weights(rows), both.held(rows)
        )
        wanted[rows] = (output if added else theirs["down"].given.view_as(output)).cpu()
        both.dense.states[rows] = output.cpu()
    ridges, mlp = [attention.correct(of_all)], Refit(view.down, both.device, bias_only)
    for rows in both.rows:
        output, seen = both.pruned.watched(layer, {"down": view.down}, rows)
        given = output.flatten(0, 1) if added else seen["down"].given
        missing = wanted[rows].to(both.device).flatten(0, 1) - given
        mlp.add(seen["down"].read, missing, both.weights(rows), both.held(rows))
    return [*ridges, mlp.correct(of_all)]
