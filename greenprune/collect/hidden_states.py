"""Statistics of the residual stream: angular distances of blocks and block influence of layers.

Convention: h^0 are the embeddings, h^l the input of layer l, h^L the raw output of the last layer, before the
final norm (`output_hidden_states` of Transformers gives it after the norm, so hooks read it here).
A pass holds one hidden state of one batch and the last token's states, whatever the number of samples.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from greenprune.collect import Statistics
from greenprune.models.decoder import Decoder, layer_output

log = logging.getLogger("greenprune")
SECONDS_BETWEEN_LINES = 15.0


# -------------------------------------------------------------------------------------------------- maths


def angular_distances(states: Tensor) -> Tensor:
    """Pairwise arccos(cos(h^i, h^j))/pi of each sample. states [L+1, B, d] -> float64 [L+1, L+1, B], in [0, 1].

    Gromov et al. 2024, equation 4, for the last token of each sample.
    """
    unit = torch.nn.functional.normalize(states.double(), dim=-1)
    cosine = torch.einsum("ibd,jbd->ijb", unit, unit)
    return torch.arccos(cosine.clamp(-1.0, 1.0)) / math.pi


def block_table(pairs: Tensor) -> Tensor:
    """Distances of states to distances of blocks: [L+1, L+1] -> [L, L], row n-1, column start, NaN elsewhere."""
    layers = pairs.shape[0] - 1
    table = torch.full((layers, layers), math.nan, dtype=torch.float64)
    for n in range(1, layers + 1):
        table[n - 1, : layers - n + 1] = pairs.diagonal(n)
    return table


def last_positions(valid: Tensor) -> Tensor:
    """Index of each sample's last real token. valid: bool [B, T] -> long [B]."""
    positions = torch.arange(valid.shape[1], device=valid.device)
    return (valid * positions).argmax(dim=1)


# ------------------------------------------------------------------------------------------------- wiring


@contextmanager
def hidden_states_watched(decoder: Decoder, see: Callable[[int, Tensor], None]) -> Iterator[None]:
    """While inside, every forward calls `see(l, h^l)` for l = 0..L in order."""

    def before(index: int) -> Callable[..., None]:
        def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            see(index, args[0] if args else kwargs["hidden_states"])

        return hook

    def after(_: Any, __: Any, output: Any) -> None:
        see(len(decoder), layer_output(output))

    handles = [
        layer.register_forward_pre_hook(before(index), with_kwargs=True) for index, layer in enumerate(decoder.layers)
    ]
    handles.append(decoder.layers[-1].register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class HiddenStatePass:
    """Accumulates sums over samples; `statistics()` turns them into means.

    `forward` runs the model on a batch (default: its backbone, without the language-model head).
    """

    def __init__(
        self, model: PreTrainedModel, want: Collection[str], forward: Callable[..., Any] | None = None
    ) -> None:
        self.decoder = Decoder(model)
        self.want = frozenset(want)
        self.forward = forward or self.decoder.backbone
        self.device = model.device
        layers = len(self.decoder)
        self.distance_sums = torch.zeros(layers + 1, layers + 1, dtype=torch.float64)
        self.cosine_sums = torch.zeros(layers, dtype=torch.float64)
        self.counts = torch.zeros(2, dtype=torch.float64)  # samples, tokens
        self.last_states = torch.empty(layers + 1, 0, 0)  # [L+1, batch, d], of the batch being seen

    @torch.inference_mode()
    def run(
        self,
        tokens: Tensor,
        attention_mask: Tensor | None = None,
        batch_size: int = 1,
        counted: Tensor | None = None,
    ) -> HiddenStatePass:
        """Feed all samples; those with `counted` False [num_samples] are computed but left out of the sums."""
        shown = time.monotonic()
        with hidden_states_watched(self.decoder, self._see):
            for start in range(0, len(tokens), batch_size):
                rows = slice(start, start + batch_size)
                self._feed(
                    tokens[rows].to(self.device),
                    None if attention_mask is None else attention_mask[rows].to(self.device),
                    None if counted is None else counted[rows].to(self.device),
                )
                if time.monotonic() - shown > SECONDS_BETWEEN_LINES:
                    shown = time.monotonic()
                    log.info("collecting: %d of %d samples", min(start + batch_size, len(tokens)), len(tokens))
        return self

    def _feed(self, tokens: Tensor, mask: Tensor | None, counted: Tensor | None) -> None:
        self.valid = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask.bool()
        if counted is not None:
            self.valid = self.valid & counted[:, None]
        self.all_valid = mask is None and counted is None
        self.last = last_positions(self.valid)
        self.previous: tuple[Tensor, Tensor] | None = None
        inputs: dict[str, Any] = {"input_ids": tokens, "use_cache": False}
        if mask is not None:
            inputs["attention_mask"] = mask
            if not mask[:, 0].all():  # left padding: positions count from the first real token
                inputs["position_ids"] = (mask.long().cumsum(1) - 1).clamp(min=0)
        self.forward(**inputs)
        rows = self.valid.any(dim=1)
        self.counts += torch.tensor([rows.sum().item(), self.valid.sum().item()], dtype=torch.float64)
        if "angular" in self.want:
            distances = angular_distances(self.last_states[:, : len(tokens)][:, rows])
            self.distance_sums += distances.sum(dim=-1).cpu()
        self.previous = None

    def _see(self, index: int, hidden: Tensor) -> None:
        if "angular" in self.want:
            rows = torch.arange(len(hidden), device=hidden.device)
            if index == 0 and len(hidden) > self.last_states.shape[1]:
                # One buffer for the whole pass: small tensors kept among large freed ones would fragment the heap.
                self.last_states = hidden.new_empty(
                    len(self.decoder) + 1, len(hidden), hidden.shape[-1], dtype=torch.float32
                )
            self.last_states[index, : len(hidden)] = hidden[rows, self.last]
        if "bi" in self.want:
            hidden = hidden.float()
            norm = torch.linalg.vector_norm(hidden, dim=-1)
            if self.previous is not None:
                before, norm_before = self.previous
                cosine = torch.linalg.vecdot(before, hidden) / (norm_before * norm).clamp(min=1e-12)
                kept = cosine if self.all_valid else cosine[self.valid]
                self.cosine_sums[index - 1] += kept.double().sum().cpu()
            self.previous = (hidden, norm)

    def sums(self) -> Tensor:
        """Everything that is added up, as one flat tensor, for a reduction over workers."""
        return torch.cat([self.distance_sums.flatten(), self.cosine_sums, self.counts])

    def replace_sums(self, flat: Tensor) -> None:
        sizes = [self.distance_sums.numel(), self.cosine_sums.numel(), self.counts.numel()]
        distances, self.cosine_sums, self.counts = flat.cpu().split(sizes)
        self.distance_sums = distances.view_as(self.distance_sums)

    def statistics(self, parameters_per_worker: list[int] | None = None) -> Statistics:
        samples, tokens = (int(count) for count in self.counts)
        assert samples, "at least one sample is counted"
        return Statistics(
            angular_distance=block_table(self.distance_sums / samples) if "angular" in self.want else None,
            block_influence=1 - self.cosine_sums / tokens if "bi" in self.want else None,
            num_samples=samples,
            num_tokens=tokens,
            parameters_per_worker=parameters_per_worker,
        )
