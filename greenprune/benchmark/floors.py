"""A task's floor: the score of a model without knowledge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import fmean

from lm_eval.api.task import Task

from greenprune.benchmark.tasks import TASKS


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
