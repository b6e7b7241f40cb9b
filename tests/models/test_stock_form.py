"""A model is of its stock class where that can have its shape, and comes back to it."""

from __future__ import annotations

import pytest
import torch
from architectures import ARCHITECTURES, assert_generates, assert_reloads, logits_of, random_model
from cutting import CHANNELS, HEADS, SOME_LAYERS, assert_same, cut, lively_model, silence
from transformers import AutoModelForCausalLM, LlamaForCausalLM, MistralForCausalLM, Phi3Config

from greenprune.errors import ModelError
from greenprune.models import (
    add_output_bias,
    fit_class_and_config,
    keep_channels,
    load_checkpoint,
    modeling_pruned,
    remove_layers,
)
from greenprune.models.stock_form import OF_PRUNED


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_settling_an_untouched_model_changes_nothing(name):
    model = random_model(name)
    before = model.config.to_dict()
    assert fit_class_and_config(model) == "transformers"
    assert model.config.to_dict() == before
    assert type(model) is type(random_model(name))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_back_to_one_width_is_back_to_stock(name, tmp_path):
    every = range(4)
    cut(model := lively_model(name), SOME_LAYERS, heads=every)
    assert fit_class_and_config(model) == "trust_remote_code"
    model.save_pretrained(tmp_path / "first")
    for loaded in (
        load_checkpoint(tmp_path / "first", device="cpu"),
        AutoModelForCausalLM.from_pretrained(tmp_path / "first", trust_remote_code=True),
    ):
        cut(loaded, [0, 2, 3, 5], heads=every)
        assert fit_class_and_config(loaded) == "transformers"
        assert type(loaded) is type(random_model(name))
        assert not OF_PRUNED & loaded.config.to_dict().keys()
        assert_same(loaded, silence(lively_model(name), range(6), heads=every))
        assert_reloads(loaded, tmp_path / "second")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_second_cut_and_depth_pruning_on_a_reloaded_checkpoint(name, tmp_path):
    cut(model := lively_model(name), SOME_LAYERS)
    fit_class_and_config(model)
    model.save_pretrained(tmp_path / "first")
    model = load_checkpoint(tmp_path / "first", device="cpu")
    keep_channels(model, 1, range(4))  # of those that are left
    remove_layers(model, [2, 4])
    assert [own.num_attention_heads for own in model.config.per_layer_config] == [4, 2, 4, 4]
    assert fit_class_and_config(model) == "trust_remote_code"
    channels = modeling_pruned.channels_key(model.config)
    assert [getattr(own, channels) for own in model.config.per_layer_config] == [48, 4, 48, 48]

    reference = silence(silence(lively_model(name), SOME_LAYERS), [1], channels=CHANNELS[:4])
    remove_layers(reference, [2, 4])
    assert_same(model, reference)
    assert_generates(model)
    assert_reloads(model, tmp_path / "second")

    remove_layers(model, [1])  # the last narrow layer
    assert fit_class_and_config(model) == "transformers"
    assert_reloads(model, tmp_path / "third")


def without_a_window(name: str):
    model = lively_model(name)
    settings = {"sliding_window": None, "use_sliding_window": False, "layer_types": None}
    plain = type(model)(type(model.config)(**(model.config.to_dict() | settings))).eval()
    plain.load_state_dict(model.state_dict())
    return plain


@pytest.mark.parametrize("name", ["mistral", "qwen2"])
@pytest.mark.parametrize("heads", [HEADS, [0, 1, 2, 3]])
def test_biases_of_outputs_make_it_a_llama(name, heads, tmp_path):
    model = cut(without_a_window(name), range(6), heads=heads)
    add_output_bias(model, 1, torch.randn(32), torch.randn(32))
    before = logits_of(model)
    assert fit_class_and_config(model) == "transformers"
    assert type(model) is LlamaForCausalLM
    assert model.config.model_type == "llama"
    torch.testing.assert_close(logits_of(model), before, atol=0, rtol=0)
    assert_generates(model)
    assert_reloads(model, tmp_path)
    cut(model, [2], heads=[0], channels=[1])
    assert fit_class_and_config(model) == "trust_remote_code"


def test_heads_that_do_not_divide_the_hidden_size_make_a_llama_a_mistral(tmp_path):
    model = cut(lively_model("llama-mha"), range(6), heads=[0, 1, 3])
    before = logits_of(model)
    assert fit_class_and_config(model) == "transformers"
    assert type(model) is MistralForCausalLM
    assert model.config.sliding_window is None
    torch.testing.assert_close(logits_of(model), before, atol=0, rtol=0)
    assert_generates(model)
    assert_reloads(model, tmp_path)


@pytest.mark.parametrize("name", ["mistral", "qwen2"])
def test_a_window_keeps_the_architecture(name, tmp_path):
    model = cut(lively_model(name), range(6))
    add_output_bias(model, 1, None, torch.randn(32))
    assert fit_class_and_config(model) == "trust_remote_code"
    assert_reloads(model, tmp_path)


def test_code_of_others_is_pruned_to_one_width_only():
    from transformers import LlamaForCausalLM

    class TheirsForCausalLM(LlamaForCausalLM):
        _auto_class = "AutoModelForCausalLM"

    model = lively_model("llama")
    model.__class__ = TheirsForCausalLM
    cut(model, range(6))
    assert fit_class_and_config(model) == "trust_remote_code"
    assert type(model) is TheirsForCausalLM
    cut(model, [1], heads=[0, 1], channels=[0])
    with pytest.raises(ModelError, match="got TheirsForCausalLM; prune to one width"):
        fit_class_and_config(model)


def test_entries_of_a_base_for_its_own_code_are_left_out(tmp_path):
    model = lively_model("phi3")
    model.config.auto_map = {"AutoConfig": "configuration_phi3.Phi3Config"}  # as on the hub
    fit_class_and_config(cut(model, SOME_LAYERS))
    assert_reloads(model, tmp_path)


def test_a_stock_config_that_refuses_the_widths_is_not_used(tmp_path):
    """Phi-3 checks the length of its long-context factors against hidden_size / heads, whatever head_dim says."""
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "rope_theta": 1e4}
    settings = random_model("phi3").config.to_dict() | {"rope_parameters": rope, "original_max_position_embeddings": 32}
    config = Phi3Config(**settings)
    torch.manual_seed(0)
    model = cut(AutoModelForCausalLM.from_config(config).eval(), range(6))
    assert fit_class_and_config(model) == "trust_remote_code"
    assert model.config.num_attention_heads == 4
    assert_generates(model)
    assert_reloads(model, tmp_path)
