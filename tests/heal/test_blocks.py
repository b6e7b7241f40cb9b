"""The blocks to train on and to validate with."""

from __future__ import annotations

import logging

import pytest
import torch
from healing import SEQ_LEN, config, text_file

from greenprune.data import split_documents
from greenprune.errors import AssetError
from greenprune.heal.blocks import healing_blocks


class Letters:
    """A tokenizer of one token a character, with the interface that the data code uses."""

    bos_token_id = None

    def __call__(self, text, **_):
        if isinstance(text, str):
            return {"input_ids": [ord(letter) % 128 for letter in text]}
        return {"input_ids": [self(one)["input_ids"] for one in text]}


def test_split_shares_no_document_even_if_repeated():
    texts = [f"text {i % 37}" for i in range(100)]
    train, validation = (set(split_documents(texts, part)) for part in ("train", "validation"))
    assert not train & validation
    assert len(validation) == 4
    assert len(train) == 33


def test_blocks_take_what_the_steps_need(tmp_path):
    wanted = config(dataset=text_file(tmp_path, 200), steps=3)
    train, validation = healing_blocks(wanted, Letters())
    assert train.shape == (3 * 2 * 2, SEQ_LEN)
    assert validation.shape == (6, SEQ_LEN)
    again, same_validation = healing_blocks(wanted.model_copy(update={"seed": 1}), Letters())
    assert not torch.equal(train, again)
    assert torch.equal(validation, same_validation)


def test_small_text_is_repeated(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="greenprune"):
        train, _ = healing_blocks(config(dataset=text_file(tmp_path, 11), steps=1000), Letters())
    assert 10 < len(train) < 4000
    assert "each is seen" in caplog.text


def test_plain_text_file_is_split_by_its_paragraphs(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("\n\n".join(f"Paragraph {i} of a book, long enough to matter." * 9 for i in range(200)))
    train, validation = healing_blocks(config(dataset=str(path), steps=2), Letters())
    assert len(train) == 8
    assert len(validation) == 6


def test_too_short_text_is_an_asset_error(tmp_path):
    with pytest.raises(AssetError, match=r"must give .* blocks of 16 tokens, got \d+"):
        healing_blocks(config(dataset=text_file(tmp_path, 1), validation_samples=500), Letters())
    with pytest.raises(AssetError, match=r"training block of 16 tokens, got 0 tokens; lower heal\.seq_len"):
        healing_blocks(config(dataset=text_file(tmp_path, 1)), Letters())
