"""Decoders whose layers differ in width: a stock architecture with narrower layers.

This file travels with a checkpoint and needs only torch and transformers:

    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)

`config.layer_widths` has an entry for each layer: {"heads", "kv_heads", "channels", "attention_bias", "mlp_bias"};
the biases are those of the attention's and the MLP's output projections. All else is as in the stock
architecture: its forward pass takes the widths from the tensors.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import (
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    GemmaForCausalLM,
    Glm4ForCausalLM,
    GPTNeoXForCausalLM,
    LlamaForCausalLM,
    MistralForCausalLM,
    OPTForCausalLM,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)

QUERIES = ("q_proj",)
KEYS_OR_VALUES = ("k_proj", "v_proj")
QUERIES_KEYS_VALUES = ("qkv_proj", "query_key_value")
ATTENTION_OUTPUTS = ("o_proj", "out_proj", "dense")
GATES_OR_UPS = ("gate_proj", "up_proj", "fc1", "dense_h_to_4h")
GATES_AND_UPS = ("gate_up_proj",)
MLP_OUTPUTS = ("down_proj", "fc2", "dense_4h_to_h")


class NarrowLayers(PreTrainedModel):
    """Mixed into a stock causal LM: builds it, then replaces the layers' linears by those of `layer_widths`."""

    _auto_class = "AutoModelForCausalLM"  # save_pretrained copies this file and names it in config.json

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        decoder: Any = getattr(self.base_model, "decoder", self.base_model)
        for layer, widths in zip(decoder.layers, config.layer_widths, strict=True):
            narrow(layer, widths, config)


def narrow(layer: nn.Module, widths: dict[str, Any], config: Any) -> None:
    """Give a stock layer the linears of these widths, not initialised as the architecture would."""
    attention = layer.self_attn if hasattr(layer, "self_attn") else layer.attention
    head_dim = attention.head_dim if hasattr(attention, "head_dim") else attention.head_size
    heads, kv_heads, channels = widths["heads"], widths["kv_heads"], widths["channels"]
    rows = dict.fromkeys(QUERIES, heads * head_dim) | dict.fromkeys(KEYS_OR_VALUES, kv_heads * head_dim)
    rows |= dict.fromkeys(QUERIES_KEYS_VALUES, (heads + 2 * kv_heads) * head_dim)
    rows |= dict.fromkeys(GATES_OR_UPS, channels) | dict.fromkeys(GATES_AND_UPS, 2 * channels)
    columns = dict.fromkeys(ATTENTION_OUTPUTS, heads * head_dim) | dict.fromkeys(MLP_OUTPUTS, channels)
    biases = dict.fromkeys(ATTENTION_OUTPUTS, widths["attention_bias"]) | dict.fromkeys(MLP_OUTPUTS, widths["mlp_bias"])
    for path, module in list(layer.named_modules()):
        if isinstance(module, nn.Linear):
            parent, _, name = path.rpartition(".")
            sizes = columns.get(name, module.in_features), rows.get(name, module.out_features)
            linear = nn.Linear(*sizes, bias=biases.get(name, module.bias is not None))
            setattr(layer.get_submodule(parent), name, linear)
    set_heads(attention, heads, kv_heads, config)


def set_heads(attention: nn.Module, heads: int, kv_heads: int, config: Any) -> None:
    """Tell an attention module its numbers of heads, under the names that its architecture reads."""
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


class PrunedLlamaForCausalLM(NarrowLayers, LlamaForCausalLM):
    pass


class PrunedMistralForCausalLM(NarrowLayers, MistralForCausalLM):
    pass


class PrunedQwen2ForCausalLM(NarrowLayers, Qwen2ForCausalLM):
    pass


class PrunedQwen3ForCausalLM(NarrowLayers, Qwen3ForCausalLM):
    pass


class PrunedGemmaForCausalLM(NarrowLayers, GemmaForCausalLM):
    pass


class PrunedGemma2ForCausalLM(NarrowLayers, Gemma2ForCausalLM):
    pass


class PrunedGemma3ForCausalLM(NarrowLayers, Gemma3ForCausalLM):
    pass


class PrunedPhi3ForCausalLM(NarrowLayers, Phi3ForCausalLM):
    pass


class PrunedGlm4ForCausalLM(NarrowLayers, Glm4ForCausalLM):
    pass


class PrunedOPTForCausalLM(NarrowLayers, OPTForCausalLM):
    pass


class PrunedGPTNeoXForCausalLM(NarrowLayers, GPTNeoXForCausalLM):
    pass


# model_type -> its class here and the stock class that it narrows
CLASSES: dict[str, tuple[type[PreTrainedModel], type[PreTrainedModel]]] = {
    "llama": (PrunedLlamaForCausalLM, LlamaForCausalLM),
    "mistral": (PrunedMistralForCausalLM, MistralForCausalLM),
    "qwen2": (PrunedQwen2ForCausalLM, Qwen2ForCausalLM),
    "qwen3": (PrunedQwen3ForCausalLM, Qwen3ForCausalLM),
    "gemma": (PrunedGemmaForCausalLM, GemmaForCausalLM),
    "gemma2": (PrunedGemma2ForCausalLM, Gemma2ForCausalLM),
    "gemma3_text": (PrunedGemma3ForCausalLM, Gemma3ForCausalLM),
    "phi3": (PrunedPhi3ForCausalLM, Phi3ForCausalLM),
    "glm4": (PrunedGlm4ForCausalLM, Glm4ForCausalLM),
    "opt": (PrunedOPTForCausalLM, OPTForCausalLM),
    "gpt_neox": (PrunedGPTNeoXForCausalLM, GPTNeoXForCausalLM),
}
