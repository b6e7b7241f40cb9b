"""Is one trial really better than another? Paired tests of their answers to the same documents.

Two scores that lie closer than their standard errors may still be told apart, since both models met the same
easy and hard documents: only those count that they answered differently. "A better" is said where chance
explains the difference with a probability below 5 %, else "no difference shown", which isn't "equal".

    greenprune compare runs/demo angular-1a2b3c4d dense
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any
from urllib.parse import unquote

from greenprune.errors import ConfigError, nearest
from greenprune.results import TrialResult, find_trial, locate_run, read_results
from greenprune.storage import Storage
from greenprune.store import Artifact, Store

LEVEL = 0.05
ALL_TASKS = "all tasks"
Answers = Mapping[str, Sequence[Mapping[str, Any]]]  # by task, a row a document


@dataclass(frozen=True)
class Difference:
    """What one task, or all of them, says about two trials.

    a, b: their mean scores (for all tasks together the mean over tasks, as `accuracy` is). low, high: 95 %
    interval of a − b; None where there are too few documents for one. p: two-sided. documents: how many both
    answered. verdict: "A better", "B better" or "no difference shown".
    """

    task: str
    a: float
    b: float
    low: float | None
    high: float | None
    p: float
    documents: int
    verdict: str

    @property
    def difference(self) -> float:
        return self.a - self.b


@dataclass(frozen=True)
class Comparison:
    """Two trials' answers compared, task by task; `pooled` over all tasks, None where there is one only."""

    trial_a: str
    trial_b: str
    tasks: tuple[Difference, ...]
    pooled: Difference | None

    @property
    def overall(self) -> Difference:
        return self.pooled or self.tasks[0]


def compare(run: str | Path, trial_a: str | int, trial_b: str | int, tasks: Sequence[str] | None = None) -> Comparison:
    """Test the answers of two of a run's trials (see `find_trial`) on `tasks` (None: all they share).

    Several tasks' verdicts allow for their number (Holm 1979); the pooled one stands alone. Raises ConfigError
    for trials without answers, and where the two didn't answer the same documents.
    """
    storage, name = locate_run(run)
    storage.pull(f"{name}/trials")
    results = read_results(storage.local / name)
    first, second = find_trial(results, trial_a), find_trial(results, trial_b)
    for result in (first, second):
        if result.status != "ok":
            raise ConfigError(f"a compared trial must have finished, got {result.trial_id}, failed: {result.error}")
    return compare_results(storage, first, second, tasks)


def compare_results(
    storage: Storage, first: TrialResult, second: TrialResult, tasks: Sequence[str] | None = None
) -> Comparison:
    """As `compare`, of two results whose artifacts lie in `storage`."""
    answers = read_answers(storage, first), read_answers(storage, second)
    return compare_answers(first.trial_id, answers[0], second.trial_id, answers[1], tasks)


def compare_answers(
    trial_a: str, answers_a: Answers, trial_b: str, answers_b: Answers, tasks: Sequence[str] | None = None
) -> Comparison:
    """As `compare`, of answers that were read (`read_answers`)."""
    shared = [task for task in answers_a if task in answers_b]
    for task in tasks or ():
        if task not in shared:
            raise ConfigError(f"a task must be one that both trials answered, got {task!r}; {nearest(task, shared)}")
    if not shared:
        raise ConfigError(
            f"two trials must have a task in common, got {', '.join(answers_a)} and {', '.join(answers_b)}; "
            "compare trials with the same benchmark.tasks"
        )
    chosen = [task for task in shared if not tasks or task in tasks]
    pairs = {task: matched(task, answers_a[task], answers_b[task]) for task in chosen}
    found = holm([paired_test(task, *scores) for task, scores in pairs.items()])
    pooled = pooled_test(list(pairs.values())) if len(pairs) > 1 else None
    return Comparison(trial_a, trial_b, tuple(found), pooled)


# ------------------------------------------------------------------------------------------- the answers


def read_answers(storage: Storage, result: TrialResult) -> Answers:
    """A trial's rows by task, as the accuracy stage kept them. Raises ConfigError where it kept none."""
    keys = [stage["key"] for stage in result.stages if stage["stage"] == "accuracy"]
    folder = Store(storage).part(Artifact("accuracy", keys[0]), "answers") if keys else None
    files = sorted(folder.glob("*.jsonl.gz")) if folder else []
    if not files:
        raise ConfigError(
            f"a comparison needs the answers of trial {result.trial_id}, got none"
            f"{f' in {folder}' if folder else ''}; run it again with benchmark.tasks in this storage"
        )
    return {unquote(path.name.removesuffix(".jsonl.gz")): _rows(path) for path in files}


