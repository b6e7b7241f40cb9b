"""Taylor statistics: how much the loss would change without a channel or a layer, from gradients.

Gradients of a whole model are as large as the model, and a sum of |w·g| needs the gradient of all samples at
once. So backpropagation goes layer by layer here: a forward pass keeps the layers' inputs (in CPU memory); then, from
the last layer to the first, a layer is run again for every batch, its gradients are added up, scored and dropped.
The peak is the model, one layer's gradients, one layer's activations and some positions' logits, whatever the number
of samples, and the cost that of activation checkpointing. (Transformers' own only works in training mode.)

The loss is the mean next-token cross-entropy over all tokens; all samples have one length.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from greenprune.logs import Seldom
from greenprune.models.decoder import Decoder, LayerView, layer_output
from greenprune.models.hooks import Hooks
from greenprune.models.in_files import borrowed
from greenprune.models.loss import loss_gradient

log = logging.getLogger("greenprune")

# -------------------------------------------------------------------------------------------------- maths


# Each weight's score; their sum over a row or column (of vectorize: its absolute value) is that of the channel.
# g: gradient of the mean loss; a: mean over samples of the squared gradient of each sample's loss, the diagonal of the
# Fisher matrix in place of the Hessian. Ma et al. 2023, equations 3 to 5.
FIRST_ORDER: dict[str, Callable[..., Tensor]] = {
    "param_first": lambda w, g: (w * g).abs(),
    "vectorize": lambda w, g: w * g,
}
SECOND_ORDER: dict[str, Callable[..., Tensor]] = {
    "param_second": lambda w, g, a: w * w * a,
    "param_mix": lambda w, g, a: (w * g - w * w * a / 2).abs(),
}


def part_sums(view: LayerView, elements: Callable[[nn.Linear], Tensor]) -> dict[str, Tensor]:
    """Elements of a layer's matrices summed for each channel of each coupled part.

    elements: of a linear, [out_features, in_features]. Gives query [heads * head_dim], key and value
    [kv_heads * head_dim], out [heads * head_dim]; gate (where there is one), up and down [channels]: sums of the rows
    that make a channel, and of the columns of `out` and `down` that read it.
    """
    rows = cache(lambda linear: elements(linear).sum(dim=1))
    makers = {"query": view.query, "key": view.key, "value": view.value, "gate": view.gate, "up": view.up}
    sums = {name: rows(part.linear)[part.index] for name, part in makers.items() if part is not None}
    return sums | {"out": elements(view.out).sum(dim=0), "down": elements(view.down).sum(dim=0)}


# --------------------------------------------------------------------------------------- the backward pass


@dataclass(frozen=True)
class Shard:
    """This worker's part of a pass over several, whose parameters are gathered when they are needed.

    gather: a context in which parameters are whole, entered by all workers alike; add_up: sums a tensor over all
    workers in place; counted: bool, which of this worker's samples count; num_samples: how many do on all workers.
    """

    device: torch.device
    gather: Callable[[Sequence[nn.Parameter]], AbstractContextManager[Any]]
    add_up: Callable[[Tensor], None]
    counted: Tensor
    num_samples: int


def whole(model: PreTrainedModel, tokens: Tensor) -> Shard:
    """The part of a worker that has everything."""
    counted = torch.ones(len(tokens), dtype=torch.bool)
    return Shard(model.device, borrowed, lambda _: None, counted, len(tokens))


@dataclass
class Gradients:
    """Of one layer, float32, by parameter name: of the mean loss, and the mean over samples of their squares."""

    layer: int
    mean: dict[str, Tensor]
    squares: dict[str, Tensor] | None


@dataclass
class BackwardBatch:
    """Some samples on their way back: the inputs kept for layers, and the loss's gradient of the layer's output."""

    size: int
    inputs: dict[int, Tensor] = field(default_factory=dict)
    upstream: Tensor = field(default_factory=lambda: torch.empty(0))


def layer_gradients(
    model: PreTrainedModel, tokens: Tensor, batch_size: int = 1, squares: bool = False, shard: Shard | None = None
) -> Iterator[Gradients]:
    """The gradients of every decoder layer's parameters, from the last layer to the first.

    tokens: LongTensor [num_samples, seq_len]. squares: also those of each sample's gradient, for which samples go
    one by one. The model is as before when the iterator ends or is closed.
    """
    decoder, shard = Decoder(model), shard or whole(model, tokens)
    with _frozen(model):
        calls = LayerCalls(decoder, tokens, 1 if squares else batch_size, shard)
        for start in reversed(range(0, len(decoder), calls.spacing)):
            layers = range(start, min(start + calls.spacing, len(decoder)))
            calls.fill_inputs(layers)
            for layer in reversed(layers):
                with shard.gather([*decoder.layers[layer].parameters()]):
                    yield calls.backward(layer, squares)


class LayerCalls:
    """What every layer was called with in a forward pass over all samples, to call it again."""

    def __init__(self, decoder: Decoder, tokens: Tensor, batch_size: int, shard: Shard) -> None:
        self.decoder, self.shard = decoder, shard
        self.targets = tokens.shape[1] - 1
        self.spacing = input_spacing(decoder, tokens.numel())
        self.others: dict[tuple[int, int], tuple[Any, dict[str, Any]]] = {}  # by layer and batch size
        in_layers = {id(parameter) for parameter in decoder.layers.parameters()}
        with shard.gather([part for part in decoder.model.parameters() if id(part) not in in_layers]):
            self.batches = [
                self._forward(rows, counted)
                for rows, counted in zip(tokens.split(batch_size), shard.counted.split(batch_size), strict=True)
            ]

    def _forward(self, tokens: Tensor, counted: Tensor) -> BackwardBatch:
        batch, gathered = BackwardBatch(len(tokens)), ExitStack()
        leaves: list[Tensor] = []

        def before(index: int) -> Callable[..., None]:
            def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                hidden, *others = args
                # Masks and positions are the same for all samples of one length.
                self.others.setdefault((index, batch.size), (others, kwargs))
                if index % self.spacing == 0:
                    batch.inputs[index] = hidden.cpu()
                gathered.enter_context(self.shard.gather([*layer.parameters()]))

            return hook

        def after(layer: nn.Module, _: Any, output: Any) -> Any:
            gathered.close()
            if layer is not layers[-1]:
                return None
            hidden: Any = layer_output(output)
            leaves.append(hidden.detach().requires_grad_())
            return (leaves[0], *output[1:]) if isinstance(output, tuple) else leaves[0]

        layers = self.decoder.layers
        with Hooks() as hooks, torch.enable_grad():
            for index, layer in enumerate(layers):
                hooks.before(layer, before(index))
                hooks.after(layer, after)
            tokens, counted = tokens.to(self.shard.device), counted.to(self.shard.device)
            states = self.decoder.backbone(input_ids=tokens, use_cache=False).last_hidden_state
            gradient = torch.zeros_like(states)
            gradient[counted, :-1] = loss_gradient(self.decoder.model, states[counted, :-1], tokens[counted, 1:])
            (batch.upstream,) = torch.autograd.grad(states, leaves, gradient)
        return batch

    def fill_inputs(self, layers: range) -> None:
        """Compute the inputs of these layers that weren't kept, from that of the first."""
        for layer in layers[:-1]:
            with self.shard.gather([*self.decoder.layers[layer].parameters()]), torch.no_grad():
                for batch in self.batches:
                    batch.inputs[layer + 1] = self._call(layer, batch, batch.inputs[layer].to(self.shard.device)).cpu()

    def _call(self, layer: int, batch: BackwardBatch, hidden: Tensor) -> Tensor:
        others, kwargs = self.others[layer, batch.size]
        return layer_output(self.decoder.layers[layer](hidden, *others, **kwargs))

    def backward(self, layer: int, squares: bool) -> Gradients:
        """Take the loss's gradient through a layer, for all batches."""
        names, parameters = zip(*self.decoder.layers[layer].named_parameters(), strict=True)
        sums = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in parameters]
        square_sums = [torch.zeros_like(total) for total in sums] if squares else []
        for parameter in parameters:
            parameter.requires_grad_()
        for batch in self.batches:
            with torch.enable_grad():
                hidden = batch.inputs.pop(layer).to(self.shard.device).requires_grad_()
                output = self._call(layer, batch, hidden)
            upstream = batch.upstream.to(self.shard.device)
            gradient, *found = torch.autograd.grad(output, (hidden, *parameters), upstream)
            batch.upstream = gradient.cpu()
            for total, part in zip(sums, found, strict=True):
                total += part
            for total, part in zip(square_sums, found, strict=squares):
                total.addcmul_(part.float(), part.float())
            del found, part  # before the next batch makes its own
        for parameter in parameters:
            parameter.requires_grad_(False)
        for total in (*sums, *square_sums):
            self.shard.add_up(total)
        # The loss was summed over tokens: of the samples' mean losses the gradients are 1/targets of that.
        mean = [total.div_(self.shard.num_samples * self.targets) for total in sums]
        mean_squares = [total.div_(self.shard.num_samples * self.targets**2) for total in square_sums]
        return Gradients(
            layer,
            dict(zip(names, mean, strict=True)),
            dict(zip(names, mean_squares, strict=True)) if squares else None,
        )


