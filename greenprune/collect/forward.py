"""The forward pass that watchers look on, streamed so that memory doesn't grow with the number of samples.

A watcher hooks the decoder, is told where each batch begins and ends, and keeps sums: whatever the batch size
and however many workers share the samples, adding up the sums gives the same statistics.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from greenprune.collect import Statistics
from greenprune.logs import Seldom
from greenprune.models.decoder import Decoder
from greenprune.models.hooks import Hooks

log = logging.getLogger("greenprune")


@dataclass(frozen=True)
class WatchedBatch:
    """tokens [B, T]; valid bool [B, T]: what counts; `whole` where everything does."""

    tokens: Tensor
    valid: Tensor
    whole: bool

    @cached_property
    def rows(self) -> Tensor:
        """bool [B]: the samples that count."""
        return self.valid.any(dim=1)

    @cached_property
    def last(self) -> Tensor:
        """Index of each sample's last real token, long [B]."""
        return last_positions(self.valid)

    def counted(self, values: Tensor) -> Tensor:
        """The values of tokens that count. values [B, T, …] -> [N, …]."""
        return values.flatten(0, 1) if self.whole else values[self.valid]


class Watcher(Protocol):
    """`sums` are float64, on the CPU, and are replaced in place."""

    sums: list[Tensor]

    def attach(self, decoder: Decoder, hooks: Hooks) -> None:
        """Hook what there is to see."""

    def begin(self, batch: WatchedBatch) -> None: ...

    def end(self, batch: WatchedBatch) -> None: ...

    def tensors(self, num_samples: int, num_tokens: int) -> dict[str, Tensor]:
        """The statistics that the sums give, by their names in `Statistics`."""


def last_positions(valid: Tensor) -> Tensor:
    """Index of each sample's last real token. valid: bool [B, T] -> long [B]."""
    positions = torch.arange(valid.shape[1], device=valid.device)
    return (valid * positions).argmax(dim=1)


class ForwardPass:
    """Feeds samples to a model while watchers look on. `forward` runs a batch (default: the model without its head)."""

    def __init__(
        self,
        model: PreTrainedModel,
        watchers: Sequence[Watcher],
        forward: Callable[..., Any] | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.decoder = Decoder(model)
        self.watchers = watchers
        self.forward = forward or self.decoder.backbone
        self.device = device or model.device
        self.counts = torch.zeros(2, dtype=torch.float64)  # samples, tokens

    @torch.inference_mode()
    def run(
        self,
        tokens: Tensor,
        attention_mask: Tensor | None = None,
        batch_size: int = 1,
        counted: Tensor | None = None,
    ) -> ForwardPass:
        """Feed all samples; those with `counted` False [num_samples] are computed but left out of the sums."""
        lines = Seldom()
        with Hooks() as hooks, self.decoder.one_at_a_time():
            for watcher in self.watchers:
                watcher.attach(self.decoder, hooks)
            for start in range(0, len(tokens), batch_size):
                rows = slice(start, start + batch_size)
                self._feed(
                    tokens[rows].to(self.device),
                    None if attention_mask is None else attention_mask[rows].to(self.device),
                    None if counted is None else counted[rows].to(self.device),
                )
                if lines.due():
                    log.info("collecting: %d of %d samples", min(start + batch_size, len(tokens)), len(tokens))
        return self

    def _feed(self, tokens: Tensor, mask: Tensor | None, counted: Tensor | None) -> None:
        valid = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask.bool()
        if counted is not None:
            valid = valid & counted[:, None]
        batch = WatchedBatch(tokens, valid, whole=bool(valid.all()))
        inputs: dict[str, Any] = {"input_ids": tokens, "use_cache": False}
        if mask is not None:
            inputs["attention_mask"] = mask
            if not mask[:, 0].all():  # left padding: positions count from the first real token
                inputs["position_ids"] = (mask.long().cumsum(1) - 1).clamp(min=0)
        for watcher in self.watchers:
            watcher.begin(batch)
        self.forward(**inputs)
        for watcher in self.watchers:
            watcher.end(batch)
        self.counts += torch.tensor([batch.rows.sum().item(), valid.sum().item()], dtype=torch.float64)

    def sums(self) -> Tensor:
        """Everything that is added up, as one flat tensor, for a reduction over workers."""
        return torch.cat([part.flatten() for part in self._parts()])

    def replace_sums(self, flat: Tensor) -> None:
        parts = self._parts()
        for part, values in zip(parts, flat.cpu().split([part.numel() for part in parts]), strict=True):
            part.copy_(values.view_as(part))

    def _parts(self) -> list[Tensor]:
        return [self.counts, *(part for watcher in self.watchers for part in watcher.sums)]

    def statistics(self, parameters_per_worker: list[int] | None = None) -> Statistics:
        samples, tokens = (int(count) for count in self.counts)
        assert samples, "at least one sample is counted"
        tensors: dict[str, Tensor] = {}
        for watcher in self.watchers:
            tensors |= watcher.tensors(samples, tokens)
        return Statistics(tensors, samples, tokens, parameters_per_worker)
