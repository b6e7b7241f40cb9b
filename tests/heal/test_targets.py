"""Which projections get an adapter."""

from __future__ import annotations

import pytest
from healing import TRAIN, VALIDATION, config, tiny_config
from transformers import AutoModelForCausalLM

from greenprune.errors import ConfigError
from greenprune.heal.lora import heal_with_lora
from greenprune.heal.targets import target_modules

ARCHITECTURES = {
    "llama": {"intermediate_size": 128, "num_key_value_heads": 2},
    "mistral": {"intermediate_size": 128, "num_key_value_heads": 2},
    "qwen2": {"intermediate_size": 128, "num_key_value_heads": 2},
    "qwen3": {"intermediate_size": 128, "num_key_value_heads": 2, "head_dim": 16},
    "gemma": {"intermediate_size": 128, "num_key_value_heads": 2, "head_dim": 16},
    "gemma2": {"intermediate_size": 128, "num_key_value_heads": 2, "head_dim": 16},
    "phi3": {"intermediate_size": 128, "num_key_value_heads": 2, "pad_token_id": 0},
    "opt": {"ffn_dim": 128, "word_embed_proj_dim": 32},
    "gpt_neox": {"intermediate_size": 128},
}


SPLIT = {"attention": ["q_proj", "k_proj", "v_proj", "o_proj"], "mlp": ["gate_proj", "up_proj", "down_proj"]}


SPLITS = {
    "phi3": {"attention": ["qkv_proj", "o_proj"], "mlp": ["gate_up_proj", "down_proj"]},
    "opt": {"attention": ["k_proj", "v_proj", "q_proj", "out_proj"], "mlp": ["fc1", "fc2"]},
    "gpt_neox": {"attention": ["query_key_value", "dense"], "mlp": ["dense_h_to_4h", "dense_4h_to_h"]},
}


def leaves(names: list[str]) -> set[str]:
    return {name.rpartition(".")[2] for name in names}


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_targets_of_every_architecture(model_type, tmp_path):
    model = AutoModelForCausalLM.from_config(tiny_config(model_type, **ARCHITECTURES[model_type]))
    expected = SPLITS.get(model_type, SPLIT)
    everything = target_modules(model, "all-linear")
    assert leaves(everything) == {*expected["attention"], *expected["mlp"]}
    assert len(everything) == 3 * len(leaves(everything))
    for part, names in expected.items():
        assert leaves(target_modules(model, part)) == set(names)
    first = expected["mlp"][0]
    assert leaves(target_modules(model, [first])) == {first}
    model.save_pretrained(tmp_path / "model")
    merged, history = heal_with_lora(tmp_path / "model", TRAIN, VALIDATION, config(steps=3), tmp_path / "work")
    assert history.loss_merged < history.loss_start
    assert merged.state_dict().keys() == model.state_dict().keys()


def test_unknown_target_is_refused_with_the_nearest(checkpoint, tmp_path):
    with pytest.raises(ConfigError, match=r"got 'q_prj'; did you mean 'q_proj'\? choices: down_proj"):
        heal_with_lora(checkpoint, TRAIN, VALIDATION, config(target_modules=["v_proj", "q_prj"]), tmp_path)
    with pytest.raises(ConfigError, match="lm_head"):
        heal_with_lora(checkpoint, TRAIN, VALIDATION, config(target_modules=["lm_head"]), tmp_path)
