"""A few layers at a time, trained to the dense model's states behind them (prune.reconstruct: windows).

What least squares (reconstruct.py) can't reach, since it moves one matrix at a time: all kept weights of a window of
layers move together, by Adam, from the states that the pruned layers before give to those that the dense model has
behind the window. No gradient leaves a window, so memory is that of a few layers in float32 and one sample's
activations. The loss of a token is relative to the size of its dense state (SideBySide.weights).

Samples that are held back (ridge.py) aren't trained on; a window that is no better on them stays as it was.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from transformers import PreTrainedModel

from greenprune.config import RatioPruning
from greenprune.data import drawn_in_passes
from greenprune.models.decoder import layer_output
from greenprune.models.in_files import borrowed
from greenprune.models.loss import relative_error
from greenprune.models.surgery import in_place_of
from greenprune.prune import Calibration, Removed
from greenprune.prune.reconstruct import SideBySide, reconstruct
from greenprune.prune.ridge import held_back

log = logging.getLogger("greenprune")

WINDOW_LAYERS = 3  # of a window
WINDOW_STEPS = 240  # of a window
LEARNING_RATE = 1e-4  # falls to 0 over the steps, linearly
SEED = 0

Weights = list[dict[str, Tensor]]  # of each layer of a window, by name


def reconstruct_by_windows(
    model: PreTrainedModel, dense: PreTrainedModel, removed: Removed, config: RatioPruning, calibration: Calibration
) -> list[str]:
    """Least squares first, then windows of layers are trained."""
    notes, pruned = reconstruct(model, dense, removed, config, calibration), sorted(removed.kept_heads)
    layers = range(pruned[0], pruned[-1] + 1)
    both, errors = SideBySide(dense, model, calibration, layers[0]), []
    for start in range(0, len(layers), WINDOW_LAYERS):
        window = layers[start : start + WINDOW_LAYERS]
        for layer in window:
            with borrowed(both.dense.decoder.layers[layer]):
                both.dense.advance(layer)
        with ExitStack() as stack:
            for layer in window:
                stack.enter_context(borrowed(both.pruned.decoder.layers[layer]))
            errors.append(_train(both, window))
            for layer in window:
                both.pruned.advance(layer)
    before, after = (sum(each) / len(errors) for each in zip(*errors, strict=True))
    return [
        *notes,
        f"{WINDOW_LAYERS} layers at a time trained: relative error of held-back states {before:.3g}, then {after:.3g}",
    ]


def _train(both: SideBySide, window: Sequence[int]) -> tuple[float, float]:
    """Train a window; gives the held-back samples' error before and after."""
    samples = torch.arange(len(both.pruned.states))
    fitted = samples[~held_back(samples)]
    held = samples[held_back(samples)] if len(fitted) < len(samples) else samples
    weights = _copies(both, window)
    trained = [weight for layer in weights for weight in layer.values()]
    before = _error(both, window, weights, held)
    optimizer = torch.optim.Adam(trained, lr=LEARNING_RATE)
    random = torch.Generator().manual_seed(SEED)
    order = fitted[drawn_in_passes(len(fitted), WINDOW_STEPS, random)]
    for step, rows in enumerate(order[:, None]):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / WINDOW_STEPS)
        optimizer.zero_grad()
        with torch.enable_grad():
            _loss(both, window, weights, rows).backward()
        optimizer.step()
    after = _error(both, window, weights, held)
    log.info("layers %d to %d: relative error %.4g, then %.4g", window[0], window[-1], before, after)
    if after >= before:
        return before, before
    for layer, named in zip(window, weights, strict=True):
        module = both.pruned.decoder.layers[layer]
        for name, weight in named.items():
            owner, _, attribute = name.rpartition(".")
            old = module.get_parameter(name)
            setattr(module.get_submodule(owner), attribute, in_place_of(weight.detach().to(old.dtype), old))
    return before, after


def _copies(both: SideBySide, window: Sequence[int]) -> Weights:
    layers = [both.pruned.decoder.layers[layer] for layer in window]
    return [
        {name: weight.detach().float().clone().requires_grad_() for name, weight in layer.named_parameters()}
        for layer in layers
    ]


def _loss(both: SideBySide, window: Sequence[int], weights: Weights, rows: Tensor) -> Tensor:
    states: Any = both.pruned.states[rows].to(both.device)
    with torch.autocast(both.device.type, torch.bfloat16, enabled=states.dtype != torch.float32):
        for layer, named in zip(window, weights, strict=True):
            arguments = both.pruned.arguments_for(len(rows))[layer]
            states = layer_output(functional_call(both.pruned.decoder.layers[layer], named, (states,), arguments))
    return relative_error(states, both.dense.states[rows].to(both.device))


@torch.no_grad()
def _error(both: SideBySide, window: Sequence[int], weights: Weights, rows: Tensor) -> float:
    return sum(float(_loss(both, window, weights, row)) for row in rows[:, None]) / len(rows)
