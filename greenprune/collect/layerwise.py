"""One layer at a time, for methods whose choice in a layer depends on what was pruned before it.

    walk = LayerByLayer(model, tokens, batch_size=1)
    for layer in range(len(walk)):
        means = walk.input_means(layer, linears, squares)  # of the inputs that the pruned layers before give
        ...                                               # prune the layer
        walk.advance(layer)                               # its outputs are the next layer's inputs

Beside the model only the states between two layers are kept (on the CPU if the model is on a GPU) and one layer's
means. What the model hands each layer besides its input (rotary embeddings, masks that differ between layers) is
captured from the model itself, with stubs for layers, so that no architecture needs to be known here.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from greenprune.errors import ModelError
from greenprune.logs import Seldom
from greenprune.models.decoder import Decoder, layer_output
from greenprune.models.hooks import Hooks

log = logging.getLogger("greenprune")

# -------------------------------------------------------------------------------------------------- maths


# Both give some samples' part of a mean over `samples`, rounded as in the original code: a score on the other side of
# a cut changes the states of all layers behind, and with them their masks (experiments/LOG.md).


def squares(inputs: Tensor, samples: int) -> Tensor:
    """1/samples Σ x², the sum over tokens. [N, in] -> float32 [in]."""
    return torch.linalg.vector_norm(inputs.float(), dim=0) ** 2 / samples


def products(inputs: Tensor, samples: int) -> Tensor:
    """2/samples Σ x xᵀ, the sum over tokens: SparseGPT's Hessian. [N, in] -> float32 [in, in]."""
    scaled = math.sqrt(2 / samples) * inputs.float()
    return scaled.T @ scaled


# ------------------------------------------------------------------------------------------------- wiring


@dataclass
class InputMean:
    """The mean over samples of one input's terms, and the linears that read it (query, key and value; gate and up)."""

    mean: Tensor
    linears: dict[str, nn.Linear] = field(default_factory=dict)


class LayerByLayer:
    """The states of all samples as they go through the layers. tokens: LongTensor [num_samples, seq_len], unpadded.

    states: [num_samples, seq_len, hidden], in the model's dtype: the inputs of the layer that is next.
    """

    @torch.no_grad()
    def __init__(self, model: PreTrainedModel, tokens: Tensor, batch_size: int = 1) -> None:
        self.decoder = Decoder(model)
        self.device = model.device
        self.tokens = tokens
        self.rows = torch.arange(len(tokens)).split(batch_size)
        self.lines = Seldom()
        self.states = torch.empty(0)
        # Samples are equally long and unpadded, so these depend on nothing but the number of samples in a batch.
        self.arguments: dict[int, list[dict[str, Any]]] = {}
        for rows in self.rows:
            self._store(rows, self._enter(rows), len(tokens))

    def _enter(self, rows: Tensor) -> Tensor:
        """What the first layer reads of some of the samples; and what else the model hands its layers is known then."""
        stubs = [_Stub() for _ in self.decoder.layers]
        with self.decoder.running(stubs):
            self.decoder.backbone(input_ids=self.tokens[rows].to(self.device), use_cache=False)
        self.arguments.setdefault(len(rows), [stub.arguments for stub in stubs])
        return stubs[0].hidden

    @torch.no_grad()
    def arguments_for(self, count: int) -> list[dict[str, Any]]:
        """What the model hands each layer beside its states, for so many samples."""
        if count not in self.arguments:
            self._enter(torch.arange(count))
        return self.arguments[count]

    def __len__(self) -> int:
        return len(self.decoder)

    @torch.no_grad()
    def input_means(
        self, layer: int, linears: Mapping[str, nn.Linear], terms: Callable[[Tensor, int], Tensor]
    ) -> list[InputMean]:
        """Run a layer and average `terms` (of [N, in] inputs, and samples so far) for each distinct input of linears.

        Raises ModelError where an input isn't finite.
        """
        means: dict[str, InputMean] = {}
        last: list[tuple[str, Tensor]] = []  # the input seen last, by the name of the first linear that read it
        unseen: set[str] = set()
        samples = before = 0  # seen with this batch, and without it

        def see(name: str, linear: nn.Linear, inputs: Tensor) -> None:
            if last and last[0][1] is inputs:
                means[last[0][0]].linears[name] = linear
            else:
                last[:] = [(name, inputs)]
                found = terms(inputs.flatten(0, -2), samples)
                if name in means:
                    means[name].mean *= before / samples
                    means[name].mean += found
                else:
                    means[name] = InputMean(found, {name: linear})
            unseen.discard(name)
            if not unseen:
                raise _AllSeen

        def watched(name: str) -> Callable[..., None]:
            return lambda linear, args, _: see(name, linear, args[0])

        with Hooks() as hooks:
            for name, linear in linears.items():
                hooks.before(linear, watched(name))
            for rows in self.rows:
                before, samples = samples, samples + len(rows)
                unseen.update(linears)
                with suppress(_AllSeen):  # nobody asks for what the layer's last linear gives
                    self.output(layer, rows)
        for name, found in means.items():
            if not found.mean.isfinite().all():
                raise ModelError(
                    f"calibration inputs must be finite, got NaN or infinity in layer {layer}, {name}; "
                    "use model.dtype bfloat16 or float32"
                )
        return list(means.values())

    @torch.no_grad()
    def advance(self, layer: int) -> None:
        """The outputs of the layer as it is now become the states."""
        for rows in self.rows:
            self.states[rows] = self.output(layer, rows).cpu()
        if self.lines.due():
            log.info("pruning: %d of %d layers", layer + 1, len(self))

    @torch.no_grad()
    def watched(self, layer: int, linears: Mapping[str, nn.Linear], rows: Tensor) -> tuple[Tensor, dict[str, Watched]]:
        """What the layer gives for some of the samples, and what these linears of it read and gave, by name."""
        seen: dict[str, Watched] = {}

        def watch(name: str) -> Callable[..., None]:
            def see(_: nn.Module, args: tuple[Any, ...], given: Tensor) -> None:
                seen[name] = Watched(args[0].flatten(0, -2), given.flatten(0, -2))

            return see

        with Hooks() as hooks:
            for name, linear in linears.items():
                hooks.after(linear, watch(name))
            return self.output(layer, rows), seen

    def output(self, layer: int, rows: Tensor) -> Tensor:
        """What the layer gives for some of the samples, [B, seq_len, hidden]."""
        inputs = self.states[rows].to(self.device, non_blocking=True)
        return layer_output(self.decoder.layers[layer](inputs, **self.arguments_for(len(rows))[layer]))

    def _store(self, rows: Tensor, hidden: Tensor, samples: int) -> None:
        if not self.states.numel():
            shape = (samples, *hidden.shape[1:])
            self.states = torch.empty(shape, dtype=hidden.dtype, pin_memory=self.device.type == "cuda")
        self.states[rows] = hidden.cpu()


@dataclass(frozen=True)
class Watched:
    """What a linear read, [N, in], and gave, [N, out], for N tokens."""

    read: Tensor
    given: Tensor


class _AllSeen(Exception):
    """Ends a layer's forward where the last of its inputs has been seen."""


class _Stub(nn.Module):
    """Stands in for a layer: remembers what it was called with and hands its input on."""

    hidden: Tensor
    arguments: dict[str, Any]

    def forward(self, hidden_states: Tensor, **arguments: Any) -> Tensor:
        self.hidden, self.arguments = hidden_states, arguments
        return hidden_states
