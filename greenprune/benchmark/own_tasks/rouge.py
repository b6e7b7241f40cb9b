"""ROUGE of a generated summary (Lin 2004): F1 of shared words, word pairs, and the longest common subsequence."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

ROUGE_METRICS = ("rouge1", "rouge2", "rougeL")


@functools.cache
def _scorer() -> RougeScorer:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(ROUGE_METRICS, use_stemmer=True)


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """lm-eval's hook: the scores, 0–1, of one document's summary `results[0]`. An empty summary has 0."""
    scores = _scorer().score(doc["summary"], results[0])
    return {name: float(scores[name].fmeasure) for name in ROUGE_METRICS}
