"""Text to blocks: whole, in order, seeded, and never padded."""

from __future__ import annotations

import json

import pytest
import torch

from greenprune.data import documents, shuffled, token_blocks
from greenprune.errors import AssetError


class Characters:
    """A tokenizer of one token a character."""

    def __call__(self, text, add_special_tokens, verbose=False):
        assert add_special_tokens is False
        return {"input_ids": [ord(character) for character in text]}


def test_documents_are_joined_by_a_blank_line_and_cut():
    blocks = token_blocks(["abc", "de", "  ", "fgh"], Characters(), seq_len=4)
    text = "abc\n\nde\n\nfgh"
    assert ["".join(map(chr, row)) for row in blocks.tolist()] == [text[:4], text[4:8], text[8:12]]
    assert blocks.dtype == torch.long


def test_only_as_much_text_as_needed_is_read():
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield "0123456789"

    blocks = token_blocks(endless(), Characters(), seq_len=5, num_blocks=4)
    assert blocks.shape == (4, 5)
    assert len(taken) < 20


def test_same_blocks_however_much_text_follows():
    texts = [f"document {i} " * 5 for i in range(50)]
    few, all_of_them = token_blocks(texts, Characters(), 7, 3), token_blocks(texts, Characters(), 7)
    assert torch.equal(few, all_of_them[:3])


def test_too_short_a_text_is_refused():
    with pytest.raises(AssetError, match=r"3 blocks of 10 tokens, got 5 tokens; lower"):
        token_blocks(["abcde"], Characters(), 10, 3)


def test_shuffle_is_seeded_and_complete():
    texts = [str(i) for i in range(100)]
    once = list(shuffled(texts, 1))
    assert once == list(shuffled(texts, 1))
    assert once != list(shuffled(texts, 2))
    assert sorted(once) == sorted(texts)
    assert list(shuffled(texts, None)) == texts


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".parquet"])
def test_local_files(tmp_path, suffix):
    import pandas as pd

    path = tmp_path / f"text{suffix}"
    if suffix == ".txt":
        path.write_text("one\n\ntwo")
        expected = ["one\n\ntwo"]
    else:
        expected = ["one", "two"]
        table = pd.DataFrame({"text": expected})
        table.to_parquet(path) if suffix == ".parquet" else table.to_json(path, orient="records", lines=True)
    assert list(documents(str(path))) == expected


def test_missing_column_names_file_and_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "fine"}) + "\n" + json.dumps({"body": "not"}) + "\n")
    with pytest.raises(AssetError, match=r"rows\.jsonl:2: each row must have 'text', got body"):
        list(documents(str(path)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wikitxt2", "did you mean 'wikitext2'"),
        ("pypi:wikipdia", "did you mean 'wikipedia'"),
        ("no.jsonl", "must exist"),
    ],
)
def test_unknown_text_is_refused(name, message):
    with pytest.raises(AssetError, match=message):
        list(documents(name))
