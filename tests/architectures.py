"""A tiny random model of every architecture, and what any pruned one must do, for the contract suites."""

from __future__ import annotations

import copy

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from greenprune.models import load_checkpoint

SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 6, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 48, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2}
GROUPED = {"num_key_value_heads": 2, "pad_token_id": 0}
ARCHITECTURES = {
    "llama": GROUPED,
    "llama-mha": {"num_key_value_heads": 4, "pad_token_id": 0, "tie_word_embeddings": True},
    "mistral": GROUPED | {"sliding_window": 8},
    "qwen2": GROUPED | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3},
    "qwen3": GROUPED | {"head_dim": 8},
    "gemma": GROUPED | {"head_dim": 8},
    "gemma2": GROUPED | {"head_dim": 8, "sliding_window": 8},
    "gemma3_text": GROUPED | {"head_dim": 8, "sliding_window": 8, "sliding_window_pattern": 3},
    "phi3": GROUPED,
    "glm4": GROUPED | {"head_dim": 8},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "pad_token_id": 0},
    "gpt_neox": {"pad_token_id": 0},
}
TOKENS = torch.randint(3, 64, (4, 16), generator=torch.Generator().manual_seed(0))


def random_model(name: str, dtype: torch.dtype = torch.float32):
    settings = SIZES | ARCHITECTURES[name]
    if name == "opt":
        settings = {key: value for key, value in settings.items() if key != "intermediate_size"}
    torch.manual_seed(0)
    config = AutoConfig.for_model(name.split("-")[0], **settings)
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def with_own_kv_heads(model):
    """The same function of a Llama with a KV head for each query head."""
    config, weights = copy.deepcopy(model.config), model.state_dict()
    head_dim, kv_heads = model.model.layers[0].self_attn.head_dim, config.num_key_value_heads
    for name, weight in weights.items():
        if ".k_proj." in name or ".v_proj." in name:
            heads = weight.view(kv_heads, head_dim, -1).repeat_interleave(config.num_attention_heads // kv_heads, dim=0)
            weights[name] = heads.flatten(0, 1)
    config.num_key_value_heads = config.num_attention_heads
    wide = type(model)(config).eval()
    wide.load_state_dict(weights)
    return wide


def logits_of(model) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def assert_generates(model) -> None:
    """Six greedy tokens, the same with the KV cache and without."""
    with_cache, without = (
        model.generate(TOKENS, max_new_tokens=6, min_new_tokens=6, do_sample=False, use_cache=use)
        for use in (True, False)
    )
    assert torch.equal(with_cache, without)


def assert_reloads(model, folder, needs: str | None = None) -> None:
    """The checkpoint gives the same logits through plain Transformers, and through us without remote code.

    needs: what the report says that loading takes, where there is a report.
    """
    model.save_pretrained(folder)
    stock = not model.config.is_heterogeneous
    assert needs in (None, "transformers" if stock else "trust_remote_code")
    assert stock == (not (folder / "modeling_pruned.py").exists())
    plain = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=not stock)
    ours = load_checkpoint(folder, device="cpu")
    assert type(ours) is type(model)
    assert ours.config.to_dict() == plain.config.to_dict()
    for reloaded in (plain, ours):
        assert reloaded.dtype == model.dtype
        torch.testing.assert_close(logits_of(reloaded), logits_of(model), atol=0, rtol=0)
