"""Weights that stay in their files: read, changed and put away, they are what they would be in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_config
from torch import nn
from transformers import LlamaForCausalLM

from greenprune.models import in_files, load, load_streamed, parts, save_checkpoint
from greenprune.models.in_files import InFile, borrowed, leave_in_files, put_away

SIZE = 4 << 20  # numbers: 16 MiB, far above what else moves in a process


def resident(kind: str) -> int:
    """Bytes: RssFile of mapped files, RssAnon of other memory."""
    return next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith(f"{kind}:")
    )


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GREENPRUNE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def linear(tmp_path):
    """A linear whose weight lies in a file, and a copy of the weight."""
    values = torch.randn(SIZE // 1024, 1024, generator=torch.Generator().manual_seed(0))
    save_file({"weight": values}, tmp_path / "one.safetensors")
    made = nn.Linear(1024, SIZE // 1024, bias=False)
    made.weight = nn.Parameter(load_file(tmp_path / "one.safetensors")["weight"], requires_grad=False)
    leave_in_files(made)
    return made, values


def test_pages_that_were_read_are_given_back(linear):
    made, values = linear
    before = resident("RssFile")
    assert made.weight.sum() == values.sum()
    assert resident("RssFile") - before > 3 * SIZE
    put_away(made)
    assert resident("RssFile") - before < SIZE
    assert torch.equal(made.weight, values)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_what_changed_in_place_is_written_and_leaves_memory(linear, mode, tmp_path):
    made, values = linear
    before = resident("RssAnon")
    for _ in range(2):  # in the model's file, then in one of its own
        with mode():
            made.weight.mul_(2)
        values *= 2
        put_away(made)
        assert resident("RssAnon") - before < SIZE
        assert torch.equal(made.weight, values)
        put_away(made)
        assert torch.equal(made.weight, values)
    assert not list((tmp_path / "cache" / "weights").iterdir())  # its file is gone with the last who reads it


def test_what_was_set_is_written_too(linear):
    made, values = linear
    made.weight.data = values + 1
    with borrowed(made):
        pass
    assert torch.equal(made.weight, values + 1)
    made.weight = in_files.belongs_with(nn.Parameter(values + 2, requires_grad=False), made.weight)
    put_away(made.weight for _ in range(2))
    assert getattr(made.weight, in_files.MARK).holds(made.weight)
    assert torch.equal(made.weight, values + 2)


def test_what_was_read_of_a_weight_that_was_replaced_is_given_back(linear):
    made, values = linear
    old, before = made.weight, resident("RssFile")
    made.weight = in_files.belongs_with(nn.Parameter((old + 1)[::64], requires_grad=False), old)
    assert resident("RssFile") - before < SIZE
    assert torch.equal(old, values)


def test_other_weights_are_left_alone():
    made = nn.Linear(4, 4)
    leave_in_files(made)
    put_away(made)
    assert not hasattr(made.weight, in_files.MARK)


@pytest.fixture
def streamed_from_0(monkeypatch):
    monkeypatch.setattr(load, "IN_FILES_FROM", 0)
    monkeypatch.setattr(parts, "PART_BYTES", 8192)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "auto"])
def test_a_model_is_the_same_in_memory_and_in_its_files(tiny_checkpoint, dtype, streamed_from_0, tmp_path):
    plain, streamed = load.load_checkpoint(tiny_checkpoint, dtype), load_streamed(tiny_checkpoint, dtype)
    marks = [getattr(parameter, in_files.MARK) for parameter in streamed.parameters()]
    assert all(isinstance(mark, InFile) for mark in marks)
    assert streamed.config.to_dict() == plain.config.to_dict()
    assert_same_weights(streamed, plain)
    assert not list((tmp_path / "cache").glob("weights/*"))


def test_weights_that_lie_beside_a_checkpoint_are_none_of_its(tiny_checkpoint, streamed_from_0):
    size = parts.weight_bytes(tiny_checkpoint)
    save_file({"original": torch.ones(8)}, tiny_checkpoint / "consolidated.safetensors")
    assert parts.weight_bytes(tiny_checkpoint) == size
    assert parts.weight_bytes(tiny_checkpoint, torch.bfloat16) == size / 2
    with parts.in_dtype(tiny_checkpoint, torch.bfloat16) as copy:
        assert not (copy / "consolidated.safetensors").exists()
        assert "original" not in (copy / "model.safetensors.index.json").read_text()


def test_a_checkpoint_in_parts_is_the_checkpoint(tmp_path, tiny_tokenizer, streamed_from_0):
    torch.manual_seed(0)
    tied = LlamaForCausalLM(tiny_config(tie_word_embeddings=True))
    save_checkpoint(tied, tiny_tokenizer, tmp_path / "parts")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 3
    assert not [path for path in (tmp_path / "parts").iterdir() if path.is_dir()]
    assert_same_weights(LlamaForCausalLM.from_pretrained(tmp_path / "parts"), tied)
    assert (tmp_path / "parts" / "generation_config.json").exists()


def assert_same_weights(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]) for name in ours)
