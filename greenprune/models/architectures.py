"""All that is known of an architecture, in one entry: ARCHITECTURES, by `config.model_type`.

To add one: its entry here and its row in tests/architectures.py. Where its linears have names of their own (most are
named as in Llama), they go into LINEARS of modeling_pruned.py too: that file travels alone and can't read this one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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

    @property
    def linears(self) -> tuple[str, ...]:
        """The path of every matrix that can be pruned, once each, in order of execution."""
        paths = (self.query, self.key, self.value, self.out, self.gate, self.up, self.down)
        return tuple(dict.fromkeys(path for path in paths if path is not None))


@dataclass(frozen=True)
class Architecture:
    """stock: Transformers' causal LM, from which the class of layers of different widths is made too.

    same_as: what computes the same from tensors of the same names, as long as no window narrows attention.
    masks: what the decoder's forward takes as a prepared attention mask: "one" for all layers, or "by_layer_type", one
    for each of config.layer_types.
    """

    stock: type[PreTrainedModel]
    layout: Layout = Layout()
    masks: Literal["one", "by_layer_type"] = "one"
    same_as: tuple[str, ...] = ()


GEMMA_2 = Layout(
    mlp_norm="pre_feedforward_layernorm",
    output_norms=("post_attention_layernorm", "post_feedforward_layernorm"),
    config_biases=("attention_bias",),
)

ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(
        LlamaForCausalLM,
        Layout(config_biases=("attention_bias", "mlp_bias")),
        same_as=("mistral",),  # whose configuration takes any number of heads
    ),
    "mistral": Architecture(MistralForCausalLM, same_as=("llama",)),  # whose configuration has biases
    "qwen2": Architecture(Qwen2ForCausalLM, masks="by_layer_type", same_as=("llama",)),
    "qwen3": Architecture(Qwen3ForCausalLM, Layout(config_biases=("attention_bias",)), masks="by_layer_type"),
    "gemma": Architecture(GemmaForCausalLM, Layout(config_biases=("attention_bias",))),
    "gemma2": Architecture(Gemma2ForCausalLM, GEMMA_2, masks="by_layer_type"),
    "gemma3_text": Architecture(Gemma3ForCausalLM, GEMMA_2, masks="by_layer_type"),
    "phi3": Architecture(
        Phi3ForCausalLM,
        Layout(
            query="self_attn.qkv_proj",
            key="self_attn.qkv_proj",
            value="self_attn.qkv_proj",
            gate="mlp.gate_up_proj",
            up="mlp.gate_up_proj",
        ),
    ),
    "glm4": Architecture(
        Glm4ForCausalLM,
        Layout(
            gate="mlp.gate_up_proj",
            up="mlp.gate_up_proj",
            output_norms=("post_self_attn_layernorm", "post_mlp_layernorm"),
        ),
    ),
    "opt": Architecture(
        OPTForCausalLM,
        Layout(
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
    ),
    "gpt_neox": Architecture(
        GPTNeoXForCausalLM,
        Layout(
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
    ),
}


def architecture_of(model: PreTrainedModel) -> Architecture:
    """Raises ModelError for an architecture without an entry."""
    model_type = model.config.model_type
    if model_type not in ARCHITECTURES:
        raise ModelError(
            f"the model must be one of {', '.join(sorted(ARCHITECTURES))}, got {model_type}; "
            "add its entry to ARCHITECTURES in greenprune/models/architectures.py"
        )
    return ARCHITECTURES[model_type]
