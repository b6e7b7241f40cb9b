"""Accuracy on lm-eval tasks, one task at a time so that each has its own time and energy.

A limit draws documents with the seed instead of taking the first ones, which many data sets keep sorted.
Beside each score stands its floor, what a model without knowledge gets. What the model answered is kept
document by document, so that two models can be compared on the same ones.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean, stdev
from typing import Any

import torch
from lm_eval.api.model import LM
from lm_eval.api.task import Task
from lm_eval.evaluator import evaluate
from transformers import PreTrainedTokenizerBase

from greenprune.benchmark.answers import answers, unparsed
from greenprune.benchmark.data_mode import Data, resolve_data
from greenprune.benchmark.fewshot import reserve_examples
from greenprune.benchmark.floors import floor
from greenprune.benchmark.quiet import offline, quiet_harness
from greenprune.benchmark.scoring import scorer
from greenprune.benchmark.tasks import TASKS, load_task
from greenprune.config import BenchmarkConfig
from greenprune.energy import Meter, Reading
from greenprune.engines import ScoringEngine
from greenprune.errors import ConfigError

log = logging.getLogger("greenprune")
ACCURACIES = (
    "acc_norm",
    "acc",
    "exact_match",
    "em",
    "f1",
)  # what counts as a primary metric, first one first


@dataclass(frozen=True)
class TaskScore:
    """One task's.

    value: its primary `metric`, 0–1, with its standard error. floor: None where it has none. unparsed: share of
    generated answers that nobody can read, which count 0; None where answers are chosen. metrics: all that lm-eval
    reported. joules: None where not measured.
    """

    metric: str
    value: float
    stderr: float | None
    floor: float | None
    unparsed: float | None
    documents: int
    metrics: dict[str, float]
    seconds: float
    joules: float | None

    def line(self, name: str) -> str:
        """For the log."""
        floor = "" if self.floor is None else f"floor {self.floor:.2f}, "
        unread = "" if self.unparsed is None else f"unparsed {self.unparsed:.2f}, "
        work = f"{self.documents} documents, {self.seconds:.0f} s"
        return f"{name} {self.metric} {self.value:.3f} ({floor}{unread}{work})"


@dataclass(frozen=True)
class AccuracyResult:
    """All tasks'. data: hub or assets; accuracy: mean of the primary metrics; both None without tasks.

    answers: rows by task, as `answers.answers` makes them. readings: the meter's, a task each.
    """

    data: Data | None = None
    accuracy: float | None = None
    tasks: dict[str, TaskScore] = field(default_factory=dict)
    answers: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    readings: tuple[Reading, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """What accuracy.json holds of it, but for the readings; answers have files of their own."""
        tasks = {name: asdict(score) for name, score in self.tasks.items()}
        return {"data": self.data, "accuracy": self.accuracy, "tasks": tasks}


def measure_accuracy(
    engine: ScoringEngine, tokenizer: PreTrainedTokenizerBase, config: BenchmarkConfig, meter: Meter
) -> AccuracyResult:
    """Evaluate `config.tasks` on the engine; each is one window of `meter`. Raises AssetError, ConfigError."""
    if not config.tasks:
        return AccuracyResult()
    data = resolve_data(config.data)
    scores, given, readings = {}, {}, []
    with offline(data == "assets"), quiet_harness("accuracy: set-up"):
        asked = scorer(engine, tokenizer, config)
    for name in config.tasks:
        with offline(data == "assets"), quiet_harness(f"accuracy: {name}"):
            task = load_task(name, data, config.commits)
            scores[name], given[name], reading = _measure(asked, name, task, config, meter)
            readings.append(reading)
        log.info("accuracy: %s", scores[name].line(name))
    accuracy = fmean(score.value for score in scores.values())
    return AccuracyResult(data, accuracy, scores, given, tuple(readings))


def _measure(
    asked: LM, name: str, task: Task, config: BenchmarkConfig, meter: Meter
) -> tuple[TaskScore, list[dict[str, Any]], Reading]:
    wanted = _primary(name, list(task.aggregation()))
    chosen = draw(len(task.task_docs), config.limit, config.seed)
    documents = range(len(task.task_docs)) if chosen is None else chosen
    reserve_examples(task, documents, config.num_fewshot, config.seed)
    torch.manual_seed(config.seed)  # for tasks that sample their answers
    with meter.window(name) as window, torch.inference_mode():
        outcome = evaluate(
            lm=asked,
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
    score = TaskScore(
        metric=metric,
        value=value,
        stderr=stderr,
        floor=floor(name, task, documents),
        unparsed=unparsed(rows),
        documents=len(documents),
        metrics=metrics,
        seconds=window.reading.seconds,
        joules=window.reading.energy_j,
    )
    return score, rows, window.reading


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
