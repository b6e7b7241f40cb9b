"""One view of every decoder-only architecture: its layers, and in each the heads and channels that can be pruned.

Architectures name their projections differently and fuse some of them into one matrix. Methods must not care:
they ask a LayerView for the rows that make the queries, keys, … of each head, and for the matrices that read
the heads and channels. The whole difference between architectures is their entries in architectures.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import LongTensor, Tensor, nn
from transformers import PreTrainedModel

from greenprune.errors import ModelError
from greenprune.models.architectures import Layout, architecture_of
from greenprune.models.hooks import Hooks
from greenprune.models.in_files import borrowed, put_away
from greenprune.models.modeling_pruned import NoHeads

LOGITS_AT_ONCE = 1 << 24  # numbers, 64 MiB in fp32: all positions' together would be the largest tensor of a pass


@dataclass(frozen=True)
class Rows:
    """Some rows of a linear: [len(index), in_features]. Ordered by head (head_dim rows each) or by channel."""

    linear: nn.Linear
    index: LongTensor

    @property
    def weight(self) -> Tensor:
        """A copy of the rows, through which gradients flow; change the matrix through `linear` and `index`."""
        return self.linear.weight[self.index]

    @property
    def bias(self) -> Tensor | None:
        return None if self.linear.bias is None else self.linear.bias[self.index]


@dataclass(frozen=True)
class LayerView:
    """One decoder layer as it is now; take a new view after its shape has changed.

    Head h reads KV head h // (heads // kv_heads). Column h * head_dim + i of `out` reads component i of
    head h; column c of `down` reads channel c.
    """

    module: nn.Module
    layout: Layout

    @cached_property
    def attention(self) -> nn.Module:
        return self.module.get_submodule(self.layout.attention)

    @cached_property
    def attends(self) -> bool:
        """Whether the layer has attention; heads, KV heads and their matrices are none otherwise."""
        return not isinstance(self.attention, NoHeads)

    @cached_property
    def head_dim(self) -> int:
        return getattr(self.attention, "head_dim", None) or self.attention.head_size

    @cached_property
    def heads(self) -> int:
        return 0 if not self.attends else self.out.in_features // self.head_dim

    @cached_property
    def kv_heads(self) -> int:
        if not self.attends:
            return 0
        paths = {self.layout.query, self.layout.key, self.layout.value}
        rows = sum(self._linear(path).out_features for path in paths)  # heads + 2 kv_heads, however fused
        return (rows // self.head_dim - self.heads) // 2

    @cached_property
    def channels(self) -> int:
        return self.down.in_features

    @property
    def query(self) -> Rows:
        return self._attention_rows(0)

    @property
    def key(self) -> Rows:
        return self._attention_rows(1)

    @property
    def value(self) -> Rows:
        return self._attention_rows(2)

    @property
    def gate(self) -> Rows | None:
        """None where the MLP has no gate."""
        return None if self.layout.gate is None else self._rows((self.layout.gate,), (self.channels,))

    @property
    def up(self) -> Rows:
        before = () if self.layout.gate is None else (self.layout.gate,)
        return self._rows((*before, self.layout.up), (self.channels,) * (len(before) + 1))

    @property
    def out(self) -> nn.Linear:
        return self._linear(self.layout.out)

    @property
    def down(self) -> nn.Linear:
        return self._linear(self.layout.down)

    @property
    def linears(self) -> dict[str, nn.Linear]:
        """Every matrix that can be pruned by its path in the layer, in order of execution."""
        return {path: self._linear(path) for path in self.layout.linears if self._is_there(path)}

    @property
    def norms(self) -> dict[str, nn.Module]:
        """The norms over the hidden dimension (not those of queries and keys) by their path in the layer."""
        paths = (self.layout.input_norm, self.layout.mlp_norm, *self.layout.output_norms)
        return {path: self.module.get_submodule(path) for path in paths}

    @property
    def input_norm(self) -> nn.Module:
        """Its output feeds attention (but in OPT-350m, which normalises after attention instead)."""
        return self.module.get_submodule(self.layout.input_norm)

    @property
    def mlp_norm(self) -> nn.Module:
        """Its output feeds the MLP (but in OPT-350m)."""
        return self.module.get_submodule(self.layout.mlp_norm)

    def _is_there(self, path: str) -> bool:
        return self.attends or not path.startswith(f"{self.layout.attention}.")

    def _linear(self, path: str) -> nn.Linear:
        if not self._is_there(path):
            raise ModelError(
                "heads can be pruned where every layer has attention, got one that has none; prune widths before "
                "attention sublayers (method sequence)"
            )
        return self.module.get_submodule(path)

    def _attention_rows(self, part: int) -> Rows:
        paths = (self.layout.query, self.layout.key, self.layout.value)
        if not self.layout.per_head:
            sizes = (self.heads, self.kv_heads, self.kv_heads)
            return self._rows(paths[: part + 1], tuple(size * self.head_dim for size in sizes))
        linear = self._linear(paths[part])
        index = torch.arange(linear.out_features, device=linear.weight.device)
        return Rows(linear, index.view(self.heads, 3, self.head_dim)[:, part].flatten())

    def _rows(self, paths: tuple[str, ...], sizes: tuple[int, ...]) -> Rows:
        """The rows of the last part: those before it in the same linear come first."""
        start = sum(size for path, size in zip(paths[:-1], sizes, strict=False) if path == paths[-1])
        linear, size = self._linear(paths[-1]), sizes[len(paths) - 1]
        return Rows(linear, torch.arange(start, start + size, device=linear.weight.device))


@dataclass(frozen=True)
class Decoder:
    """The decoder of a causal LM. `layers[l]` maps h^l to h^{l+1}; h^0 are the embeddings."""

    model: PreTrainedModel

    def __post_init__(self) -> None:
        architecture_of(self.model)  # refused here where it has no entry

    @property
    def layout(self) -> Layout:
        return architecture_of(self.model).layout

    @property
    def owner(self) -> nn.Module:
        """The module whose attribute `layers` holds the decoder layers."""
        return self.model.get_submodule(self.layout.owner)

    @property
    def layers(self) -> nn.ModuleList:
        return self.owner.layers

    @property
    def adds_outputs(self) -> bool:
        """Whether what attention and MLP give is added to the residual stream as it is, with no norm on it."""
        return not self.layout.output_norms and bool(getattr(self.model.config, "do_layer_norm_before", True))

    @property
    def backbone(self) -> nn.Module:
        """The model without its language-model head: embeddings, layers, final norm."""
        return self.model.base_model

    @contextmanager
    def running(self, layers: Iterable[nn.Module]) -> Iterator[None]:
        """A forward inside runs these in place of the decoder's layers."""
        own = self.layers
        self.owner.layers = nn.ModuleList(layers)
        try:
            yield
        finally:
            self.owner.layers = own

    def view(self, layer: int) -> LayerView:
        return LayerView(self.layers[layer], self.layout)

    def views(self) -> list[LayerView]:
        return [self.view(layer) for layer in range(len(self))]

    def in_turn(self, layers: Iterable[int] | None = None) -> Iterator[tuple[int, LayerView]]:
        """Some layers (default: all), one after the other; the weights of each are put away before the next comes."""
        for layer in range(len(self)) if layers is None else layers:
            with borrowed(self.layers[layer]):
                yield layer, self.view(layer)

    @contextmanager
    def one_at_a_time(self) -> Iterator[None]:
        """A forward inside puts the weights of each layer away when it has run."""
        with Hooks() as hooks:
            for layer in self.layers:
                hooks.after(layer, lambda module, *_: put_away(module))
            yield

    def logits(self, hidden: Tensor) -> Tensor:
        """[…, vocabulary] of the backbone's states […, hidden_size]: the head, and Gemma's soft cap."""
        logits = self.model.get_output_embeddings()(hidden)
        cap = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def __len__(self) -> int:
        return len(self.layers)


def of_one_width(views: Sequence[LayerView]) -> bool:
    """Whether these layers all have attention, and equally many heads, KV heads and channels."""
    return len({(view.heads, view.kv_heads, view.channels) for view in views}) == 1 and views[0].attends


def layer_output(output: object) -> object:
    """The hidden state in what a decoder layer returns (some return a tuple that begins with it)."""
    return output[0] if isinstance(output, tuple) else output
