"""What is known by layer: angular distances, influence, and what pruning left of each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from greenprune.results import TrialResult
from greenprune.results.evidence import artifact_file, artifact_json, key_of
from greenprune.storage import Storage

if TYPE_CHECKING:
    import numpy as np

MOST_MODELS = 3
MOST_TRIALS = 60


@dataclass(frozen=True)
class LayerStatistics:
    """Of one calibration pass. L is the number of layers.

    angular: float64 [L, L], in units of π; row n-1, column start: the block start..start+n-1, NaN where it doesn't fit.
    influence: float64 [L]; None where that wasn't collected.
    """

    model: str
    angular: np.ndarray | None
    influence: np.ndarray | None


@dataclass(frozen=True)
class LayersKept:
    """What a trial has left: layers of the dense model, those removed, and shares of heads and channels by layer."""

    trial_id: str
    layers: int
    removed: list[int]
    heads: dict[int, float] = field(default_factory=dict)
    channels: dict[int, float] = field(default_factory=dict)

    @property
    def block(self) -> tuple[int, int] | None:
        """First layer and size of the one contiguous block that was removed."""
        if not self.removed or self.heads or self.channels:
            return None
        first, size = min(self.removed), len(self.removed)
        return (first, size) if sorted(self.removed) == list(range(first, first + size)) else None


def layer_statistics(storage: Storage, results: Sequence[TrialResult]) -> list[LayerStatistics]:
    """Of each model the first calibration pass that saw angular distances or influence; of the first few models."""
    found: dict[str, LayerStatistics] = {}
    seen: set[str] = set()
    for result in results:
        key, model = key_of(result, "collect"), str(result.config.get("model", {}).get("id"))
        if key is None or key in seen or model in found or len(found) == MOST_MODELS:
            continue
        seen.add(key)
        if path := artifact_file(storage, result, "collect", "statistics.safetensors"):
            from safetensors.numpy import load_file

            tensors = load_file(path)
            if "angular_distance" in tensors or "block_influence" in tensors:
                found[model] = LayerStatistics(model, tensors.get("angular_distance"), tensors.get("block_influence"))
    return list(found.values())


def layers_kept(storage: Storage, results: Sequence[TrialResult]) -> list[LayersKept]:
    """What each of these trials has left, of the first MOST_TRIALS that say so; without those that are whole."""
    found: list[LayersKept] = []
    for result in results:
        if len(found) == MOST_TRIALS:
            break
        if result.status == "ok" and (kept := _kept(storage, result)):
            found.append(kept)
    return found


def _kept(storage: Storage, result: TrialResult) -> LayersKept | None:
    removed = json.loads(str(result.metrics.get("layers_removed") or "[]"))
    layers = int(result.metrics.get("layers") or 0) + len(removed)
    report = artifact_json(storage, result, "prune", "report.json") or {}
    heads, channels = (_shares(report.get(name) or {}) for name in ("kept_heads", "kept_channels"))
    if not layers or not (removed or heads or channels):
        return None
    return LayersKept(result.trial_id, layers, removed, heads, channels)


def _shares(kept: dict[str, list[int]]) -> dict[int, float]:
    """By layer, the share that stays. How many there were is one more than the highest index that stays anywhere."""
    dense = 1 + max((max(indices) for indices in kept.values() if indices), default=0)
    return {int(layer): len(indices) / dense for layer, indices in kept.items()}
