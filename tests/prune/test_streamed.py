"""What is streamed from a model's files is what is computed in memory, bit for bit; methods: test_contract.py."""

from __future__ import annotations

import copy

import pytest
import torch
from architectures import ARCHITECTURES, TOKENS, random_model
from transformers import LlamaConfig, LlamaForCausalLM

from greenprune import PruneConfig, prune
from greenprune.collect import STATISTICS, collect
from greenprune.models import load, load_checkpoint, load_streamed, parts, save_checkpoint
from greenprune.models.peak import PeakMemory

FAST = ("llama", "gemma3_text", "opt")
SLOWLY = [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in ARCHITECTURES]


@pytest.fixture(autouse=True)
def streamed(monkeypatch):
    """Models stay in their files however small they are."""
    monkeypatch.setattr(load, "IN_FILES_FROM", 0)
    monkeypatch.setattr(parts, "PART_BYTES", 8192)


def in_memory(folder):
    """A model no weight of which lies in a file: everything is copied."""
    return copy.deepcopy(load_checkpoint(folder, device="cpu"))


def assert_same_tensors(one, other):
    assert one.keys() == other.keys()
    assert all(one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", SLOWLY)
def test_each_statistic(name, tmp_path):
    random_model(name).save_pretrained(tmp_path)
    plain, streamed = (collect(model, TOKENS, STATISTICS) for model in (in_memory(tmp_path), load_streamed(tmp_path)))
    assert_same_tensors(*({key: each.tensors[key].nan_to_num() for key in each.tensors} for each in (plain, streamed)))


def assert_prunes_alike(folder, config, tokens, out, tokenizer):
    """Report, configuration and checkpoint of both ways."""
    plain, streamed = in_memory(folder), load_streamed(folder)
    assert prune(plain, config, tokens) == prune(streamed, config, tokens)
    save_checkpoint(streamed, tokenizer, out)
    reloaded = load_checkpoint(out, device="cpu")
    plain.save_pretrained(out.with_name("plain"))
    assert (out / "config.json").read_text() == (out.with_name("plain") / "config.json").read_text()
    assert_same_tensors(reloaded.state_dict(), plain.state_dict())


@pytest.mark.parametrize(
    "config",
    [
        PruneConfig(method="taylor_depth", block_size=2),
        PruneConfig(method="flap", ratio=0.25),
        PruneConfig(method="sparsegpt", structure="2:4"),
        PruneConfig(method="minitron_width", targets={"hidden": 24, "ffn": 40}),
    ],
    ids=lambda config: config.method,
)
def test_a_checkpoint_in_bf16_and_in_parts(config, tmp_path, tiny_tokenizer):
    random_model("llama", torch.bfloat16).save_pretrained(tmp_path / "dense")
    assert_prunes_alike(tmp_path / "dense", config, TOKENS, tmp_path / "out", tiny_tokenizer)


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        PruneConfig(method="flap", ratio=0.25),
        PruneConfig(method="minitron_width", targets={"hidden": 384, "ffn": 1024}),
        PruneConfig(method="wanda", ratio=0.5),
    ],
    ids=lambda config: config.method,
)
def test_memory_grows_by_some_layers_whatever_the_number_of_layers(config, tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 20, "num_attention_heads": 8}
    LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes)).save_pretrained(tmp_path)
    model = load_streamed(tmp_path)
    layer = sum(parameter.nbytes for parameter in model.model.layers[0].parameters())  # 17 MB of 336
    for warm in (True, False):  # the first pass brings libraries and buffers
        memory = PeakMemory(torch.device("cpu"))
        before = memory.bytes()
        prune(model if not warm else load_streamed(tmp_path), config, TOKENS)
        grown = memory.bytes() - before
    assert grown < 8 * layer


REAL = [
    PruneConfig(method="taylor_depth", block_size=4),
    PruneConfig(method="minitron_depth", block_size=4),
    PruneConfig(method="flap", ratio=0.2),
    PruneConfig(method="llm_pruner", ratio=0.2, iterations=2),
    PruneConfig(method="wanda_sp", ratio=0.2, sequential=True),
    PruneConfig(method="minitron_width", targets={"hidden": 384, "ffn": 1024}),
    PruneConfig(method="magnitude", ratio=0.5),
    PruneConfig(method="wanda", structure="2:4"),
    PruneConfig(method="sparsegpt", ratio=0.5),
]


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("config", REAL, ids=lambda config: config.method)
def test_a_real_model(config, real_model, calibration, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "PART_BYTES", 100 << 20)
    folder = real_model[0].name_or_path
    assert_prunes_alike(load.Path(folder), config, calibration[:4], tmp_path / "out", real_model[1])
