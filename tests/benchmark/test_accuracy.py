"""Scores of tasks on a tiny random model; a few on the real one."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import pytest
import torch

from greenprune.benchmark import tasks
from greenprune.benchmark.accuracy import _numbers, draw, mean_and_error, measure_accuracy
from greenprune.benchmark.tasks import TASKS
from greenprune.benchmark.texts import measure_perplexities
from greenprune.config import BenchmarkConfig
from greenprune.energy import ReplayMeter
from greenprune.engines.transformers import TransformersEngine
from greenprune.errors import ConfigError


def test_draw_is_seeded_and_sorted():
    assert draw(10, None, 0) is None
    assert draw(10, 10, 0) is None
    drawn = draw(1000, 20, 0)
    assert drawn == sorted(set(drawn)) == draw(1000, 20, 0)
    assert drawn != list(range(20))
    assert drawn != draw(1000, 20, 1)


def test_metrics_lose_the_default_filter_and_what_is_no_number():
    found = _numbers({"alias": "x", "acc,none": 0.5, "acc_stderr,none": "N/A", "em,strict": 1, "f1,none": math.nan})
    assert found == {"acc": 0.5, "em/strict": 1.0}


def test_accuracy_of_each_task_with_its_floor_time_and_energy(engine, tokenizer, wheel, caplog, capfd):
    config = BenchmarkConfig(tasks=["boolq", "openbookqa"], data="assets", limit=12, energy=None)
    meter = ReplayMeter([10.0, None])
    with caplog.at_level(logging.INFO, logger="greenprune"):
        result = measure_accuracy(engine, tokenizer, config, meter)
    boolq, openbookqa = result.tasks["boolq"], result.tasks["openbookqa"]
    chosen = draw(20, 12, 0)
    assert boolq.floor == pytest.approx(max(sum(n % 4 > 0 for n in chosen), sum(n % 4 == 0 for n in chosen)) / 12)
    assert openbookqa.floor == pytest.approx(1 / 3)
    assert (boolq.documents, openbookqa.documents) == (12, 8)
    assert (boolq.joules, openbookqa.joules) == (10.0, None)
    assert openbookqa.value == openbookqa.metrics["acc_norm"]
    assert openbookqa.stderr == openbookqa.metrics["acc_norm_stderr"]
    assert result.accuracy == pytest.approx((boolq.value + openbookqa.value) / 2)
    assert [reading.name for reading in result.readings] == ["boolq", "openbookqa"]
    assert "accuracy: boolq acc 0." in caplog.text
    assert capfd.readouterr() == ("", ""), "lm-eval is silent"


def test_accuracy_is_deterministic_and_depends_on_the_seed(engine, tokenizer, wheel):
    def run(**changes):
        config = BenchmarkConfig(tasks=["boolq"], data="assets", limit=6, num_fewshot=1, energy=None, **changes)
        task = measure_accuracy(engine, tokenizer, config, ReplayMeter([1.0])).tasks["boolq"]
        return replace(task, seconds=0.0)

    assert run() == run()
    assert run(seed=1).floor != run(seed=3).floor


def log_likelihood(model, tokenizer, context: str, continuation: str) -> float:
    ids = torch.tensor([tokenizer(context + continuation)["input_ids"]])
    length = len(tokenizer(continuation)["input_ids"])
    with torch.no_grad():
        scores = model(ids).logits[0, :-1].log_softmax(-1)
    return scores.gather(1, ids[0, 1:, None])[-length:].sum().item()


def test_accuracy_is_that_of_the_log_likelihoods(engine, llama, tokenizer, wheel):
    config = BenchmarkConfig(tasks=["openbookqa"], data="assets", energy=None)
    result = measure_accuracy(engine, tokenizer, config, ReplayMeter([1.0])).tasks["openbookqa"]
    right = 0
    for number in range(8):
        scores = [
            log_likelihood(llama, tokenizer, f"The number after {number} is", f" {choice}")
            for choice in (str(number - 1), str(number + 1), "no number")
        ]
        right += max(range(3), key=lambda choice: scores[choice]) == 1
    assert result.metrics["acc"] == right / 8


def test_answers_say_what_the_scores_say(engine, tokenizer, wheel):
    config = BenchmarkConfig(tasks=["boolq", "openbookqa"], data="assets", limit=6, energy=None)
    result = measure_accuracy(engine, tokenizer, config, ReplayMeter([1.0, 1.0]))
    for name, total in (("boolq", 20), ("openbookqa", 8)):
        rows, task = result.answers[name], result.tasks[name]
        assert [row["doc_id"] for row in rows] == draw(total, 6, 0)
        assert [row["score"] for row in rows] == [float(row["prediction"] == row["target"]) for row in rows]
        assert task.value == pytest.approx(sum(row["score"] for row in rows) / 6)
        assert mean_and_error([row["score"] for row in rows])[1] == pytest.approx(task.stderr)


def test_summaries_are_scored_and_unreadable_ones_reported(engine, tokenizer, wheel, monkeypatch):
    generated = iter(["A stone fell", "", " \t", "number"])
    monkeypatch.setattr(
        "lm_eval.models.huggingface.HFLM.generate_until",
        lambda self, requests, **_: [next(generated) for _ in requests],
    )
    config = BenchmarkConfig(tasks=["xsum"], data="assets", energy=None)
    result = measure_accuracy(engine, tokenizer, config, ReplayMeter([1.0]))
    task, rows = result.tasks["xsum"], result.answers["xsum"]
    assert (task.metric, task.unparsed, task.floor) == ("rougeL", 0.5, None)
    expected = [2 * 3 / (3 + 5), 0, 0, 2 * 1 / (1 + 5)]  # words in common / words of both
    assert [row["score"] for row in rows] == pytest.approx(expected)
    assert task.value == pytest.approx(sum(expected) / 4)
    assert [row["parsed"] for row in rows] == [True, False, False, True]


def test_a_task_without_accuracy_is_refused_before_it_runs(engine, tokenizer, wheel, monkeypatch):
    task = tasks.load_task("openbookqa", "assets")
    monkeypatch.setattr(task, "_aggregation_list", {"word_perplexity": None})
    monkeypatch.setattr("greenprune.benchmark.accuracy.load_task", lambda *_: task)
    config = BenchmarkConfig(tasks=["wikitext"], data="assets", energy=None)
    with pytest.raises(ConfigError, match=r"wikitext gives word_perplexity; leave it out"):
        measure_accuracy(engine, tokenizer, config, ReplayMeter([]))


def test_no_tasks_is_no_accuracy(engine, tokenizer):
    result = measure_accuracy(engine, tokenizer, BenchmarkConfig(), ReplayMeter([]))
    assert (result.accuracy, result.tasks, result.answers) == (None, {}, {})


@pytest.mark.real
def test_the_real_model_beats_the_floor_and_repeats(real_model):
    config = BenchmarkConfig(tasks=["openbookqa", "piqa"], data="assets", limit=10, energy=None)
    engine, tokenizer = TransformersEngine(real_model[0]), real_model[1]
    runs = [measure_accuracy(engine, tokenizer, config, ReplayMeter([1.0, 1.0])).tasks for _ in range(2)]
    assert runs[0]["piqa"].metrics == runs[1]["piqa"].metrics
    assert runs[0]["openbookqa"].metrics == runs[1]["openbookqa"].metrics
    assert runs[0]["piqa"].value > runs[0]["piqa"].floor


@pytest.mark.real
@pytest.mark.slow
def test_every_task_and_text_runs_from_assets_and_repeats(real_model, tmp_path):
    ptb = tmp_path / "ptb.test.txt"
    ptb.write_text(" no it was n't black monday \n but while the new york stock exchange did n't fall apart \n" * 20)
    engine, tokenizer = TransformersEngine(real_model[0]), real_model[1]
    texts = ["wikitext2@128", "c4@128", f"ptb={ptb}@128"]

    def run(limit, num_fewshot):
        config = BenchmarkConfig(
            tasks=list(TASKS), data="assets", limit=limit, num_fewshot=num_fewshot, max_length=512, perplexity=texts,
            perplexity_segments=2, energy=None,
        )  # fmt: skip
        measured = measure_accuracy(engine, tokenizer, config, ReplayMeter([1.0] * len(TASKS)))
        scores = {name: replace(task, seconds=0.0) for name, task in measured.tasks.items()}
        return scores, measured.answers, measure_perplexities(engine, tokenizer, config)

    scores, rows, perplexities = run(2, 0)
    assert (scores, rows, perplexities) == run(2, 0)
    assert scores.keys() == rows.keys() == TASKS.keys()
    for name, task in scores.items():
        assert task.documents == len(rows[name]) == 2
        assert task.value == pytest.approx(sum(row["score"] for row in rows[name]) / 2)
    assert {name for name, task in scores.items() if task.floor is None} == {"xsum"}
    assert perplexities.keys() == {"wikitext2_ppl@128", "c4_ppl@128", "ptb_ppl@128"}
    assert all(1 < value < 2000 for value in perplexities.values())
    assert run(1, 1)[0].keys() == TASKS.keys()
