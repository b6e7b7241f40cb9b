"""Where few-shot examples come from."""

from __future__ import annotations

import pytest

from greenprune.benchmark import tasks
from greenprune.benchmark.fewshot import reserve_examples
from greenprune.errors import ConfigError


def examples_of(task, doc, shots: int) -> list[str]:
    return task.fewshot_context(doc, num_fewshot=shots).split("\n\n")[:-1]


def test_examples_come_from_documents_that_are_not_scored(wheel):
    task = tasks.load_task("openbookqa", "assets")
    reserve_examples(task, [0, 1, 2], num_fewshot=3, seed=0)
    for index in (0, 1, 2):
        examples = examples_of(task, task.task_docs[index], 3)
        assert len(set(examples)) == 3
        assert not any(f"after {scored} is" in example for scored in (0, 1, 2) for example in examples)


@pytest.mark.parametrize("fewshot_split", ["test", "validation"])
def test_examples_leave_the_document_out_where_all_are_scored(wheel, fewshot_split):
    """Stock lm-eval does so only where both splits have one name."""
    task = tasks.load_task("openbookqa", "assets")
    task.fewshot_cfg.split = fewshot_split
    reserve_examples(task, range(8), num_fewshot=7, seed=0)
    for doc in task.task_docs:
        examples = examples_of(task, doc, 7)
        assert len(set(examples)) == 7
        assert not any(doc["question_stem"] in example for example in examples)


def test_examples_are_seeded(wheel):
    def drawn(seed: int) -> str:
        task = tasks.load_task("openbookqa", "assets")
        reserve_examples(task, [0, 1], num_fewshot=2, seed=seed)
        return task.fewshot_context(task.task_docs[0], num_fewshot=2)

    assert drawn(0) == drawn(0)
    assert len({drawn(seed) for seed in range(5)}) > 1


def test_more_examples_than_documents_are_refused(wheel):
    task = tasks.load_task("openbookqa", "assets")
    with pytest.raises(ConfigError, match=r"num_fewshot must be below.*openbookqa.*\(8\), got 8; lower it"):
        reserve_examples(task, range(8), num_fewshot=8, seed=0)
