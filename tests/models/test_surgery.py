"""Models cut by hand equal dense ones whose cut parts give nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from architectures import ARCHITECTURES, assert_generates, assert_reloads, logits_of
from cutting import CHANNELS, GROUPED, OWN_HEAD_DIM, SOME_LAYERS, assert_same, cut, entry_of, lively_model, silence

from greenprune.errors import ModelError
from greenprune.models import Decoder, add_output_bias, fit_class_and_config, keep_channels, keep_heads


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("layers", [range(6), SOME_LAYERS], ids=["uniform", "per-layer"])
def test_cut_equals_silenced(name, layers, tmp_path):
    model, reference = cut(lively_model(name), layers), silence(lively_model(name), layers)
    assert_same(model, reference)
    stock = len(layers) == 6 and name in OWN_HEAD_DIM
    assert fit_class_and_config(model) == ("transformers" if stock else "trust_remote_code")
    assert not stock or Decoder(model).view(0).attention.config is model.config
    assert_same(model, reference)
    assert_generates(model)
    assert_reloads(model, tmp_path)
    assert all(parameter.is_contiguous() for parameter in model.parameters())
    settled = model.config.to_dict()
    fit_class_and_config(model)
    assert model.config.to_dict() == settled
    assert_same(model, reference)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_channels_of_one_width_are_stock_everywhere(name, tmp_path):
    model, every = lively_model(name), range(4)
    cut(model, range(6), heads=every)
    assert fit_class_and_config(model) == "transformers"
    assert_same(model, silence(lively_model(name), range(6), heads=every))
    assert_reloads(model, tmp_path)


@pytest.mark.parametrize("name", GROUPED)
def test_whole_kv_groups(name, tmp_path):
    model = lively_model(name)
    for layer in range(6):
        keep_heads(model, layer, [2, 3], kv_heads=[1])
    assert Decoder(model).view(0).kv_heads == 1
    assert fit_class_and_config(model) == "transformers"
    assert model.config.num_key_value_heads == 1
    assert_same(model, silence(lively_model(name), range(6), heads=[2, 3], channels=range(48)))
    assert_generates(model)
    assert_reloads(model, tmp_path)


@pytest.mark.parametrize("name", ["llama", "phi3", "gemma3_text", "glm4", "opt", "gpt_neox"])
@pytest.mark.parametrize("layers", [range(6), SOME_LAYERS], ids=["uniform", "per-layer"])
def test_bf16(name, layers, tmp_path):
    model = cut(lively_model(name, torch.bfloat16), layers)
    fit_class_and_config(model)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert logits_of(model).isfinite().all()
    assert_reloads(model, tmp_path)


def test_order_and_repetition_of_indices():
    model = lively_model("llama")
    keep_channels(model, 0, list(reversed(CHANNELS)))
    assert_same(model, silence(lively_model("llama"), [0], heads=range(4)))
    with pytest.raises(ModelError, match="each once"):
        keep_channels(model, 0, [1, 1])


def test_frozen_parameters_stay_frozen():
    model = lively_model("llama").requires_grad_(False)
    cut(model, range(6))
    add_output_bias(model, 0, torch.ones(32), None)
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("heads", "kv_heads", "message"),
    [
        ([], None, r"heads to keep in layer 1 must be at least one of 0\.\.3"),
        ([4], None, "got \\[4\\]"),
        ([0, 1, 2], None, r"equally many of its 2 query heads, got \{0: 2, 1: 1\}"),
        ([0, 1], [0, 1], r"must be the ones that its kept heads read, \[0\], got \[0, 1\]"),
    ],
)
def test_impossible_heads_are_refused_and_change_nothing(heads, kv_heads, message):
    model = lively_model("llama")
    with pytest.raises(ModelError, match=message):
        keep_heads(model, 1, heads, kv_heads)
    assert_same(model, lively_model("llama"))


@pytest.mark.parametrize("channels", [[], [48], [-1]])
def test_impossible_channels_are_refused(channels):
    with pytest.raises(ModelError, match=r"one of 0\.\.47"):
        keep_channels(lively_model("opt"), 1, channels)


# -------------------------------------------------------------------------------------------------- biases


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("layers", [range(6), SOME_LAYERS], ids=["uniform", "per-layer"])
def test_output_biases(name, layers, tmp_path):
    """A bias equals one more unit that always gives it; here: a hook on the dense model's projections."""
    model, reference = lively_model(name), silence(lively_model(name), layers)
    cut(model, layers)
    attention, mlp = torch.linspace(-1, 1, 32), torch.linspace(2, -2, 32)
    for layer in (1, 4):
        add_output_bias(model, layer, attention, None)
        add_output_bias(model, layer, attention, mlp)  # on the bias that is there
        view = Decoder(reference).view(layer)
        view.out.register_forward_hook(lambda _, __, output: output + 2 * attention)
        view.down.register_forward_hook(lambda _, __, output: output + mlp)
    assert_same(model, reference)
    stock = {"attention_bias", "mlp_bias"} <= {*entry_of(name).layout.config_biases} and len(layers) == 6
    assert fit_class_and_config(model) == ("transformers" if stock else "trust_remote_code")
    assert_same(model, reference)
    assert_generates(model)
    assert_reloads(model, tmp_path)


def test_stock_biases_are_zero_beside_those_that_were_added(tmp_path):
    model = lively_model("llama")
    add_output_bias(model, 3, None, torch.ones(32))
    assert fit_class_and_config(model) == "transformers"
    assert (model.config.mlp_bias, model.config.attention_bias) == (True, False)  # no more than is needed
    biases = {name: tensor for name, tensor in model.named_parameters() if name.endswith("bias")}
    assert len(biases) == 6 * 3
    assert [name for name, tensor in biases.items() if tensor.any()] == ["model.layers.3.mlp.down_proj.bias"]
    assert_reloads(model, tmp_path)


def test_a_bias_only_the_config_of_another_architecture_could_hold():
    model = lively_model("qwen3")
    add_output_bias(model, 0, torch.ones(32), None)
    assert fit_class_and_config(copy.deepcopy(model)) == "transformers"  # attention_bias
    add_output_bias(model, 0, None, torch.ones(32))
    assert fit_class_and_config(model) == "trust_remote_code"
