"""Statistics of the residual stream: angular distances of blocks and block influence of layers.

Convention: h^0 are the embeddings, h^l the input of layer l, h^L the raw output of the last layer, before the
final norm (`output_hidden_states` of Transformers gives it after the norm, so hooks read it here).
A pass holds one hidden state of one batch and the last token's states, whatever the number of samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from greenprune.collect.forward import WatchedBatch
from greenprune.models.decoder import Decoder, layer_output
from greenprune.models.hooks import Hooks

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


# ------------------------------------------------------------------------------------------------- wiring


def watch_hidden_states(decoder: Decoder, see: Callable[[int, Tensor], None], hooks: Hooks) -> None:
    """Every forward calls `see(l, h^l)` for l = 0..L in order, as long as the hooks last."""

    def before(index: int) -> Callable[..., None]:
        def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            see(index, args[0] if args else kwargs["hidden_states"])

        return hook

    def after(_: Any, __: Any, output: Any) -> None:
        see(len(decoder), layer_output(output))

    for index, layer in enumerate(decoder.layers):
        hooks.before(layer, before(index))
    hooks.after(decoder.layers[-1], after)


class AngularDistance:
    """Watches the last real token's state between all layers."""

    def __init__(self, layers: int) -> None:
        self.distances = torch.zeros(layers + 1, layers + 1, dtype=torch.float64)
        self.sums = [self.distances]
        self.states = torch.empty(layers + 1, 0, 0)  # [L+1, batch, d], of the batch being seen

    def attach(self, decoder: Decoder, hooks: Hooks) -> None:
        watch_hidden_states(decoder, self._see, hooks)

    def begin(self, batch: WatchedBatch) -> None:
        self.batch = batch

    def _see(self, index: int, hidden: Tensor) -> None:
        if index == 0 and len(hidden) > self.states.shape[1]:
            # One buffer for the whole pass: small tensors kept among large freed ones would fragment the heap.
            self.states = hidden.new_empty(len(self.states), len(hidden), hidden.shape[-1], dtype=torch.float32)
        rows = torch.arange(len(hidden), device=hidden.device)
        self.states[index, : len(hidden)] = hidden[rows, self.batch.last]

    def end(self, batch: WatchedBatch) -> None:
        distances = angular_distances(self.states[:, : len(batch.tokens)][:, batch.rows])
        self.distances += distances.sum(dim=-1).cpu()

    def tensors(self, num_samples: int, num_tokens: int) -> dict[str, Tensor]:
        return {"angular_distance": block_table(self.distances / num_samples)}


class BlockInfluence:
    """Watches how much every layer turns the state of each token; holds one state at a time."""

    def __init__(self, layers: int) -> None:
        self.cosines = torch.zeros(layers, dtype=torch.float64)
        self.sums = [self.cosines]
        self.previous: tuple[Tensor, Tensor] | None = None

    def attach(self, decoder: Decoder, hooks: Hooks) -> None:
        watch_hidden_states(decoder, self._see, hooks)

    def begin(self, batch: WatchedBatch) -> None:
        self.batch, self.previous = batch, None

    def _see(self, index: int, hidden: Tensor) -> None:
        hidden = hidden.float()
        norm = torch.linalg.vector_norm(hidden, dim=-1)
        if self.previous is not None:
            before, norm_before = self.previous
            cosine = torch.linalg.vecdot(before, hidden) / (norm_before * norm).clamp(min=1e-12)
            self.cosines[index - 1] += self.batch.counted(cosine).double().sum().cpu()
        self.previous = (hidden, norm)

    def end(self, batch: WatchedBatch) -> None:
        self.previous = None

    def tensors(self, num_samples: int, num_tokens: int) -> dict[str, Tensor]:
        return {"block_influence": 1 - self.cosines / num_tokens}
