"""A model is of its stock class where that can have its shape, and comes back to it."""

from __future__ import annotations

import pytest
import torch
from architectures import ARCHITECTURES, assert_generates, assert_reloads, random_model
from cutting import CHANNELS, SOME_LAYERS, assert_same, cut, lively_model, silence
from transformers import AutoModelForCausalLM, Phi3Config

from greenprune.errors import ModelError
from greenprune.models import fit_class_and_config, keep_channels, load_checkpoint, remove_layers


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
        assert not {"layer_widths", "auto_map"} & loaded.config.to_dict().keys()
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
    assert [widths["heads"] for widths in model.config.layer_widths] == [4, 2, 4, 4]
    assert fit_class_and_config(model) == "trust_remote_code"
    assert [widths["channels"] for widths in model.config.layer_widths] == [48, 4, 48, 48]

    reference = silence(silence(lively_model(name), SOME_LAYERS), [1], channels=CHANNELS[:4])
    remove_layers(reference, [2, 4])
    assert_same(model, reference)
    assert_generates(model)
    assert_reloads(model, tmp_path / "second")

    remove_layers(model, [1])  # the last narrow layer
    assert fit_class_and_config(model) == "transformers"
    assert_reloads(model, tmp_path / "third")


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
