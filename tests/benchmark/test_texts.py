"""Perplexities of the texts that a configuration names."""

from __future__ import annotations

import pytest
import torch

from greenprune import assets
from greenprune.benchmark.texts import measure_perplexities, source_here
from greenprune.config import BenchmarkConfig
from greenprune.data import HUB_TEXTS
from greenprune.engines.perplexity import perplexity
from greenprune.engines.transformers import TransformersEngine
from greenprune.report.sections.cautions import STAND_INS


def test_perplexities_are_named_by_text_and_length(engine, llama, tokenizer, tmp_path):
    text = tmp_path / "mine.txt"
    text.write_text("It is raining. " * 20)
    config = BenchmarkConfig(perplexity=[f"{text}@16", f"{text}@32"], perplexity_segments=2, energy=None)
    found = measure_perplexities(engine, tokenizer, config)
    assert list(found) == ["mine_ppl@16", "mine_ppl@32"]
    ids = torch.tensor(tokenizer(text.read_text())["input_ids"][:32]).view(2, 16)
    assert found["mine_ppl@16"] == perplexity(llama, ids)


def test_blank_lines_of_a_text_count_as_in_the_papers(engine, llama, tokenizer, monkeypatch):
    rows = ["", " = Title = \n", "", " It is raining . \n"]
    monkeypatch.setattr("greenprune.benchmark.texts.documents", lambda source, held_out, tokenizer: iter(rows))
    found = measure_perplexities(
        engine, tokenizer, BenchmarkConfig(perplexity=["wikitext2@8"], data="hub", energy=None)
    )
    ids = tokenizer("\n\n".join(rows))["input_ids"]
    whole = torch.tensor(ids[: len(ids) // 8 * 8]).view(-1, 8)
    assert found == {"wikitext2_ppl@8": perplexity(llama, whole)}


def test_texts_of_the_hub_have_stand_ins_among_the_assets(monkeypatch):
    assert source_here("c4", "hub") == "c4"
    assert (source_here("c4", "assets"), source_here("wikitext2", "assets")) == ("pypi:c4", "pypi:wikitext2")
    assert (source_here("mine.txt", "assets"), source_here("a/b", "assets")) == ("mine.txt", "a/b")
    assert set(STAND_INS) == HUB_TEXTS.keys() & assets.TEXTS.keys(), "the report says so of these"


@pytest.mark.real
def test_the_real_perplexity_is_that_of_text(real_model):
    config = BenchmarkConfig(perplexity=["pypi:wikipedia@128"], perplexity_segments=4, energy=None)
    found = measure_perplexities(TransformersEngine(real_model[0]), real_model[1], config)
    assert 10 < found["wikipedia_ppl@128"] < 80
