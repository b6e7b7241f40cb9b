"""What the fast scorer saves beside stock HFLM at the same batch size, and that its answers are the same.

    .venv/bin/python scripts/bench_scoring.py              # 200 documents of each task, fp32
    .venv/bin/python scripts/bench_scoring.py --limit 20

Both score the same documents in one process, task by task, in alternating order. A task's time is that of
`loglikelihood`, tokenising included; reading documents and taking metrics is lm-eval's own work, the same for both.
An answer is the same when the greedy flags of all choices are, and the best choice by log-likelihood and by
log-likelihood a character.
Exit status 1 below 2.5 times the speed in total, where an answer differs, or a log-likelihood by more than 1e-4.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM

from greenprune import load_model
from greenprune.benchmark.accuracy import draw
from greenprune.benchmark.data_mode import resolve_data
from greenprune.benchmark.quiet import offline, quiet_harness, replaced
from greenprune.benchmark.shared_prefix import SharedPrefixLM
from greenprune.benchmark.tasks import load_task

RATIO = 2.5
DIFFERENCE = 1e-4


@dataclass(frozen=True)
class Answer:
    """One document's: the best choice, the best a character, and of each choice log-likelihood and greedy flag."""

    best: int
    best_normalised: int
    scores: tuple[float, ...]
    greedy: tuple[bool, ...]

    def same(self, other: Answer) -> bool:
        choices = (self.best, self.best_normalised, self.greedy)
        return choices == (other.best, other.best_normalised, other.greedy)


def answer(sample: dict) -> Answer:
    pairs = [response[0] for response in sample["resps"]]
    scores = tuple(score for score, _ in pairs)
    lengths = [len(continuation.lstrip()) for _, continuation in sample["arguments"]]
    normalised = [score / length for score, length in zip(scores, lengths, strict=True)]
    return Answer(
        scores.index(max(scores)), normalised.index(max(normalised)), scores, tuple(flag for _, flag in pairs)
    )


class Stopwatch:
    """Stands before a scorer; `seconds` is what its answers took."""

    def __init__(self, lm: HFLM) -> None:
        self.seconds = 0.0
        self._score = lm.loglikelihood

    def __call__(self, requests: list, **settings) -> list:
        began = time.perf_counter()
        answers = self._score(requests, **settings)
        self.seconds += time.perf_counter() - began
        return answers


def timed(lm: HFLM, name: str, data: str, limit: int | None) -> tuple[float, list[Answer]]:
    """Seconds of scoring, and the answers by document."""
    task = load_task(name, data)
    chosen = draw(len(task.task_docs), limit, seed=0)
    documents = list(range(len(task.task_docs))) if chosen is None else chosen
    watch = Stopwatch(lm)
    with replaced(lm, "loglikelihood", watch):
        outcome = evaluate(
            lm=lm,
            task_dict={"tasks": {task.task_name: task}, "groups": {}},
            samples={task.task_name: documents},
            log_samples=True,
            bootstrap_iters=0,
        )
    samples = sorted(outcome["samples"][task.task_name], key=lambda sample: sample["doc_id"])
    return watch.seconds, [answer(sample) for sample in samples]


def difference(ours: Sequence[Answer], stock: Sequence[Answer]) -> float:
    """The largest relative difference of a log-likelihood."""
    return max(
        abs(mine - theirs) / abs(theirs)
        for one, other in zip(ours, stock, strict=True)
        for mine, theirs in zip(one.scores, other.scores, strict=True)
    )


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--model", default="pypi:smollm2-135m")
    options.add_argument("--dtype", default="float32")
    options.add_argument("--tasks", nargs="+", default=["hellaswag", "arc_easy", "piqa", "sciq"])
    options.add_argument("--limit", type=int, default=200, help="documents a task")
    options.add_argument("--batch-size", type=int, default=16)
    options.add_argument("--data", choices=["auto", "hub", "assets"], default="auto")
    chosen = options.parse_args()
    data = resolve_data(chosen.data)
    model, tokenizer = load_model(chosen.model, dtype=chosen.dtype)
    with offline(data == "assets"), quiet_harness("scoring"):
        settings = {"pretrained": model, "tokenizer": tokenizer, "batch_size": chosen.batch_size, "max_length": 2048}
        stock, ours = HFLM(**settings), SharedPrefixLM(**settings)
        for lm in (stock, ours):
            timed(lm, chosen.tasks[0], data, limit=2)  # warm-up
        print(f"{chosen.model}, {chosen.dtype}, {model.device}, {torch.get_num_threads()} threads, ", end="")
        print(f"batch size {chosen.batch_size}, {chosen.limit} documents a task")
        print("| task | HFLM s | SharedPrefixLM s | ratio | same answers | largest difference |")
        print("|---|---|---|---|---|---|")
        rows = []
        for number, name in enumerate(chosen.tasks):
            turns = (stock, ours) if number % 2 == 0 else (ours, stock)
            found = {lm: timed(lm, name, data, chosen.limit) for lm in turns}
            (stock_s, expected), (ours_s, answers) = found[stock], found[ours]
            same = [one.same(other) for one, other in zip(answers, expected, strict=True)]
            rows.append((name, stock_s, ours_s, same, difference(answers, expected)))
            print(row(*rows[-1]), flush=True)
    _, of_stock, of_ours, all_same, differences = zip(*rows, strict=True)
    total = ("all", sum(of_stock), sum(of_ours), [one for same in all_same for one in same], max(differences))
    print(row(*total))
    return int(total[1] < RATIO * total[2] or not all(total[3]) or total[4] > DIFFERENCE)


def row(name: str, stock_s: float, ours_s: float, same: Sequence[bool], largest: float) -> str:
    share = sum(same) / len(same)
    return f"| {name} | {stock_s:.1f} | {ours_s:.1f} | {stock_s / ours_s:.2f} | {share:.3f} | {largest:.1e} |"


if __name__ == "__main__":
    sys.exit(main())
