"""A random Llama's configuration, and text over the words that its tokenizer knows."""

from __future__ import annotations

import json
import random
from pathlib import Path

WORDS = tuple(
    "the cat sat on a mat and saw that green trees grow tall while rivers run to the sea under old stars".split()
)


def tiny_config(**changes):
    from transformers import LlamaConfig

    settings = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    return LlamaConfig(**settings | changes)


def write_text(path: Path, lines: int, seed: int) -> Path:
    """A JSON-lines text over the tiny tokenizer's words."""
    rng = random.Random(seed)
    rows = [{"text": " ".join(rng.choices(WORDS, k=30))} for _ in range(lines)]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path
