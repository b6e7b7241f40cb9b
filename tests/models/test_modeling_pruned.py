"""The Pruned… classes, and the checkpoints that their code travels with."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys

import pytest
import torch
import transformers
from architectures import ARCHITECTURES, TOKENS, logits_of
from cutting import SOME_LAYERS, cut, lively_model
from transformers import AutoModelForCausalLM

from greenprune.models import Decoder, fit_class_and_config, load_tokenizer, modeling_pruned, save_checkpoint
from greenprune.models.architectures import ARCHITECTURES as ENTRIES

WRITTEN = "Llama Mistral Qwen2 Qwen3 Gemma Gemma2 Gemma3 Phi3 Glm4 OPT GPTNeoX".split()  # in checkpoints of old


@pytest.mark.parametrize("name", WRITTEN)
def test_names_in_checkpoints_already_written(name):
    pruned = getattr(modeling_pruned, f"Pruned{name}ForCausalLM")
    stock = getattr(transformers, f"{name}ForCausalLM")
    assert pruned.__mro__[:3] == (pruned, modeling_pruned.NarrowLayers, stock)
    assert (pruned.__name__, pruned.__module__) == (f"Pruned{name}ForCausalLM", modeling_pruned.__name__)
    assert pruned is modeling_pruned.pruned_class(stock)
    assert stock in {entry.stock for entry in ENTRIES.values()}


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "PrunedLlama", "PrunedAutoModelForCausalLM", "Pruned"])
def test_other_names_are_not_there(name):
    with pytest.raises(AttributeError, match=f"no attribute '{name}'"):
        getattr(modeling_pruned, name)


def test_a_pickle_is_read_by_another_process(tmp_path):
    fit_class_and_config(model := cut(lively_model("llama"), SOME_LAYERS))
    (tmp_path / "model.pickle").write_bytes(pickle.dumps(model))
    code = "import pickle, sys; print(type(pickle.load(open(sys.argv[1], 'rb'))).__name__)"
    run = [sys.executable, "-c", code, str(tmp_path / "model.pickle")]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout.split() == ["PrunedLlamaForCausalLM"]


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
