"""Tasks see BOS as lm-eval's HFLM lets them see it, for a model whose tokenizer starts a text with it."""

from __future__ import annotations

import random

import pytest
from architectures import random_model
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tiny import WORDS
from tokenizers.processors import TemplateProcessing

from greenprune.benchmark.shared_prefix import SharedPrefixLM


@pytest.fixture
def tokenizer(tiny_tokenizer):
    """The tiny tokenizer, starting each text with BOS as Gemma's does."""
    words = type(tiny_tokenizer.backend_tokenizer).from_str(tiny_tokenizer.backend_tokenizer.to_str())
    words.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return type(tiny_tokenizer)(tokenizer_object=words, **special)


def words(rng: random.Random, count: int) -> str:
    return " ".join(rng.choices(WORDS, k=count))


def choices() -> list[Instance]:
    """Of contexts with and without a BOS of their own, and of none."""
    rng = random.Random(0)
    contexts = [words(rng, 9), f"<s>{words(rng, 5)}", words(rng, 30), ""]
    pairs = [(context, f" {words(rng, 3)}") for context in contexts for _ in range(3)]
    return [Instance("loglikelihood", {}, pair, 0, metadata=("t", 0, 1)) for pair in pairs]


def texts() -> list[Instance]:
    rng = random.Random(1)
    return [Instance("loglikelihood_rolling", {}, (words(rng, n),), 0, metadata=("t", 0, 1)) for n in (3, 20, 60)]


def prompts() -> list[Instance]:
    rng = random.Random(2)
    settings = {"until": ["\n"], "max_gen_toks": 5}
    asked = [words(rng, 4), words(rng, 9), f"<s>{words(rng, 4)}"]
    return [Instance("generate_until", {}, (text, settings), 0, metadata=("t", 0, 1)) for text in asked]


@pytest.mark.parametrize("add_bos_token", [None, True, False])
@pytest.mark.parametrize("name", ["gemma3_text", "llama"])
def test_answers_are_those_of_hflm(name, add_bos_token, tokenizer):
    model = random_model(name)
    settings = {"max_length": 32, "batch_size": 4, "add_bos_token": add_bos_token}
    stock, ours = (kind(pretrained=model, tokenizer=tokenizer, **settings) for kind in (HFLM, SharedPrefixLM))
    assert ours.shares
    assert ours.tok_encode("the cat") == stock.tok_encode("the cat")
    assert (ours.tok_encode("the cat")[0] == 1) == (add_bos_token is not False)
    assert ours.tok_encode("<s>the cat") == stock.tok_encode("<s>the cat")
    expected, found = (lm.loglikelihood(choices(), disable_tqdm=True) for lm in (stock, ours))
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], rel=1e-4)
    expected, found = (lm.loglikelihood_rolling(texts(), disable_tqdm=True) for lm in (stock, ours))
    assert found == pytest.approx(expected, rel=1e-4)
    assert ours.generate_until(prompts(), disable_tqdm=True) == stock.generate_until(prompts(), disable_tqdm=True)
