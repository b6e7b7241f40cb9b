"""A random Llama with a tokenizer of bytes, on disk and on the first engine: fixtures of two rooms' tests."""

from __future__ import annotations

import pytest
from tiny_causal import tiny
from transformers import PreTrainedTokenizerFast

from greenprune.engines.transformers import TransformersEngine


@pytest.fixture(scope="session")
def llama():
    return tiny(max_position_embeddings=2048)


@pytest.fixture(scope="session")
def tokenizer():
    """Byte-level, without merges: a token a byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<end>", *alphabet])}
    bytes_only = Tokenizer(models.BPE(vocabulary, []))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bytes_only, eos_token="<end>", bos_token="<end>")


@pytest.fixture
def checkpoint(llama, tokenizer, tmp_path):
    folder = tmp_path / "checkpoint"
    llama.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def engine(llama):
    return TransformersEngine(llama)
