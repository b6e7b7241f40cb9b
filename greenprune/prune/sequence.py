"""Several methods one after the other, each on fresh statistics of what the former left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from transformers import PreTrainedModel

from greenprune.config import SequencePruning
from greenprune.models.decoder import Decoder
from greenprune.prune import Calibration, Removed, prune


def prune_in_steps(model: PreTrainedModel, config: SequencePruning, calibration: Calibration) -> Removed:
    total, removed = len(Decoder(model)), Removed()
    for step in config.steps:
        report = prune(model, step, calibration.tokens, batch_size=calibration.batch_size)
        removed = composed(removed, report, total)
    return removed


def composed(first: Removed, then: Removed, total: int) -> Removed:
    """Both steps as one, in indices of the model before the first, which had `total` layers."""
    gone = set(first.layers_removed)
    alive = [layer for layer in range(total) if layer not in gone]
    return Removed(
        layers_removed=sorted(gone | {alive[layer] for layer in then.layers_removed}),
        kept_heads=_composed_widths(first.kept_heads, then.kept_heads, alive),
        kept_channels=_composed_widths(first.kept_channels, then.kept_channels, alive),
        notes=[*first.notes, *then.notes],
    )


def _composed_widths(
    first: Mapping[int, list[int]], then: Mapping[int, list[int]], alive: Sequence[int]
) -> dict[int, list[int]]:
    """A later step counts among what the earlier one kept. Layers that a later step removed stay out."""
    kept = dict(first)
    for position, indices in then.items():
        layer = alive[position]
        kept[layer] = [first[layer][index] for index in indices] if layer in first else list(indices)
    return kept
