"""A model whose weights or activations hold NaN or infinity: nothing is scored by it, and nothing else is lost."""

from __future__ import annotations

import json
import math

import pytest
import torch
from tiny_causal import tiny

from greenprune.benchmark import accuracy_stage
from greenprune.benchmark.accuracy import measure_accuracy
from greenprune.config import BenchmarkConfig
from greenprune.energy import AbsentMeter
from greenprune.engines.perplexity import perplexity
from greenprune.engines.transformers import TransformersEngine
from greenprune.errors import ModelError
from greenprune.experiment import parse_experiment
from greenprune.pareto import pareto_front
from greenprune.results import load_trials, write_result, write_trials
from greenprune.trial import run_trial


def broken(value: float, stock_scoring: bool = False):
    """Its second layer gives `value`."""
    model = tiny(max_position_embeddings=2048)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = value
    if stock_scoring:
        model.config.model_type = "unknown"
    return model


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("stock_scoring", [False, True])
@pytest.mark.parametrize("task", ["boolq", "xsum"])
def test_a_task_is_never_scored_by_what_is_no_number(wheel, tokenizer, value, stock_scoring, task):
    config = BenchmarkConfig(tasks=[task], data="assets", limit=2, energy=None)
    engine = TransformersEngine(broken(value, stock_scoring))
    with pytest.raises(ModelError, match=rf"{task}: logits must be finite .*got .*(nan|inf).*bfloat16"):
        measure_accuracy(engine, tokenizer, config, AbsentMeter("none here"))


def test_a_perplexity_that_is_no_number_is_infinite():
    segments = torch.arange(32).view(2, 16)
    for value in (math.nan, math.inf):
        assert perplexity(broken(value), segments) == math.inf
    hopeless = tiny(max_position_embeddings=2048)
    with torch.no_grad():
        hopeless.lm_head.weight.mul_(1e6)
    assert perplexity(hopeless, segments) == math.inf, "exp of such a loss is beyond a float"


def blind_to(model, token: int):
    """The model, with NaN where it reads `token`."""
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = math.nan
    return model


def test_the_tasks_are_kept_where_a_perplexity_is_infinite(wheel, llama, tokenizer, tmp_path):
    text, rest = tmp_path / "odd.txt", tmp_path / "even.txt"
    text.write_text("a ~ is in this text. " * 9)
    rest.write_text("none is in this text. " * 9)
    model = blind_to(
        tiny(max_position_embeddings=2048, tie_word_embeddings=False), tokenizer.convert_tokens_to_ids("~")
    )
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    config = BenchmarkConfig(
        tasks=["boolq"], data="assets", limit=4, perplexity=[f"{text}@16", f"{rest}@16"], energy=None
    )
    (tmp_path / "out").mkdir()
    accuracy_stage(tmp_path / "out", checkpoint=tmp_path / "model", config=config, dtype="float32")
    found = json.loads((tmp_path / "out/accuracy.json").read_text())
    assert found["tasks"]["boolq"]["documents"] == 4
    assert found["perplexity"]["odd_ppl@16"] == math.inf
    assert math.isfinite(found["perplexity"]["even_ppl@16"])


def test_an_infinite_perplexity_reaches_the_table_and_no_front(tiny_experiment, tiny_model, tiny_checkpoint, tmp_path):
    blind_to(tiny_model, 4).save_pretrained(tiny_checkpoint)
    tiny_experiment |= {"prune": {"method": "none"}, "heal": {"method": "none"}}
    result = run_trial(parse_experiment(tiny_experiment), tmp_path / "runs")
    write_result(tmp_path / "run", result)
    write_trials(tmp_path / "run", [result])
    trials = load_trials(tmp_path / "run")
    assert trials["held_ppl@16"].tolist() == [math.inf]
    assert trials["perplexity_note"].tolist() == ["held_ppl@16: logits that aren't finite"]
    assert pareto_front(trials, {"held_ppl@16": "min", "energy_j_per_token": "min"}).empty
