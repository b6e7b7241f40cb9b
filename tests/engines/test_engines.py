"""What holds of every engine; each has a row here. And how Transformers decodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from tiny_causal import VOCABULARY, tiny
from transformers import AutoModelForCausalLM

from greenprune.benchmark.scoring import scorer
from greenprune.config import ENGINES, FIRST_ENGINE, BenchmarkConfig, EnergyConfig
from greenprune.engines import load_engine
from greenprune.engines.perplexity import perplexity
from greenprune.engines.transformers import ForwardPhases, TransformersEngine
from greenprune.errors import ModelError
from greenprune.models import load_checkpoint

WORKLOAD = EnergyConfig(prompt_len=12, decode_len=5, batch_size=2)


@dataclass(frozen=True)
class Row:
    """An engine: how near its numbers are to those of Transformers."""

    tolerance: float = 1e-4
    skip: Callable[[], str | None] = lambda: None  # why it can't be tried here


ROWS = {"transformers": Row()}


@pytest.fixture(params=ROWS)
def served(request, checkpoint) -> Any:
    """The tiny Llama's checkpoint on each engine, and the engine's row."""
    row = ROWS[request.param]
    if reason := row.skip():
        pytest.skip(reason)
    return load_engine(checkpoint, "float32", name=request.param), row


def test_every_engine_has_a_row_and_the_first_one_runs_unasked():
    assert ROWS.keys() == {name for name, kind in ENGINES.items() if kind.batches}
    assert FIRST_ENGINE == "transformers"


def test_an_engine_knows_its_model(served, llama):
    engine, _ = served
    assert engine.parameters == sum(parameter.numel() for parameter in llama.parameters())
    assert engine.layers == 2
    assert engine.device.type in ("cpu", "cuda")
    engine.check_length(100, "a test")


def test_the_prompt_is_the_same_each_pass_and_for_each_load(served, checkpoint):
    engine, _ = served
    with engine.serve(WORKLOAD) as phases:
        before = phases.prompt.clone()
        for _ in range(2):
            phases.prefill()
            phases.fill_cache()
            phases.decode()
        assert torch.equal(phases.prompt, before)
        assert phases.prompt.shape == (2, 12)
    with engine.serve(WORKLOAD) as again:
        assert torch.equal(again.prompt, before)
    with engine.serve(WORKLOAD.model_copy(update={"seed": 1})) as other:
        assert not torch.equal(other.prompt, before)


def test_the_reply_is_greedy_generation_each_time(served, checkpoint):
    engine, _ = served
    model = load_checkpoint(checkpoint, "float32")
    with engine.serve(WORKLOAD) as phases:
        prompt = phases.prompt.to(model.device)
        seen = torch.ones_like(prompt)
        expected = model.generate(prompt, attention_mask=seen, max_new_tokens=6, min_new_tokens=6, do_sample=False)
        phases.fill_cache()
        for _ in range(2):
            phases.decode()
            phases.synchronise()
            assert torch.equal(phases.reply().to(model.device), expected[:, 13:])


def test_peak_memory_is_told_or_none(served):
    engine, _ = served
    with engine.serve(WORKLOAD) as phases:
        phases.synchronise()
        phases.reset_peak_memory()
        phases.prefill()
        phases.synchronise()
        peak = phases.peak_memory_bytes()
    assert peak is None or peak > 0


def test_serving_leaves_no_trace(served):
    engine, _ = served
    with pytest.raises(ZeroDivisionError), engine.serve(WORKLOAD):
        raise ZeroDivisionError
    assert not torch.is_inference_mode_enabled()


def test_perplexity_is_that_of_the_model(served, llama):
    engine, row = served
    segments = torch.randint(VOCABULARY, (3, 16), generator=torch.Generator().manual_seed(0))
    assert engine.perplexity(segments) == pytest.approx(perplexity(llama, segments), rel=row.tolerance)


# --------------------------------------------------------------------------------------------- Transformers


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "opt", "gpt_neox"])
def test_decoding_is_greedy_generation_each_time(architecture):
    """With gemma2's window of 8 the prompt has slid out of it before decoding begins."""
    model = tiny(architecture)
    run = ForwardPhases(model, EnergyConfig(prompt_len=12, decode_len=5, batch_size=2))
    expected = model.generate(
        run.prompt, attention_mask=torch.ones_like(run.prompt), max_new_tokens=6, min_new_tokens=6, do_sample=False
    )[:, 12:]
    tokens: list[torch.Tensor] = []
    forward = run._forward

    def spy(ids, cache):
        tokens.append(ids)
        return forward(ids, cache)

    run._forward = spy
    with torch.no_grad():
        run.fill_cache()
        for _ in range(2):
            tokens.clear()
            run.decode()
            assert torch.equal(torch.cat(tokens, dim=1), expected[:, :5])
            assert torch.equal(run.reply(), expected[:, 1:])
            assert run._cache.get_seq_length() == 12, "the prompt alone"


def test_the_prompt_is_seeded_and_the_same_for_every_model():
    config = EnergyConfig(prompt_len=12, decode_len=4, seed=3)
    assert torch.equal(ForwardPhases(tiny("llama"), config).prompt, ForwardPhases(tiny("opt"), config).prompt)
    other = EnergyConfig(prompt_len=12, decode_len=4, seed=4)
    assert not torch.equal(ForwardPhases(tiny(), config).prompt, ForwardPhases(tiny(), other).prompt)


def test_serving_is_in_evaluation_mode_and_restores_the_mode(engine):
    engine.model.train()
    try:
        with engine.serve(WORKLOAD):
            assert not engine.model.training
            assert torch.is_inference_mode_enabled()
        assert engine.model.training
    finally:
        engine.model.eval()


def test_lengths_beyond_learned_positions_are_refused(tmp_path):
    model = tiny("opt")
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="at most 64 tokens"):
        load_engine(tmp_path, "float32", name="transformers").check_length(65, "a test")


def test_a_split_model_gives_the_same_numbers(checkpoint, tmp_path, tokenizer):
    """Parts in memory and on the disk stand for GPUs: all that is asked of a model goes through accelerate's hooks."""
    parts = dict.fromkeys(("model.embed_tokens", "model.rotary_emb", "model.layers.0", "lm_head"), "cpu")
    parts |= dict.fromkeys(("model.layers.1", "model.norm"), "disk")
    split = AutoModelForCausalLM.from_pretrained(checkpoint, device_map=parts, offload_folder=tmp_path, dtype="float32")
    assert any(parameter.is_meta for parameter in split.parameters())
    segments = torch.randint(VOCABULARY, (3, 16), generator=torch.Generator().manual_seed(0))
    asked = [Instance("loglikelihood", {}, ("the cat", end), 0) for end in (" sat", " on a mat")]
    numbers = []
    for engine in (TransformersEngine(split.eval()), load_engine(checkpoint, "float32")):
        with engine.serve(WORKLOAD) as phases:
            phases.fill_cache()
            phases.decode()
            reply = phases.reply().tolist()
        answers = scorer(engine, tokenizer, BenchmarkConfig(batch_size=2, max_length=64)).loglikelihood(asked)
        numbers.append((engine.perplexity(segments), reply, answers))
    assert numbers[0] == numbers[1]
