"""Depth pruning: whole decoder layers go, and the rest is an ordinary, shorter model."""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedModel

from greenprune.config import DepthPruning
from greenprune.models.surgery import remove_layers
from greenprune.prune import Calibration, Removed


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
    influence = calibration.required_statistics()["block_influence"]
    layers = least_influential(influence, config.block_size, *config.skips(len(influence)))
    remove_layers(model, layers)
    return Removed(layers_removed=layers)
