"""A checkpoint that loads as another model is found when it is written; older ones still load."""

from __future__ import annotations

import json

import pytest
import torch
from architectures import ARCHITECTURES, assert_reloads, logits_of, random_model
from cutting import SOME_LAYERS, cut, lively_model

from greenprune.errors import ModelError
from greenprune.models import Decoder, add_output_bias, fit_class_and_config, load_checkpoint, save_checkpoint
from greenprune.models.saved import check_logits, check_saved, short_prompt


def with_bias(name: str, layers, scale: float = 1.0):
    model = lively_model(name)
    for layer in layers:
        add_output_bias(model, layer, None, scale * torch.randn(32, generator=torch.Generator().manual_seed(layer)))
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bias_that_the_config_does_not_announce(tmp_path, tiny_tokenizer, dtype):
    model = with_bias("llama", range(6)).to(dtype)
    with pytest.raises(ModelError, match=r"other tensors .*layers.0.mlp.down_proj.bias"):
        save_checkpoint(model, tiny_tokenizer, tmp_path / "silent")  # fit_class_and_config was forgotten
    fit_class_and_config(model)
    save_checkpoint(model, tiny_tokenizer, tmp_path / "announced")


def test_weights_that_are_not_the_models(tmp_path, tiny_tokenizer):
    fit_class_and_config(model := cut(lively_model("llama"), SOME_LAYERS))
    save_checkpoint(model, tiny_tokenizer, tmp_path)
    model.train()
    with torch.no_grad():
        Decoder(model).view(3).down.weight.zero_()
    with pytest.raises(ModelError, match="must give the logits of the model in memory"):
        check_saved(model, tmp_path)
    assert model.training


def test_logits_that_are_not_numbers_are_no_difference():
    logits = torch.tensor([[1.0, float("nan")]])
    check_logits(logits, logits.clone(), torch.float32, "it")
    with pytest.raises(ModelError, match="it must give"):
        check_logits(logits, [[1.0, 1.0]], torch.float32, "it")


@pytest.mark.parametrize("vocabulary", [8, 64, 49152])
def test_a_prompt_is_within_the_vocabulary(vocabulary):
    assert len(set(short_prompt(vocabulary))) == 8
    assert max(short_prompt(vocabulary)) < vocabulary


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_checkpoint_with_the_older_key(name, tmp_path):
    """`layer_widths`, and in the common fields the largest widths, as checkpoints were written until November 2026."""
    model = lively_model(name)
    add_output_bias(model, 1, torch.ones(32), None)
    fit_class_and_config(cut(model, range(6), channels=range(8)) if name == "mistral" else cut(model, SOME_LAYERS))
    model.save_pretrained(tmp_path / "old")
    views = Decoder(model).views()
    written = json.loads((tmp_path / "old/config.json").read_text())
    new = ("per_layer_config", "allow_global_per_layer_attribute_access", "o_proj_bias", "down_proj_bias")
    old = {key: value for key, value in written.items() if key not in new}
    old["layer_widths"] = [
        {
            "heads": view.heads,
            "kv_heads": view.kv_heads,
            "channels": view.channels,
            "attention_bias": view.out.bias is not None,
            "mlp_bias": view.down.bias is not None,
        }
        for view in views
    ]
    channels = Decoder(model).layout.config_channels
    old[channels] = max(view.channels for view in views)
    old["auto_map"] = {"AutoModelForCausalLM": f"modeling_pruned.{type(model).__name__}"}
    (tmp_path / "old/config.json").write_text(json.dumps(old))

    again = load_checkpoint(tmp_path / "old", device="cpu")
    assert torch.equal(logits_of(again), logits_of(model))
    assert not hasattr(again.config, "layer_widths")
    assert_reloads(again, tmp_path / "new")
    assert set(again.config.auto_map) == {"AutoModel", "AutoModelForCausalLM"}


@pytest.mark.parametrize("name", ["llama", "opt", "gemma3_text"])
def test_configuration_in_transformers_own_terms(name, tmp_path):
    stock = random_model(name).config
    fit_class_and_config(model := cut(lively_model(name), [1]))
    model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    channels = Decoder(model).layout.config_channels
    own = {"num_attention_heads": 2, channels: 8}
    assert written["per_layer_config"] == {"1": own}  # KV heads stay two; what is like the rest isn't written
    for field in (channels, "num_attention_heads", "hidden_size"):
        assert written[field] == getattr(stock, field)
    assert written.get("head_dim", 8) == 8
