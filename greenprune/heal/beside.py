"""The dense model beside its student, for a loss on the states that both have in common (heal.loss: hidden).

What a layer of the student gives is compared with what the dense model has at the same place: where the next layer of
the student reads. So behind a gap of removed layers that is the state behind the gap.

The error of a token is relative to the size of its dense state, and a norm divides by that size before anything reads
the state. Source: intermediate states in distillation, Muralidharan et al. 2024 (Minitron), arXiv:2407.14679, section
3; the pairing and the weights are ours.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from greenprune.errors import ConfigError
from greenprune.models.decoder import Decoder, layer_output
from greenprune.models.hooks import Hooks
from greenprune.models.load import load_checkpoint
from greenprune.models.loss import relative_error

States = list[Tensor]


def matched_layers(layers: int, removed: list[int]) -> list[int]:
    """For each layer that stays, the dense layer behind which the state is that the next one reads."""
    kept = [layer for layer in range(layers) if layer not in removed]
    return [*(layer - 1 for layer in kept[1:]), layers - 1]


class DenseBeside:
    """The dense model, and for each of the student's layers the dense one that is behind the same state."""

    def __init__(self, model: PreTrainedModel, matched: list[int]) -> None:
        self.model, self.matched = model.requires_grad_(False).eval(), matched

    @classmethod
    def of(cls, dense: Path, pruned: Path, dtype: str, trust_remote_code: bool) -> DenseBeside:
        """The model in `dense`, for the student that the prune stage left in the checkpoint `pruned`."""
        report = pruned.parent / "report.json"
        removed = json.loads(report.read_text())["layers_removed"] if report.exists() else []
        model = load_checkpoint(dense, dtype, trust_remote_code=trust_remote_code)
        return cls(model, matched_layers(len(Decoder(model)), removed))

    @contextmanager
    def watching(self, student: PreTrainedModel) -> Iterator[States]:
        """Inside, a forward of the student fills the list with what its layers give, in their order.

        Raises ConfigError for a student whose states aren't as wide as the dense model's, or of other layers.
        """
        given: States = []
        layers = Decoder(student).layers
        widths = [model.config.get_text_config().hidden_size for model in (student, self.model)]
        if widths[0] != widths[1] or len(layers) != len(self.matched):
            raise ConfigError(
                "heal.loss hidden needs a student with the dense model's hidden size, all of whose layers are the "
                f"dense model's, got hidden sizes {widths[0]} and {widths[1]}, and {len(layers)} layers for "
                f"{len(self.matched)}; use kd or ce"
            )
        with Hooks() as hooks:
            _keep_outputs(hooks, layers, given)
            yield given

    def error(self, given: States, ids: Tensor) -> Tensor:
        """Mean over layers and tokens of ||state - dense||² / ||dense||². ids [B, S] -> []."""
        wanted: States = []
        with torch.no_grad(), Hooks() as hooks:
            _keep_outputs(hooks, Decoder(self.model).layers, wanted)
            Decoder(self.model).backbone(input_ids=ids, use_cache=False)
        pairs = zip(given, self.matched, strict=True)
        return torch.stack([relative_error(state, wanted[dense]) for state, dense in pairs]).mean()


def _keep_outputs(hooks: Hooks, layers: nn.ModuleList, states: States) -> None:
    for layer in layers:
        hooks.after(layer, lambda _, __, output: states.append(layer_output(output)))
