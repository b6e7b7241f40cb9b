"""One view of every decoder-only architecture: its layers, and in each the heads and channels that can be pruned.

Architectures name their projections differently and fuse some of them into one matrix. Methods must not care:
they ask a LayerView for the rows that make the queries, keys, … of each head, and for the matrices that read
the heads and channels. LAYOUTS is the whole difference between architectures.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import LongTensor, Tensor, nn
from transformers import PreTrainedModel

from greenprune.errors import ModelError


@dataclass(frozen=True)
class Layout:
    """Where an architecture keeps its parts. Paths are relative to a layer, but for those of the model.

    Equal paths mean one fused linear that holds the parts one after the other; `per_head` that each head's
    query, key and value rows lie together instead. `config_biases`: the fields of the stock configuration
    that give biases to the projections, and so hold a compensation bias without code of ours.
    """

    owner: str = "model"  # from the causal LM to the module that holds `layers`
    embeddings: str = "model.embed_tokens"
    final_norm: str = "model.norm"
    attention: str = "self_attn"
    query: str = "self_attn.q_proj"
    key: str = "self_attn.k_proj"
    value: str = "self_attn.v_proj"
    out: str = "self_attn.o_proj"
    gate: str | None = "mlp.gate_proj"
    up: str = "mlp.up_proj"
    down: str = "mlp.down_proj"
    input_norm: str = "input_layernorm"
    mlp_norm: str = "post_attention_layernorm"
    output_norms: tuple[str, ...] = ()  # on what attention and MLP give back to the residual stream
    per_head: bool = False
    head_dim_from_hidden: bool = False  # the configuration can't hold a head size of its own
    config_channels: str = "intermediate_size"
    config_biases: tuple[str, ...] = ()


GEMMA_2 = Layout(
    mlp_norm="pre_feedforward_layernorm",
    output_norms=("post_attention_layernorm", "post_feedforward_layernorm"),
    config_biases=("attention_bias",),
)

LAYOUTS = {
    "llama": Layout(config_biases=("attention_bias", "mlp_bias")),
    "mistral": Layout(),
    "qwen2": Layout(),
    "qwen3": Layout(config_biases=("attention_bias",)),
    "gemma": Layout(config_biases=("attention_bias",)),
    "gemma2": GEMMA_2,
    "gemma3_text": GEMMA_2,
    "phi3": Layout(
        query="self_attn.qkv_proj",
        key="self_attn.qkv_proj",
        value="self_attn.qkv_proj",
        gate="mlp.gate_up_proj",
        up="mlp.gate_up_proj",
    ),
    "glm4": Layout(
        gate="mlp.gate_up_proj",
        up="mlp.gate_up_proj",
        output_norms=("post_self_attn_layernorm", "post_mlp_layernorm"),
    ),
    "opt": Layout(
        owner="model.decoder",
        embeddings="model.decoder.embed_tokens",
        final_norm="model.decoder.final_layer_norm",
        out="self_attn.out_proj",
        gate=None,
        up="fc1",
        down="fc2",
        input_norm="self_attn_layer_norm",
        mlp_norm="final_layer_norm",
        head_dim_from_hidden=True,
        config_channels="ffn_dim",
        config_biases=("enable_bias",),
    ),
    "gpt_neox": Layout(
        owner="gpt_neox",
        embeddings="gpt_neox.embed_in",
        final_norm="gpt_neox.final_layer_norm",
        attention="attention",
        query="attention.query_key_value",
        key="attention.query_key_value",
        value="attention.query_key_value",
        out="attention.dense",
        gate=None,
        up="mlp.dense_h_to_4h",
        down="mlp.dense_4h_to_h",
        per_head=True,
        head_dim_from_hidden=True,
        config_biases=("attention_bias",),
    ),
}
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
    def head_dim(self) -> int:
        return getattr(self.attention, "head_dim", None) or self.attention.head_size

    @cached_property
    def heads(self) -> int:
        return self.out.in_features // self.head_dim

    @cached_property
    def kv_heads(self) -> int:
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
        at = self.layout
        paths = (at.query, at.key, at.value, at.out, at.gate, at.up, at.down)
        return {path: self._linear(path) for path in paths if path is not None}

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

    def _linear(self, path: str) -> nn.Linear:
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
        if self.model.config.model_type not in LAYOUTS:
            raise ModelError(
                f"the model must be one of {', '.join(sorted(LAYOUTS))}, got {self.model.config.model_type}; "
                "add its row to LAYOUTS in greenprune/models/decoder.py"
            )

    @property
    def layout(self) -> Layout:
        return LAYOUTS[self.model.config.model_type]

    @property
    def owner(self) -> nn.Module:
        """The module whose attribute `layers` holds the decoder layers."""
        return self.model.get_submodule(self.layout.owner)

    @property
    def layers(self) -> nn.ModuleList:
        return self.owner.layers

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

    def logits(self, hidden: Tensor) -> Tensor:
        """[…, vocabulary] of the backbone's states […, hidden_size]: the head, and Gemma's soft cap."""
        logits = self.model.get_output_embeddings()(hidden)
        cap = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def __len__(self) -> int:
        return len(self.layers)


def layer_output(output: object) -> object:
    """The hidden state in what a decoder layer returns (some return a tuple that begins with it)."""
    return output[0] if isinstance(output, tuple) else output
