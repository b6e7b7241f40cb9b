"""A tokenizer's fields in a GGUF file. llama.cpp has the rules that split a text by name; what isn't known is refused.

Byte-level BPE is `gpt2` there, and its tokens are merged by rank. SentencePiece's BPE is `llama`, merged by a score of
what is made; the rank of a merge gives it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf

from greenprune.errors import ModelError

WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# What splits a text, step by step -> llama.cpp's name of it
PRE_TOKENIZERS: dict[tuple[str, ...], str] = {
    ("words of GPT-2",): "gpt-2",
    ("single digits", "words of GPT-2"): "smollm",
    (WORDS + r"\p{N}{1,3}" + REST, "bytes"): "llama-bpe",
    (WORDS + r"\p{N}" + REST, "bytes"): "qwen2",
}


def add_tokenizer(writer: gguf.GGUFWriter, checkpoint: Path, vocab_size: int) -> None:
    """The fields `tokenizer.*` of what tokenizer.json in `checkpoint` says. vocab_size: rows of the embeddings.

    Raises ModelError for a tokenizer that llama.cpp isn't known to have.
    """
    path = checkpoint / "tokenizer.json"
    if not path.is_file():
        raise ModelError(f"GGUF needs a tokenizer.json, got none in {checkpoint}; save the tokenizer with Transformers")
    written = json.loads(path.read_text(encoding="utf-8"))
    model = written["model"]
    if model.get("type") != "BPE":
        raise ModelError(f"GGUF is written with a BPE tokenizer, got {model.get('type')}; serve it by transformers")
    by_bytes = not model.get("byte_fallback")
    tokens, types = _tokens(written, vocab_size)
    writer.add_tokenizer_model("gpt2" if by_bytes else "llama")
    writer.add_tokenizer_pre(_pre_tokenizer(written) if by_bytes else "default")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if not by_bytes:
        writer.add_token_scores(_scores(model, tokens))
        writer.add_add_space_prefix(_adds_space(written))
    special = gguf.SpecialVocab(checkpoint, load_merges=by_bytes, n_vocab=vocab_size)
    special.add_special_token = {"bos": False, "eos": False} | special.add_special_token
    special.add_to_gguf(writer, quiet=True)


def _tokens(written: dict[str, Any], vocab_size: int) -> tuple[list[str], list[int]]:
    """Every row of the embeddings has a token; some tokenizers have fewer."""
    kinds = gguf.TokenType
    tokens = [f"[PAD{row}]" for row in range(vocab_size)]
    types = [int(kinds.UNUSED)] * vocab_size
    for token, row in written["model"]["vocab"].items():
        tokens[row], types[row] = token, int(kinds.NORMAL)
        if written["model"].get("byte_fallback") and len(token) == 6 and token.startswith("<0x"):
            types[row] = int(kinds.BYTE)
    for added in written.get("added_tokens", []):
        tokens[added["id"]] = added["content"]
        types[added["id"]] = int(kinds.CONTROL if added["special"] else kinds.USER_DEFINED)
    unknown = written["model"]["vocab"].get(written["model"].get("unk_token") or "")
    if unknown is not None:
        types[unknown] = int(kinds.UNKNOWN)
    return tokens, types


def _pre_tokenizer(written: dict[str, Any]) -> str:
    """llama.cpp's name for how a text is split before its parts are merged."""
    outer = written.get("pre_tokenizer") or {}
    steps = tuple(map(_step, outer.get("pretokenizers", [outer])))
    if (name := PRE_TOKENIZERS.get(steps)) is None:
        raise ModelError(
            f"a tokenizer must split text as one of {', '.join(PRE_TOKENIZERS.values())}, got {' then '.join(steps)}; "
            "add it to PRE_TOKENIZERS in greenprune/engines/gguf_tokenizer.py, or serve the model by transformers"
        )
    return name


def _step(step: dict[str, Any]) -> str:
    match step:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}:
            return "words of GPT-2"
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}:
            return "bytes"
        case {"type": "Digits", "individual_digits": True}:
            return "single digits"
        case {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}:
            return str(regex)
    return json.dumps(step)


def _scores(model: dict[str, Any], tokens: list[str]) -> list[float]:
    """The earlier a token is merged, the higher. What no merge gives is never asked for its score."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(model["merges"]):
        ranks.setdefault("".join(pair if isinstance(pair, list) else pair.split(" ")), rank)
    return [-float(ranks.get(token, len(model["merges"]))) for token in tokens]


def _adds_space(written: dict[str, Any]) -> bool:
    """Whether a text is given a space in front."""
    return '"Prepend"' in json.dumps(written.get("normalizer")) or '"prepend_scheme": "first"' in json.dumps(
        written.get("pre_tokenizer")
    )