def _rows(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def matched(
    task: str, rows_a: Iterable[Mapping[str, Any]], rows_b: Iterable[Mapping[str, Any]]
) -> tuple[list[float], list[float]]:
    """Both trials' scores of the same documents, in one order. Raises ConfigError where the documents differ."""
    by_a, by_b = ({(row["doc_id"], row["document"]): row["score"] for row in rows} for rows in (rows_a, rows_b))
    if by_a.keys() != by_b.keys():
        raise ConfigError(
            f"trials are compared on the same documents, got {len(by_a)} and {len(by_b)} of {task} with "
            f"{len(by_a.keys() & by_b.keys())} in common; use one benchmark.data, limit and seed for both"
        )
    keys = sorted(by_a)
    scores = [by_a[key] for key in keys], [by_b[key] for key in keys]
    if any(score is None for score in (*scores[0], *scores[1])):
        raise ConfigError(f"a comparison needs a score for each document, and {task} has none; leave it out by --task")
    return scores


# --------------------------------------------------------------------------------------------- the tests


def paired_test(task: str, a: Sequence[float], b: Sequence[float]) -> Difference:
    """The two models' scores of one task's documents, equally long and not empty: McNemar's exact test where all
    are 0 or 1, else Student's paired t-test."""
    assert len(a) == len(b) > 0, f"scores come in pairs, got {len(a)} and {len(b)}"
    right_or_wrong = all(score in (0.0, 1.0) for score in (*a, *b))
    low, high, p = _mcnemar(a, b) if right_or_wrong else _student([(a, b)])
    return _difference(task, fmean(a), fmean(b), low, high, p, len(a))


def pooled_test(pairs: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Difference:
    """The mean over tasks of both models, each task with the same weight however many documents it has."""
    a, b = (fmean(fmean(scores[side]) for scores in pairs) for side in (0, 1))
    low, high, p = _student(pairs)
    return _difference(ALL_TASKS, a, b, low, high, p, sum(len(scores) for scores, _ in pairs))


def _difference(
    task: str, a: float, b: float, low: float | None, high: float | None, p: float, documents: int
) -> Difference:
    verdict = "no difference shown" if p >= LEVEL else "A better" if a > b else "B better"
    return Difference(task, a, b, low, high, p, documents, verdict)


def _mcnemar(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    """Interval of the difference and p by McNemar's exact test (1947).

    If both were equally good, a document that only one of them answers right would be either's with
    probability ½. The interval is Clopper and Pearson's (1934) of that probability, turned into a difference;
    it leaves out 0 exactly where p < 0.05.
    """
    from scipy.stats import beta, binom

    only_a, only_b = (sum(x > y for x, y in zip(*pair, strict=True)) for pair in ((a, b), (b, a)))
    differing = only_a + only_b
    if not differing:
        return -_unseen(len(a)), _unseen(len(a)), 1.0
    p = min(1.0, 2 * float(binom.cdf(min(only_a, only_b), differing, 0.5)))
    low = float(beta.ppf(LEVEL / 2, only_a, only_b + 1)) if only_a else 0.0
    high = float(beta.ppf(1 - LEVEL / 2, only_a + 1, only_b)) if only_b else 1.0
    share = differing / len(a)
    return (2 * low - 1) * share, (2 * high - 1) * share, p


def _student(pairs: Sequence[tuple[Sequence[float], Sequence[float]]]) -> tuple[float | None, float | None, float]:
    """Interval of the mean over tasks of the paired differences, and p, by Student's t.

    Each task has its own variance, and the degrees of freedom are Satterthwaite's (1946). p is never below
    what a sign test could give on as many differing documents: a few equal differences have no variance and
    would prove anything.
    """
    from scipy.stats import t

    differences = [[x - y for x, y in zip(a, b, strict=True)] for a, b in pairs]
    differing = sum(value != 0 for values in differences for value in values)
    if not differing:
        bound = fmean(_unseen(len(values)) for values in differences)
        return -bound, bound, 1.0
    if any(len(values) < 2 for values in differences):
        return None, None, 1.0
    mean = fmean(map(fmean, differences))
    variances = [stdev(values) ** 2 / len(values) for values in differences]
    least = min(1.0, 2 * 0.5**differing)
    if not (total := sum(variances)):
        return mean, mean, least
    error = math.sqrt(total) / len(pairs)
    freedom = total**2 / sum(
        variance**2 / (len(values) - 1) for variance, values in zip(variances, differences, strict=True)
    )
    half_width = float(t.ppf(1 - LEVEL / 2, freedom)) * error
    p = 2 * float(t.sf(abs(mean) / error, freedom))
    return mean - half_width, mean + half_width, max(p, least)


def _unseen(documents: int) -> float:
    """How large a share of documents may differ, at 95 %, when none of these did."""
    return 1 - LEVEL ** (1 / documents)


def holm(found: Sequence[Difference]) -> list[Difference]:
    """The same differences with p raised for their number (Holm 1979), so that all verdicts hold together at 5 %."""
    raised, highest = list(found), 0.0
    for rank, index in enumerate(sorted(range(len(found)), key=lambda i: found[i].p)):
        one = found[index]
        highest = max(highest, min(1.0, one.p * (len(found) - rank)))
        raised[index] = _difference(one.task, one.a, one.b, one.low, one.high, highest, one.documents)
    return raised