def input_spacing(decoder: Decoder, num_tokens: int) -> int:
    """Of how many layers one keeps its input: all, unless that takes more memory than the model itself.

    Otherwise one in sqrt(L), and the others are computed once more: Chen et al. 2016, section 4.
    """
    out = decoder.view(0).out
    kept = len(decoder) * num_tokens * out.out_features * out.weight.element_size()
    return 1 if kept <= sum(map(_bytes, decoder.model.parameters())) else round(math.sqrt(len(decoder)))


def _bytes(parameter: nn.Parameter) -> int:
    """DeepSpeed leaves an empty parameter where another worker holds a part of it."""
    return getattr(parameter, "ds_numel", parameter.numel()) * parameter.element_size()


@contextmanager
def _frozen(model: PreTrainedModel) -> Iterator[None]:
    """No gradients but those asked for, and no dropout."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.requires_grad_(False)
        model.eval()
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for module, mode in modes:
            module.training = mode


# ------------------------------------------------------------------------------------------ the statistics


def first_order(
    model: PreTrainedModel, tokens: Tensor, batch_size: int, shard: Shard | None = None
) -> dict[str, Tensor]:
    """The statistic "gradient": see `Statistics`."""
    return taylor_scores(model, layer_gradients(model, tokens, batch_size, shard=shard))


def second_order(
    model: PreTrainedModel, tokens: Tensor, batch_size: int, shard: Shard | None = None
) -> dict[str, Tensor]:
    """The statistic "fisher": as "gradient", and the second-order scores. Samples go one by one."""
    return taylor_scores(model, layer_gradients(model, tokens, squares=True, shard=shard))


def taylor_scores(model: PreTrainedModel, gradients: Iterator[Gradients]) -> dict[str, Tensor]:
    """Scores of layers and channels, float32 on the CPU, the layers' stacked in order."""
    decoder, lines = Decoder(model), Seldom()
    found: list[dict[str, Tensor]] = []  # from the last layer
    for gradient in gradients:
        found.append(_layer_scores(decoder.view(gradient.layer), gradient))
        del gradient  # before the next layer's is made
        if lines.due():
            log.info("gradients: %d of %d layers", len(found), len(decoder))
    return {name: _stacked([scores[name] for scores in reversed(found)]) for name in found[0]}


