"""Where few-shot examples come from: never from the document that is scored, and not from scored ones if possible.

Stock lm-eval leaves a document out of its own examples only where a task names its test split for both, and
where a data set repeats itself it may show an answer that it asks for elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from lm_eval.api.task import Task

from greenprune.errors import ConfigError


def reserve_examples(task: Task, scored: Iterable[int], num_fewshot: int, seed: int) -> None:
    """Let the task draw its examples, with `seed`, from documents other than the `scored` ones (indices).

    The pool is the task's own (its training split where it has one) without them. Where too few are left,
    because a split without a training part is scored whole, each document gets others of the same split.
    Raises ConfigError where these are too few as well.
    """
    task.set_config(key="num_fewshot", value=num_fewshot)
    task.set_fewshot_seed(seed=seed)
    if not num_fewshot:
        return
    sampler: Any = getattr(task, "sampler", None)
    pool = [] if sampler is None else list(sampler.fewshot_docs())
    seen = {_content(task.task_docs[index]) for index in scored}
    others = [doc for doc in pool if _content(doc) not in seen]
    if len(others) > num_fewshot:  # one more, since lm-eval draws one to spare
        sampler.df = others
        return
    if len({_content(doc) for doc in pool}) <= num_fewshot:
        raise ConfigError(
            f"benchmark.num_fewshot must be below the number of documents that {task.task_name} draws examples from "
            f"({len(pool)}), got {num_fewshot}; lower it"
        )
    # lm-eval hands the scored document to the sampler, to be left out, where these two are the same.
    task.fewshot_cfg.split = task.config.test_split


def _content(doc: Mapping[str, Any]) -> str:
    return json.dumps(doc, sort_keys=True, default=str)
