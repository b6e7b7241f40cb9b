"""What a model answered to each document: kept for paired comparison, and counted where nobody can read it.

An answer that can't be parsed is a wrong answer: it counts 0 and stays in the mean.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lm_eval.api.task import Task

from greenprune.storage import write_atomically

INVALID = "[invalid]"  # what lm-eval's filters give for an answer that they can't parse


def answers(task: Task, logged: Iterable[Mapping[str, Any]], metric: str) -> list[dict[str, Any]]:
    """One row a document from lm-eval's logged samples, in the order of the documents.

    doc_id: index in the evaluated split; document: hash of its content; target; prediction: index of the choice
    that `metric` takes, or the generated text after its filter; score: the document's `metric`, 0.0 where
    lm-eval gives none, None where it is no number; parsed: False where a generated answer says nothing or its
    filter found nothing (None where nothing is generated); log_likelihoods: of the choices, in nats.
    """
    name, _, filtered = metric.partition("/")
    chosen = [sample for sample in logged if sample["filter"] == (filtered or "none")]
    invalid = _invalid_answers(task, filtered or "none")
    return [_answer(task, sample, name, invalid) for sample in chosen]


def _answer(task: Task, sample: Mapping[str, Any], metric: str, invalid: frozenset[str]) -> dict[str, Any]:
    score = sample.get(metric, 0.0)
    row = {
        "doc_id": int(sample["doc_id"]),
        "document": sample["doc_hash"][:16],
        "target": sample["target"],
        "prediction": None,
        "score": float(score) if isinstance(score, int | float) else None,
        "parsed": None,
    }
    responses = sample["filtered_resps"]
    if task.OUTPUT_TYPE == "generate_until":
        text = responses[0] if isinstance(responses[0], str) else json.dumps(responses[0], default=str)
        readable = bool(text.strip()) and text.strip().casefold() not in invalid
        return {**row, "prediction": text, "parsed": readable and metric in sample}
    row["log_likelihoods"] = [float(response[0]) for response in responses if isinstance(response, tuple | list)]
    if task.OUTPUT_TYPE == "multiple_choice":
        choices = task.doc_to_choice(sample["doc"])
        row["prediction"] = _chosen(row["log_likelihoods"][: len(choices)], choices, metric)
        if task.multiple_input:  # the contexts are the choices: what lm-eval calls the text is the right one's index
            row["target"] = task.doc_to_text(sample["doc"])
    return row


def _chosen(log_likelihoods: Sequence[float], choices: Sequence[str], metric: str) -> int:
    """The first of the likeliest choices; a letter for `acc_norm`, a byte for `acc_bytes`."""
    lengths = {"acc_norm": [len(choice) for choice in choices], "acc_bytes": [len(c.encode()) for c in choices]}
    per = lengths.get(metric, [1] * len(choices))
    scores = [value / length if length else -inf for value, length in zip(log_likelihoods, per, strict=True)]
    return scores.index(max(scores))


def _invalid_answers(task: Task, filtered: str) -> frozenset[str]:
    """What the named filter gives for an answer that it can't parse, in lower case."""
    filters = [each for each in task.config.filter_list or [] if each["name"] == filtered]
    fallbacks = [step.get("fallback", INVALID) for each in filters for step in each["filter"]]
    return frozenset(str(fallback).casefold() for fallback in fallbacks)


def unparsed(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """The share of generated answers that can't be parsed; None where nothing is generated."""
    generated = [row["parsed"] for row in rows if row["parsed"] is not None]
    return generated.count(False) / len(generated) if generated else None


def write_answers(folder: Path, task: str, rows: Iterable[Mapping[str, Any]]) -> Path:
    """folder/TASK.jsonl.gz, a line a document; the same bytes for the same rows."""
    text = "".join(json.dumps(row, default=_plain, ensure_ascii=False) + "\n" for row in rows)
    path = folder / f"{quote(task, safe='')}.jsonl.gz"
    write_atomically(path, gzip.compress(text.encode(), mtime=0))
    return path


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)
