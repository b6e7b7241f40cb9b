"""Accuracy on lm-eval tasks, one task at a time so that each has its own time and energy.

A limit draws documents with the seed instead of taking the first ones, which many data sets keep sorted.
Beside each score stands its floor, what a model without knowledge gets. What the model answered is kept
document by document, so that two models can be compared on the same ones.
"""

from __future__ import annotations

import logging
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

import torch
from lm_eval.api.task import Task
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from greenprune.benchmark.answers import answers, unparsed
from greenprune.benchmark.fewshot import reserve_examples
from greenprune.benchmark.positions import learned_positions
from greenprune.benchmark.quiet import offline, quiet
from greenprune.benchmark.shared_prefix import SharedPrefixLM
from greenprune.benchmark.tasks import TASKS, load_task, resolve_data
from greenprune.config import BenchmarkConfig
from greenprune.energy import Meter, Reading
from greenprune.errors import ConfigError

log = logging.getLogger("greenprune")
ACCURACIES = (
    "acc_norm",
    "acc",
    "exact_match",
    "em",
    "f1",
)  # what counts as a primary metric, first one first


def measure_accuracy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: BenchmarkConfig, meter: Meter
) -> dict[str, Any]:
    """Evaluate `config.tasks`; each is one window of `meter`.

    Returns {"data": hub or assets, "accuracy": mean of the primary metrics (None without tasks), "tasks":
    {name: {metric, value, stderr, floor (None where it has none), unparsed (share of generated answers that
    nobody can read, which count 0; None where answers are chosen), documents, metrics, seconds, joules (None
    where not measured)}}, "answers": {name: rows as `greenprune.benchmark.answers` makes them}, "readings":
    [Reading, …]}. Raises AssetError, ConfigError.
    """
    if not config.tasks:
        return {"data": None, "accuracy": None, "tasks": {}, "answers": {}, "readings": []}
    data = resolve_data(config.data)
    tasks, given, readings = {}, {}, []
    with offline(data == "assets"), quiet("accuracy: set-up"):
        harness = SharedPrefixLM(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=config.batch_size,
            max_length=min(config.max_length, learned_positions(model) or config.max_length),
        )
    for name in config.tasks:
        with offline(data == "assets"), quiet(f"accuracy: {name}"):
            task = load_task(name, data)
            tasks[name], given[name], reading = _measure(harness, name, task, config, meter)
            readings.append(reading)
        log.info("accuracy: %s", describe(name, tasks[name]))
    accuracy = fmean(task["value"] for task in tasks.values())
    return {"data": data, "accuracy": accuracy, "tasks": tasks, "answers": given, "readings": readings}


def describe(name: str, result: Mapping[str, Any]) -> str:
    floor = "" if result["floor"] is None else f"floor {result['floor']:.2f}, "
    floor += "" if result["unparsed"] is None else f"unparsed {result['unparsed']:.2f}, "
    work = f"{result['documents']} documents, {result['seconds']:.0f} s"
    return f"{name} {result['metric']} {result['value']:.3f} ({floor}{work})"


def _measure(
    harness: HFLM, name: str, task: Task, config: BenchmarkConfig, meter: Meter
) -> tuple[dict[str, Any], list[dict[str, Any]], Reading]:
    wanted = _primary(name, list(task.aggregation()))
    chosen = draw(len(task.task_docs), config.limit, config.seed)
    documents = range(len(task.task_docs)) if chosen is None else chosen
    reserve_examples(task, documents, config.num_fewshot, config.seed)
    torch.manual_seed(config.seed)  # for tasks that sample their answers
    with meter.window(name) as window, torch.inference_mode():
        outcome = evaluate(
            lm=harness,
            task_dict={"tasks": {task.task_name: task}, "groups": {}},
            samples=None if chosen is None else {task.task_name: chosen},
            log_samples=True,
        )
    metrics, logged = _numbers(outcome["results"][task.task_name]), outcome["samples"][task.task_name]
    metric = _reported(name, wanted, metrics)
    rows = answers(task, logged, metric)
    value, stderr = metrics[metric], metrics.get(metric.replace(wanted, f"{wanted}_stderr", 1))
    if any(wanted not in sample for sample in logged):  # lm-eval leaves these documents out of its mean
        value, stderr = mean_and_error([row["score"] for row in rows])
    result = {
        "metric": metric,
        "value": value,
        "stderr": stderr,
        "floor": floor(name, task, documents),
        "unparsed": unparsed(rows),
        "documents": len(documents),
        "metrics": metrics,
        "seconds": window.reading.seconds,
        "joules": window.reading.energy_j,
    }
    return result, rows, window.reading


def draw(total: int, limit: int | None, seed: int) -> list[int] | None:
    """Sorted indices of `limit` documents of `total`, the same for every model; None for all of them."""
    if limit is None or limit >= total:
        return None
    return sorted(random.Random(seed).sample(range(total), limit))


def _numbers(results: Mapping[str, Any]) -> dict[str, float]:
    """`{"acc,none": 0.5, "acc_stderr,none": "N/A"}` to `{"acc": 0.5}`; a filter's name stays: `em/strict`."""
    named = {}
    for key, value in results.items():
        metric, comma, filtered = key.partition(",")
        if comma and isinstance(value, int | float) and not math.isnan(value):
            named[metric if filtered == "none" else f"{metric}/{filtered}"] = float(value)
    return named


def mean_and_error(scores: Sequence[float]) -> tuple[float, float | None]:
    """The mean and its standard error; None for that of a single score."""
    return fmean(scores), stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 else None


def _reported(name: str, wanted: str, metrics: Mapping[str, float]) -> str:
    """The metric as it was reported, with the first filter's name where it went through one: `em/strict`."""
    for metric in metrics:
        if metric.partition("/")[0] == wanted:
            return metric
    raise ConfigError(f"benchmark.tasks must give a number for each task, but {name} gave no {wanted}; leave it out")


def _primary(name: str, metrics: Sequence[str]) -> str:
    """Which of a task's metrics counts; known before the task is run."""
    if name in TASKS:
        return TASKS[name].metric
    for wanted in ACCURACIES:
        if wanted in metrics:
            return wanted
    raise ConfigError(
        f"benchmark.tasks must give an accuracy ({', '.join(ACCURACIES)}), but {name} gives "
        f"{', '.join(metrics)}; leave it out, and ask for perplexities with benchmark.perplexity"
    )


# ------------------------------------------------------------------------------------------------- floors


def floor(name: str, task: Task, documents: Sequence[int]) -> float | None:
    """The score without knowledge on these documents: the commonest answer's share, or chance.

    The first where all documents share one set of answers, the second where each has its own; None where
    nothing is chosen from.
    """
    if task.OUTPUT_TYPE != "multiple_choice":
        return None
    shared = isinstance(task.config.doc_to_choice, list)
    rule = TASKS[name].floor if name in TASKS else "majority" if shared else "chance"
    docs = [task.task_docs[index] for index in documents]
    if rule == "majority":
        return majority([task.doc_to_target(doc) for doc in docs])
    return chance([len(task.doc_to_choice(doc)) for doc in docs])


def majority(labels: Sequence[object]) -> float:
    return Counter(labels).most_common(1)[0][1] / len(labels)


def chance(choices: Sequence[int]) -> float:
    return fmean(1 / count for count in choices)
