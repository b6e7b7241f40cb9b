"""What a model answered, document by document."""

from __future__ import annotations

import gzip
import json
from types import SimpleNamespace

import torch

from greenprune.benchmark.accuracy import mean_and_error
from greenprune.benchmark.answers import answers, unparsed, write_answers


class Asked:
    """What `answers` reads of an lm-eval task."""

    def __init__(self, kind: str, choices: list[str] = (), filters: list[dict] | None = None) -> None:
        self.OUTPUT_TYPE, self.choices, self.multiple_input = kind, choices, False
        self.config = SimpleNamespace(filter_list=filters)

    def doc_to_choice(self, doc):
        return self.choices


def logged(responses, filtered="none", **metrics):
    return {
        "doc_id": 7, "doc": {}, "doc_hash": "0123456789abcdefgh", "target": 1, "filter": filtered,
        "filtered_resps": responses, **metrics,
    }  # fmt: skip


def test_a_chosen_answer_is_that_of_the_metric():
    task = Asked("multiple_choice", ["a", "four"])
    sample = logged([(-2.0, False), (-4.0, False)], acc=0.0, acc_norm=1.0)
    (plain,), (normed,) = answers(task, [sample], "acc"), answers(task, [sample], "acc_norm")
    assert plain == {
        "doc_id": 7, "document": "0123456789abcdef", "target": 1, "prediction": 0, "score": 0.0, "parsed": None,
        "log_likelihoods": [-2.0, -4.0],
    }  # fmt: skip
    assert (normed["prediction"], normed["score"]) == (1, 1.0)
    assert unparsed([plain, normed]) is None


def test_answers_that_cannot_be_parsed_are_wrong_and_counted():
    filters = [{"name": "strict", "filter": [{"function": "regex", "fallback": "[none]"}, {"function": "take_first"}]}]
    task = Asked("generate_until", filters=filters)
    samples = [
        logged(["42"], "strict", exact_match=1.0),
        logged(["[none]"], "strict", exact_match=0.0),
        logged([" "], "strict", exact_match=0.0),
        logged(["7"], "strict"),  # lm-eval left it out
        logged(["x"], "other", exact_match=1.0),
    ]
    rows = answers(task, samples, "exact_match/strict")
    assert [row["score"] for row in rows] == [1.0, 0.0, 0.0, 0.0]
    assert [row["parsed"] for row in rows] == [True, False, False, False]
    assert unparsed(rows) == 0.75
    assert mean_and_error([row["score"] for row in rows]) == (0.25, 0.25)


def test_answers_are_kept_as_the_same_bytes(tmp_path):
    rows = [{"doc_id": 0, "prediction": "häh", "score": torch.tensor(1.0)}]
    path = write_answers(tmp_path, "a/b", rows)
    assert path.name == "a%2Fb.jsonl.gz"
    assert json.loads(gzip.decompress(path.read_bytes())) == {"doc_id": 0, "prediction": "häh", "score": 1.0}
    first = path.read_bytes()
    assert write_answers(tmp_path, "a/b", rows).read_bytes() == first
