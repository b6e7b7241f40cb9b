"""Published values to lay a reproduction beside: facts of papers, each with its source.

Scores are in percent, perplexities as printed. A row belongs to a trial that has all of its configuration. Each was
compared with a copy of its paper's numbers (2026-11-28): LLM-Pruner's dense row with its authors' README, Element¹ with
the paper's text, Element² and Vector with tables that others print to one decimal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PublishedRow:
    """name: as the paper has it. where: the configuration that a trial must have; {} for the dense model. ratio: of the
    model's parameters that is gone, about. scores: by task, in percent. mean: as printed.
    """

    name: str
    where: Mapping[str, Any]
    ratio: float
    scores: Mapping[str, float]
    mean: float


@dataclass(frozen=True)
class Published:
    """model: as the paper names it. ids: a pattern in the lower-case ids of models that are it."""

    source: str
    model: str
    ids: str
    rows: tuple[PublishedRow, ...]


SEVEN_TASKS = ("boolq", "piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa")


def _seven(*values: float) -> dict[str, float]:
    return dict(zip(SEVEN_TASKS, values, strict=True))


def _llm_pruner(importance: str) -> dict[str, Any]:
    return {"prune.method": "llm_pruner", "prune.importance": importance, "heal.method": "none"}


PAPERS: dict[str, Published] = {
    "llm_pruner": Published(
        "Ma et al. 2023, arXiv:2305.11627, Table 1 (20 %, without tuning)",
        "LLaMA-7B",
        r"\bllama-7b\b",
        (
            PublishedRow("LLaMA-7B", {}, 0.0, _seven(73.18, 78.35, 72.99, 67.01, 67.45, 41.38, 42.40), 63.25),
            PublishedRow(
                "Vector", _llm_pruner("vectorize"), 0.2,
                _seven(61.44, 71.71, 57.27, 54.22, 55.77, 33.96, 38.40), 53.25,
            ),
            PublishedRow(
                "Element¹", _llm_pruner("param_first"), 0.2,
                _seven(57.06, 75.68, 66.80, 59.83, 60.94, 36.52, 40.00), 56.69,
            ),
            PublishedRow(
                "Element²", _llm_pruner("param_second"), 0.2,
                _seven(59.39, 75.57, 65.34, 61.33, 59.18, 37.12, 39.80), 56.82,
            ),
        ),
    ),
}  # fmt: skip
