"""ROUGE by hand."""

from __future__ import annotations

import pytest

from greenprune.benchmark.own_tasks.rouge import process_results


def test_rouge_by_hand():
    """Words: the cat sat (on the mat) against the cat lay: 2 of 3, 1 of 2 pairs, subsequence of 2."""
    found = process_results({"summary": "The cat sat."}, ["the cats lay"])
    assert found == {"rouge1": pytest.approx(2 / 3), "rouge2": 0.5, "rougeL": pytest.approx(2 / 3)}
    assert process_results({"summary": "The cat sat."}, [""]) == {"rouge1": 0, "rouge2": 0, "rougeL": 0}
    assert process_results({"summary": "a b c"}, ["c b a"])["rougeL"] == pytest.approx(1 / 3)
