"""Depth pruning: whole decoder layers go, and the rest is an ordinary, shorter model."""

from __future__ import annotations

import logging

from torch import Tensor
from transformers import PreTrainedModel

from greenprune.collect.removal import losses_without
from greenprune.config import DepthPruning
from greenprune.models.decoder import Decoder
from greenprune.models.surgery import remove_layers
from greenprune.prune import Calibration, Removed

log = logging.getLogger("greenprune")


def angular_block(distance: Tensor, block_size: int, skip_first: int = 0, skip_last: int = 0) -> list[int]:
    """The block of `block_size` layers of least angular distance; of equals the first.

    distance: [L, L], row n-1, column start (Statistics.angular_distance). Gromov et al. 2024, section 3.
    """
    layers = distance.shape[1]
    last_start = layers - skip_last - block_size
    start = skip_first + int(distance[block_size - 1, skip_first : last_start + 1].argmin())
    return list(range(start, start + block_size))


def least_influential(influence: Tensor, block_size: int, skip_first: int = 0, skip_last: int = 0) -> list[int]:
    """The `block_size` layers of least influence, ascending. influence: [L]. Men et al. 2024, section 3.2."""
    candidates = range(skip_first, len(influence) - skip_last)
    return sorted(sorted(candidates, key=lambda layer: float(influence[layer]))[:block_size])


def remove_angular_block(model: PreTrainedModel, config: DepthPruning, calibration: Calibration) -> Removed:
    distance = calibration.required_statistics()["angular_distance"]
    layers = angular_block(distance, config.block_size, *config.skips(distance.shape[1]))
    remove_layers(model, layers)
    return Removed(layers_removed=layers)


def remove_least_influential(model: PreTrainedModel, config: DepthPruning, calibration: Calibration) -> Removed:
    return _remove_least(model, config, calibration.required_statistics()["block_influence"])


def remove_by_taylor(model: PreTrainedModel, config: DepthPruning, calibration: Calibration) -> Removed:
    """The layers of least sum over their weights of |w * dLoss/dw|, one shot (Taylor+ of Kim et al. 2024).

    As in the authors' code layers 0-3 and the last two stay where skip_first and skip_last aren't given. On
    purpose otherwise: a model of fewer than 12 layers protects none.
    """
    return _remove_least(model, config, calibration.required_statistics()["layer.taylor"])


def remove_by_perplexity(model: PreTrainedModel, config: DepthPruning, calibration: Calibration) -> Removed:
    """The layers whose removal alone leaves the least perplexity, one shot (PPL of Kim et al. 2024).

    Protects layers as `remove_by_taylor` does.
    """
    return _remove_least(model, config, calibration.required_statistics()["layer_perplexity"])


def _remove_least(model: PreTrainedModel, config: DepthPruning, score: Tensor) -> Removed:
    layers = least_influential(score, config.block_size, *config.skips(len(score)))
    remove_layers(model, layers)
    return Removed(layers_removed=layers)


def remove_greedily(model: PreTrainedModel, config: DepthPruning, calibration: Calibration) -> Removed:
    """One layer after the other: that whose removal leaves the least loss of the model as it then is; of equals the
    first.

    SLEB, Song et al. 2024, algorithm 1; its code protects the first and the last layer. On purpose otherwise:
    a model of fewer than 4 layers protects none.
    """
    total = len(Decoder(model))
    first, last = config.skips(total)
    alive = list(range(total))
    for _ in range(config.block_size):
        candidates = [range(place, place + 1) for place in range(first, len(alive) - last)]
        losses = losses_without(model, calibration.required_tokens(), candidates, calibration.batch_size)
        place = candidates[int(losses.argmin())].start
        remove_layers(model, [place])
        log.info("layer %d removed: loss %.4f", alive.pop(place), losses.min())
    return Removed(layers_removed=sorted(set(range(total)) - set(alive)))


def remove_best_window(model: PreTrainedModel, config: DepthPruning, calibration: Calibration) -> Removed:
    """The contiguous block whose removal leaves the least loss; of equals the first.

    Minitron: Muralidharan et al. 2024; contiguous blocks: Sreenivas et al. 2024. Public code takes the least
    absolute change of a task's score. On purpose otherwise: the loss on the calibration text is the score, and a
    block whose removal lowers it wins over one that changes nothing.
    """
    layers = config.prunable(len(Decoder(model)))
    windows = [layers[i : i + config.block_size] for i in range(len(layers) - config.block_size + 1)]
    losses = losses_without(model, calibration.required_tokens(), windows, calibration.batch_size)
    best = list(windows[int(losses.argmin())])
    remove_layers(model, best)
    return Removed(layers_removed=best)
