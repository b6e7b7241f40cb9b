"""Decoders whose layers differ in width: a stock architecture with narrower layers.

This file travels with a checkpoint and needs only torch and transformers:

    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)

`config.layer_widths` has an entry for each layer: {"heads", "kv_heads", "channels", "attention_bias", "mlp_bias"};
the biases are those of the attention's and the MLP's output projections. A layer of no heads has no attention. All
else is as in the stock
architecture: its forward pass takes the widths from the tensors.

PrunedLlamaForCausalLM is the narrow form of Transformers' LlamaForCausalLM, and so for every other causal LM: the class
is made when this module is asked for it.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

PREFIX = "Pruned"
# What each linear of a layer holds, by the last part of its name
LINEARS = {
    "q_proj": "queries",
    "k_proj": "keys or values",
    "v_proj": "keys or values",
    "qkv_proj": "queries, keys and values",
    "query_key_value": "queries, keys and values",
    "o_proj": "attention's output",
    "out_proj": "attention's output",
    "dense": "attention's output",
    "gate_proj": "gates or ups",
    "up_proj": "gates or ups",
    "fc1": "gates or ups",
    "dense_h_to_4h": "gates or ups",
    "gate_up_proj": "gates and ups",
    "down_proj": "MLP's output",
    "fc2": "MLP's output",
    "dense_4h_to_h": "MLP's output",
}


MADE: dict[type[PreTrainedModel], type[PreTrainedModel]] = {}  # stock class -> its Pruned… class, as they are asked for


class NarrowLayers(PreTrainedModel):
    """Mixed into a stock causal LM: builds it, then replaces the layers' linears by those of `layer_widths`."""

    _auto_class = "AutoModelForCausalLM"  # save_pretrained copies this file and names it in config.json

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        decoder: Any = getattr(self.base_model, "decoder", self.base_model)
        for layer, widths in zip(decoder.layers, config.layer_widths, strict=True):
            make_narrow(layer, widths, config)


def pruned_class(stock: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """The narrow form of a stock causal LM, always the same class."""
    if stock not in MADE:
        MADE[stock] = type(PREFIX + stock.__name__, (NarrowLayers, stock), {"__module__": __name__})
    return MADE[stock]


def __getattr__(name: str) -> Any:
    """`config.auto_map` and pickles ask this module for a Pruned… class by its name."""
    stock = getattr(transformers, name.removeprefix(PREFIX), None) if name.startswith(PREFIX) else None
    if not (isinstance(stock, type) and issubclass(stock, PreTrainedModel)):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return pruned_class(stock)


class NoAttention(nn.Module):
    """Stands where a layer has no attention: adds nothing to the residual stream.

    A KV cache counts its tokens in the first layer, so one number a token is kept in it here too.
    """

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.head_dim = attention.head_dim if hasattr(attention, "head_dim") else attention.head_size
        self.layer_idx: int = attention.layer_idx

    def forward(self, *states: torch.Tensor, **arguments: Any) -> tuple[torch.Tensor, None]:
        hidden = states[0] if states else arguments["hidden_states"]
        for cache in arguments.values():
            if isinstance(cache, transformers.Cache):
                counted = hidden.new_zeros(hidden.shape[0], 1, hidden.shape[1], 1)
                cache.update(counted, counted, self.layer_idx)
        return torch.zeros_like(hidden), None


def make_narrow(layer: nn.Module, widths: dict[str, Any], config: Any) -> None:
    """Give a stock layer the linears of these widths, not initialised as the architecture would."""
    place = "self_attn" if hasattr(layer, "self_attn") else "attention"
    attention = getattr(layer, place)
    if not widths["heads"]:
        attention = NoAttention(attention)
        setattr(layer, place, attention)
    head_dim = attention.head_dim if hasattr(attention, "head_dim") else attention.head_size
    heads, kv_heads, channels = widths["heads"], widths["kv_heads"], widths["channels"]
    rows = {
        "queries": heads * head_dim,
        "keys or values": kv_heads * head_dim,
        "queries, keys and values": (heads + 2 * kv_heads) * head_dim,
        "gates or ups": channels,
        "gates and ups": 2 * channels,
    }
    columns = {"attention's output": heads * head_dim, "MLP's output": channels}
    biases = {"attention's output": widths["attention_bias"], "MLP's output": widths["mlp_bias"]}
    for path, module in list(layer.named_modules()):
        if isinstance(module, nn.Linear):
            parent, _, name = path.rpartition(".")
            holds = LINEARS.get(name, "")  # a linear of another name stays as wide as it is
            sizes = columns.get(holds, module.in_features), rows.get(holds, module.out_features)
            linear = nn.Linear(*sizes, bias=biases.get(holds, module.bias is not None))
            setattr(layer.get_submodule(parent), name, linear)
    set_heads(attention, heads, kv_heads, config)


def set_heads(attention: nn.Module, heads: int, kv_heads: int, config: Any) -> None:
    """Tell an attention module its numbers of heads, under the names that its architecture reads."""
    if not heads:
        return
    for name, value in (
        ("num_key_value_groups", heads // kv_heads),
        ("num_key_value_heads", kv_heads),
        ("num_heads", heads),
    ):
        if hasattr(attention, name):
            setattr(attention, name, value)
    if hasattr(attention, "qkv_proj"):  # Phi-3 splits it by the configuration's number of heads
        attention.config = config if heads == config.num_attention_heads else OwnHeads(config, heads)


class OwnHeads:
    """A configuration but for its number of heads; whatever is set on the configuration later shows here."""

    def __init__(self, config: Any, num_attention_heads: int) -> None:
        self.shared = config
        self.num_attention_heads = num_attention_heads

    def __getattr__(self, name: str) -> Any:
        if name == "shared" or name.startswith("__"):  # before __init__ has run: copies and pickles
            raise AttributeError(name)
        return getattr(self.shared, name)
