"""GGUF files as they are written, read again without llama.cpp."""

from __future__ import annotations

import json

import gguf
import pytest
import torch
from architectures import random_model
from byte_tokenizer import byte_tokenizer
from cutting import SOME_LAYERS, cut, lively_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig

from greenprune.engines import gguf_tokenizer
from greenprune.engines.gguf_file import can_write, write_gguf
from greenprune.engines.gguf_tensors import _frequency_factors, _neighbours
from greenprune.errors import ModelError
from greenprune.models import add_output_bias, fit_class_and_config
from greenprune.models.surgery import remove_attention


def saved(model, folder, tokenizer=None):
    fit_class_and_config(model)
    model.save_pretrained(folder)
    (tokenizer or byte_tokenizer()).save_pretrained(folder)
    return folder


def read(path):
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    return fields, {tensor.name: tensor.data for tensor in reader.tensors}


@pytest.mark.parametrize("type", ["f32", "f16"])
def test_layers_of_different_widths(tmp_path, type):
    model = cut(lively_model("llama"), SOME_LAYERS)
    add_output_bias(model, 2, None, torch.ones(32))
    write_gguf(saved(model, tmp_path / "checkpoint"), tmp_path / "model.gguf", type)
    fields, tensors = read(tmp_path / "model.gguf")
    assert fields["general.architecture"] == "deci"
    assert fields["deci.feed_forward_length"] == [48, 8, 48, 48, 8, 48]
    assert fields["deci.attention.head_count"] == [4, 2, 4, 4, 2, 4]
    assert fields["deci.attention.key_length"] == 8
    assert fields["tokenizer.ggml.tokens"][1:6] == ["<s>", "</s>", "<pad>", "!", '"']
    assert (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    assert fields["tokenizer.ggml.bos_token_id"] == 1
    assert fields["tokenizer.ggml.add_bos_token"] is False
    assert "blk.1.ffn_down.bias" not in tensors
    assert tensors["blk.2.ffn_down.bias"].tolist() == [1.0] * 32
    assert {str(values.dtype) for values in tensors.values()} == (
        {"float32"} if type == "f32" else {"float16", "float32"}
    )
    down = model.model.layers[4].mlp.down_proj.weight.detach().numpy()
    assert tensors["blk.4.ffn_down.weight"] == pytest.approx(down, abs=0 if type == "f32" else 1e-3)
    assert [path.name for path in tmp_path.glob("*.gguf")] == ["model.gguf"]
    assert not list(tmp_path.glob(".*"))


def test_one_width_of_qwen2_is_a_llama_with_biases(tmp_path):
    write_gguf(saved(cut(lively_model("qwen2"), range(6)), tmp_path / "checkpoint"), tmp_path / "model.gguf")
    fields, tensors = read(tmp_path / "model.gguf")
    assert fields["general.architecture"] == "llama"
    assert fields["llama.attention.head_count"] == 2
    assert fields["llama.context_length"] == 8  # its window
    assert tensors["blk.0.attn_q.bias"].shape == (16,)


def test_rows_of_heads_by_hand():
    rows = torch.arange(12.0)[:, None]
    assert _neighbours(rows, 2).flatten().tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]


def test_frequency_factors_are_those_of_transformers():
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"original_max_position_embeddings": 8192}
    config = AutoConfig.for_model("llama", hidden_size=512, num_attention_heads=4, rope_parameters=rope)
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    plain = 5e5 ** (-torch.arange(0, 128, 2) / 128)
    scaled = LlamaRotaryEmbedding(config).inv_freq
    torch.testing.assert_close(plain / torch.tensor(_frequency_factors(config)), scaled, rtol=1e-5, atol=0)


REFUSED = {
    "opt": (lambda: random_model("opt"), "got opt; serve it by transformers"),
    "gemma": (
        lambda: cut(lively_model("gemma3_text"), SOME_LAYERS),
        "different widths .*got gemma3_text; set prune.uniform",
    ),
    "qwen3": (lambda: cut(lively_model("qwen3"), SOME_LAYERS), "different widths .*got qwen3; set prune.uniform"),
}


@pytest.mark.parametrize("row", REFUSED)
def test_what_llama_cpp_does_not_run_is_refused(row, tmp_path):
    make, message = REFUSED[row]
    fit_class_and_config(model := make())
    with pytest.raises(ModelError, match=message):
        write_gguf(saved(model, tmp_path), tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()


def test_a_first_layer_without_attention_is_refused():
    model = lively_model("llama")
    remove_attention(model, 1)
    fit_class_and_config(model)
    assert can_write(model.config) is None
    remove_attention(model, 0)
    fit_class_and_config(model)
    assert "set prune.skip_first: 1" in can_write(model.config)


def test_biases_that_an_architecture_does_not_have():
    model = lively_model("qwen3")
    for layer in range(6):
        add_output_bias(model, layer, torch.ones(32), None)
    fit_class_and_config(model)
    assert "no biases of projections in qwen3" in can_write(model.config)


def test_types_and_tokenizers_that_are_not_known(tmp_path, tiny_tokenizer):
    with pytest.raises(ModelError, match="must be one of f32, f16, q8_0, q4_k_m, got q2"):
        write_gguf(tmp_path, tmp_path / "model.gguf", "q2")
    folder = saved(lively_model("llama"), tmp_path / "odd", byte_tokenizer(pre_tokenizers.Whitespace()))
    with pytest.raises(ModelError, match=r"split text as one of gpt-2, smollm.*got .*Whitespace"):
        write_gguf(folder, tmp_path / "model.gguf")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"needs a tokenizer.json"):
        write_gguf(folder, tmp_path / "model.gguf")


def test_known_ways_to_split():
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    assert gguf_tokenizer._pre_tokenizer(_written(digits)) == "smollm"
    for regex, name in ((r"\p{N}{1,3}", "llama-bpe"), (r"\p{N}", "qwen2")):
        from tokenizers import Regex

        split = pre_tokenizers.Split(Regex(gguf_tokenizer.WORDS + regex + gguf_tokenizer.REST), "isolated", False)
        assert gguf_tokenizer._pre_tokenizer(_written(pre_tokenizers.Sequence([split, bytes_only]))) == name


def _written(pre) -> dict:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre
    return json.loads(tokenizer.to_str())


def test_scores_of_merges_by_hand():
    model = {"merges": [["a", "b"], ["ab", "c"], ["a", "bc"]]}
    assert gguf_tokenizer._scores(model, ["a", "ab", "abc"]) == [-3.0, 0.0, -1.0]
