"""A byte-level tokenizer of 64 tokens, for the random models of architectures.py."""

from __future__ import annotations

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]
LETTERS = [chr(code) for code in range(ord("!"), ord("!") + 59)]


def byte_tokenizer(pre=None) -> PreTrainedTokenizerFast:
    """Four special tokens, 59 letters, and "AB", the one merge. pre: what splits a text, if not GPT-2's words."""
    vocabulary = {token: row for row, token in enumerate([*SPECIAL, *LETTERS, "AB"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("A", "B")]))
    tokenizer.pre_tokenizer = pre or pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