def _layer_scores(view: LayerView, gradient: Gradients) -> dict[str, Tensor]:
    named = {name: parameter for name, parameter in view.module.named_parameters() if not name.endswith("bias")}
    weights = {name: weight.detach().float() for name, weight in named.items()}
    taylor = sum((weight * gradient.mean[name]).abs().sum(dtype=torch.float64) for name, weight in weights.items())
    scores = {"layer.taylor": torch.as_tensor(taylor).cpu()}

    names = {id(weight): name for name, weight in named.items()}

    def add(importance: str, score: Callable[..., Tensor], *of: dict[str, Tensor]) -> None:
        def elements(linear: nn.Linear) -> Tensor:
            name = names[id(linear.weight)]
            return score(weights[name], *(part[name] for part in of))

        for part, sums in part_sums(view, elements).items():
            scores[f"{importance}.{part}"] = sums.abs().cpu()

    for importance, score in FIRST_ORDER.items():
        add(importance, score, gradient.mean)
    if gradient.squares is not None:
        for importance, score in SECOND_ORDER.items():
            add(importance, score, gradient.mean, gradient.squares)
    return scores


def _stacked(layers: Sequence[Tensor]) -> Tensor:
    """[L, …], narrower layers filled up with NaN."""
    if layers[0].dim() == 0:
        return torch.stack(list(layers))
    return pad_sequence(list(layers), batch_first=True, padding_value=math.nan)
