"""Decoders whose layers differ in width: a stock architecture with narrower layers.

This file travels with a checkpoint and needs only torch and transformers:

    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)

`config.per_layer_config` (Transformers' key, which vLLM reads too) says in what a layer differs from the rest of
config.json: its heads and channels, under the names of the architecture, and `o_proj_bias` and `down_proj_bias`,
whether the output projections of attention and MLP have a bias. A layer of no heads has no attention. All else is as in
the stock architecture: its forward pass takes the widths from the tensors.

PrunedLlamaForCausalLM is the narrow form of Transformers' LlamaForCausalLM, PrunedLlamaModel of LlamaModel, and so for
every other: the class is made when this module is asked for it. vLLM builds the second (`AutoModel`).
"""

from __future__ import annotations

import logging
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

PREFIX = "Pruned"
BIASES = ("o_proj_bias", "down_proj_bias")
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


# It warns of a width that is read of the configuration as a whole, which for a layer's size would be wrong.
logging.getLogger("transformers.integrations.heterogeneity.configuration_utils").setLevel(logging.ERROR)


class NarrowLayers(PreTrainedModel):
    """Mixed into a stock model: builds it, then replaces the layers' linears by those of `per_layer_config`."""

    def __init__(self, config: Any) -> None:
        older = hasattr(config, "layer_widths")
        if older:
            use_per_layer_config(config)
        super().__init__(config)
        if older:
            config.auto_map = auto_map(type(self), type(self.base_model))
        decoder: Any = getattr(self.base_model, "decoder", self.base_model)
        for layer, own in zip(decoder.layers, config.per_layer_config, strict=True):
            make_narrow(layer, own, config)


def pruned_class(stock: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """The narrow form of a stock causal LM or its base model, always the same class."""
    if stock not in MADE:
        # save_pretrained copies this file and names the class in config.json, under this name
        auto = "AutoModelForCausalLM" if stock.__name__.endswith("ForCausalLM") else "AutoModel"
        fields = {"__module__": __name__, "_auto_class": auto}
        MADE[stock] = type(PREFIX + stock.__name__, (NarrowLayers, stock), fields)
    return MADE[stock]


def auto_map(pruned: type[PreTrainedModel], base: type[PreTrainedModel]) -> dict[str, str]:
    """What config.json says of where this code is. base: the stock base model in `pruned`."""
    module = __name__.rpartition(".")[2]
    return {"AutoModel": f"{module}.{PREFIX}{base.__name__}", "AutoModelForCausalLM": f"{module}.{pruned.__name__}"}


def __getattr__(name: str) -> Any:
    """`config.auto_map` and pickles ask this module for a Pruned… class by its name."""
    stock = getattr(transformers, name.removeprefix(PREFIX), None) if name.startswith(PREFIX) else None
    if not (isinstance(stock, type) and issubclass(stock, PreTrainedModel)):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return pruned_class(stock)


class NoHeads(nn.Module):  # not "…Attention": Transformers takes such a class for attention of its own kind
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


def channels_key(config: Any) -> str:
    """What the architecture calls the width of its MLP."""
    return "ffn_dim" if hasattr(config, "ffn_dim") else "intermediate_size"


def use_per_layer_config(config: Any) -> None:
    """Say in today's terms what older checkpoints say in `layer_widths`, a mapping for each layer."""
    grouped = hasattr(config, "num_key_value_heads")
    layers = {}
    for layer, widths in enumerate(config.layer_widths):
        layers[layer] = {"num_attention_heads": widths["heads"], channels_key(config): widths["channels"]}
        layers[layer] |= {"num_key_value_heads": widths["kv_heads"]} if grouped else {}
        layers[layer] |= zip(BIASES, (widths["attention_bias"], widths["mlp_bias"]), strict=True)
    del config.layer_widths
    set_per_layer_config(config, layers)


def set_per_layer_config(config: Any, layers: dict[int, dict[str, Any]]) -> None:
    """Each layer's own fields; what all have in common stands in the configuration's."""
    for name in BIASES:
        setattr(config, name, all(own[name] for own in layers.values()))
    config.allow_global_per_layer_attribute_access = True  # its class checks itself by them
    config.per_layer_config = layers


def make_narrow(layer: nn.Module, own: Any, config: Any) -> None:
    """Give a stock layer the linears of its own configuration, not initialised as the architecture would."""
    place = "self_attn" if hasattr(layer, "self_attn") else "attention"
    attention = getattr(layer, place)
    if not own.num_attention_heads:
        attention = NoHeads(attention)
        setattr(layer, place, attention)
    head_dim = attention.head_dim if hasattr(attention, "head_dim") else attention.head_size
    heads, channels = own.num_attention_heads, getattr(own, channels_key(own))
    kv_heads = getattr(own, "num_key_value_heads", heads)
    rows = {
        "queries": heads * head_dim,
        "keys or values": kv_heads * head_dim,
        "queries, keys and values": (heads + 2 * kv_heads) * head_dim,
        "gates or ups": channels,
        "gates and ups": 2 * channels,
    }
    columns = {"attention's output": heads * head_dim, "MLP's output": channels}
    biases = {"attention's output": own.o_proj_bias, "MLP's output": own.down_proj_bias}
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
