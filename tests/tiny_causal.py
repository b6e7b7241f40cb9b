"""Two-layer random models of several architectures over a vocabulary of bytes."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM

VOCABULARY = 384


SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}


ARCHITECTURES = {
    "llama": {"intermediate_size": 128, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "gemma2": {
        "intermediate_size": 128,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "sliding_window": 8,
        "final_logit_softcapping": 0.5,
    },
    "opt": {"ffn_dim": 128, "word_embed_proj_dim": 64},
    "gpt_neox": {"intermediate_size": 128},
    "gpt2": {"n_positions": 64, "n_embd": 64, "n_layer": 2, "n_head": 4},
}


def tiny(architecture: str = "llama", **changes: object):
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **{**SIZES, **ARCHITECTURES[architecture], **changes})
    return AutoModelForCausalLM.from_config(config).eval()
