"""Models cut by hand equal dense ones whose cut parts give nothing; and what they save loads anywhere."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import pytest
import torch
from architectures import ARCHITECTURES, TOKENS, assert_generates, assert_reloads, logits_of, random_model
from transformers import AutoModelForCausalLM, Phi3Config

from greenprune.errors import ModelError
from greenprune.models import (
    Decoder,
    add_output_bias,
    fit_class_and_config,
    keep_channels,
    keep_heads,
    keep_hidden,
    load_checkpoint,
    load_tokenizer,
    remove_layers,
    save_checkpoint,
)

HEADS, CHANNELS = [0, 2], [0, 1, 3, 5, 8, 13, 21, 34]  # one head of each KV group, where there are groups
SOME_LAYERS = [1, 4]
GROUPED = [name for name, settings in ARCHITECTURES.items() if settings.get("num_key_value_heads") == 2]
OWN_HEAD_DIM = [name for name in ARCHITECTURES if name not in ("opt", "gpt_neox")]


def lively_model(name: str, dtype: torch.dtype = torch.float32):
    """A model in which every head and channel matters, and no bias or norm is trivial."""
    model = random_model(name, dtype)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator).to(dtype)
    return model


def cut(model, layers, heads=HEADS, channels=CHANNELS):
    for layer in layers:
        keep_heads(model, layer, heads)
        keep_channels(model, layer, channels)
    return model


def silence(model, layers, heads=HEADS, channels=CHANNELS):
    """Zero what all but these heads and channels give; the model stays dense."""
    for view in map(Decoder(model).view, layers):
        for linear, kept, size in ((view.out, heads, view.head_dim), (view.down, channels, 1)):
            for unit in set(range(linear.in_features // size)) - set(kept):
                linear.weight.data[:, unit * size : (unit + 1) * size] = 0
    return model


def assert_same(model, reference) -> None:
    torch.testing.assert_close(logits_of(model), logits_of(reference), atol=1e-4, rtol=1e-4)


# --------------------------------------------------------------------------------------------------- views


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_view(name):
    view = Decoder(lively_model(name)).view(1)
    kv_heads = ARCHITECTURES[name].get("num_key_value_heads", 4)
    assert (view.heads, view.kv_heads, view.head_dim, view.channels) == (4, kv_heads, 8, 48)
    shapes = [rows.weight.shape for rows in (view.query, view.key, view.value, view.up)]
    assert shapes == [(32, 32), (kv_heads * 8, 32), (kv_heads * 8, 32), (48, 32)]
    assert (view.gate is None) == (name in ("opt", "gpt_neox"))
    assert view.query.bias is None or view.query.bias.shape == (32,)

    parts = [rows for rows in (view.query, view.key, view.value, view.gate, view.up) if rows is not None]
    for linear in view.linears.values():  # the parts make up each matrix, each row once
        indices = [rows.index for rows in parts if rows.linear is linear]
        whole = torch.cat(indices).sort().values.tolist() if indices else list(range(linear.out_features))
        assert whole == list(range(linear.out_features))
        assert bool(indices) != (linear in (view.out, view.down))
    matrices = sum(parameter.numel() for parameter in view.module.parameters() if parameter.dim() == 2)
    assert sum(linear.weight.numel() for linear in view.linears.values()) == matrices
    vectors = [norm.weight for norm in view.norms.values()]
    biases = [linear.bias for linear in view.linears.values() if linear.bias is not None]
    biases += [norm.bias for norm in view.norms.values() if getattr(norm, "bias", None) is not None]
    norms_of_heads = 2 if hasattr(view.attention, "q_norm") else 0
    assert len(vectors) + len(biases) + norms_of_heads == sum(p.dim() == 1 for p in view.module.parameters())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_linears_are_in_order_of_execution(name):
    model, order = lively_model(name), []
    view = Decoder(model).view(0)
    for path, linear in view.linears.items():
        linear.register_forward_hook(lambda *_, path=path: order.append(path))
    logits_of(model)
    assert order == list(view.linears)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_norms_feed_attention_and_mlp(name):
    model, seen = lively_model(name), {}
    view = Decoder(model).view(2)
    for norm, reader in ((view.input_norm, view.query.linear), (view.mlp_norm, view.up.linear)):
        norm.register_forward_hook(lambda module, _, output: seen.update({module: output}))
        reader.register_forward_pre_hook(lambda module, inputs: seen.update({module: inputs[0]}))
    logits_of(model)
    for norm, reader in ((view.input_norm, view.query.linear), (view.mlp_norm, view.up.linear)):
        assert torch.equal(seen[norm].flatten(), seen[reader].flatten())


# --------------------------------------------------------------------------------------- heads and channels


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
    stock = name in ("llama", "llama-mha") and len(layers) == 6
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


# --------------------------------------------------------------------------------------------- hidden size


def without_dims(name: str, kept: list[int]):
    """A dense model that writes nothing into the dims that go, so that its norms see the others only."""
    model = lively_model(name)
    gone = sorted(set(range(32)) - set(kept))
    model.get_input_embeddings().weight.data[:, gone] = 0
    for view in map(Decoder(model).view, range(6)):
        for linear in (view.out, view.down):
            linear.weight.data[gone] = 0
        for path in view.layout.output_norms:
            view.norms[path].weight.data[gone] = -1.0 if "gemma" in name else 0.0  # Gemma multiplies by 1 + weight
    return model


def norms_of(model):
    decoder = Decoder(model)
    inner = [norm for layer in range(6) for norm in decoder.view(layer).norms.values()]
    return [*inner, model.get_submodule(decoder.layout.final_norm)]


@pytest.mark.parametrize("name", OWN_HEAD_DIM)
@pytest.mark.parametrize("size", [24, 26])
def test_kept_hidden_dims(name, size, tmp_path):
    """An RMS norm over `size` of 32 dims, the rest zero, is that over 32 times sqrt(size / 32)."""
    kept = sorted(torch.randperm(32, generator=torch.Generator().manual_seed(2))[:size].tolist())
    model, reference = without_dims(name, kept), without_dims(name, kept)
    keep_hidden(model, kept)
    refused = size % 4 and name in ("llama", "llama-mha", "gemma2", "gemma3_text")
    assert fit_class_and_config(model) == ("trust_remote_code" if refused else "transformers")
    assert model.config.hidden_size == size
    assert_generates(model)
    assert_reloads(model, tmp_path)

    for norm in norms_of(model):
        name_of_eps = "eps" if hasattr(norm, "eps") else "variance_epsilon"
        setattr(norm, name_of_eps, getattr(norm, name_of_eps) * 32 / size)
        offset = 1.0 if "gemma" in name else 0.0
        norm.weight.data = (norm.weight.data + offset) * (size / 32) ** -0.5 - offset
    embeddings = model.get_input_embeddings()
    if "gemma" in name:
        assert float(embeddings.embed_scale) == pytest.approx(size**0.5)
        embeddings.embed_scale.fill_(32**0.5)
    assert_same(model, reference)


def test_hidden_weights_by_hand():
    dense, model, kept = lively_model("llama-mha"), lively_model("llama-mha"), [1, 4, 30]
    keep_hidden(model, kept)
    assert model.lm_head.weight is model.model.embed_tokens.weight  # still tied
    before, layer = dense.model.layers[0], model.model.layers[0]
    assert torch.equal(model.model.embed_tokens.weight, dense.model.embed_tokens.weight[:, kept])
    assert torch.equal(layer.self_attn.q_proj.weight, before.self_attn.q_proj.weight[:, kept])
    assert torch.equal(layer.self_attn.o_proj.weight, before.self_attn.o_proj.weight[kept])
    assert torch.equal(layer.mlp.gate_proj.weight, before.mlp.gate_proj.weight[:, kept])
    assert torch.equal(layer.mlp.down_proj.weight, before.mlp.down_proj.weight[kept])
    assert torch.equal(layer.input_layernorm.weight, before.input_layernorm.weight[kept])
    assert torch.equal(model.model.norm.weight, dense.model.norm.weight[kept])


@pytest.mark.parametrize("name", ["opt", "gpt_neox"])
def test_hidden_size_that_makes_the_head_size_is_refused(name):
    model = lively_model(name)
    with pytest.raises(ModelError, match=f"got {name}, which derives it"):
        keep_hidden(model, range(24))
    assert_same(model, lively_model(name))


# -------------------------------------------------------------------------------- settling, and what follows


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


@pytest.mark.parametrize("name", ["phi3", "llama", "opt"])
def test_copies_and_attention_implementations(name):
    fit_class_and_config(model := cut(lively_model(name), SOME_LAYERS))
    before = logits_of(model)
    twin = copy.deepcopy(model)
    twin.set_attn_implementation("eager")
    assert twin.model.config._attn_implementation == "eager"
    attention = Decoder(twin).view(1).attention
    assert attention.config._attn_implementation == "eager"
    torch.testing.assert_close(logits_of(twin), before, atol=1e-5, rtol=1e-5)
    assert torch.equal(logits_of(model), before)


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


PLAIN_LOADER = """
import sys
sys.modules["greenprune"] = None  # this interpreter must do without it
import json, torch
from transformers import AutoModelForCausalLM
tokens = torch.tensor(json.loads(sys.argv[1]))
for folder in sys.argv[2:]:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    generated = model.generate(tokens, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    print("generated", json.dumps([type(model).__name__, generated.tolist()]))
"""


def test_checkpoints_load_and_generate_where_greenprune_is_not_installed(tmp_path, tiny_tokenizer):
    expected, folders = [], []
    for name in ARCHITECTURES:
        for layers in (range(6), SOME_LAYERS):
            fit_class_and_config(model := cut(lively_model(name), layers))
            folders.append(tmp_path / f"{name}-{len(layers)}")
            save_checkpoint(model, tiny_tokenizer, folders[-1])
            generated = model.generate(TOKENS[:2], max_new_tokens=6, min_new_tokens=6, do_sample=False)
            expected.append([type(model).__name__, generated.tolist()])
            assert len(load_tokenizer(folders[-1])) == len(tiny_tokenizer)
    run = subprocess.run(
        [sys.executable, "-c", PLAIN_LOADER, json.dumps(TOKENS[:2].tolist()), *map(str, folders)],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line.partition(" ")[2] for line in run.stdout.splitlines() if line.startswith("generated")]
    assert [json.loads(line) for line in lines] == expected


def test_loading_as_stock_fails_loudly(tmp_path):
    """Who leaves trust_remote_code out must not get a model of random weights."""
    fit_class_and_config(model := cut(lively_model("llama"), SOME_LAYERS))
    model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match=r"size mismatch|mismatched"):
        AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=False)
