"""Paired tests that a page can hold: every trial against the dense model, the front's with each other."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from greenprune.errors import ConfigError
from greenprune.paired import Answers, Comparison, compare_answers, read_answers
from greenprune.results import TrialResult, is_dense
from greenprune.storage import Storage

MOST_PAIRS = 300


class PairedTests:
    """Tests pairs of a run's trials; each trial's answers are read once."""

    def __init__(self, storage: Storage, results: Iterable[TrialResult]) -> None:
        self.storage = storage
        self.results = {result.trial_id: result for result in results if result.status == "ok"}
        self.dense = next((name for name, result in self.results.items() if is_dense(result)), None)
        self._answers = functools.cache(self._read)
        self.test = functools.cache(self._test)

    def against_dense(self, trial_id: str) -> Comparison | None:
        """None for the dense model itself, and where either's answers aren't here."""
        return None if self.dense in (None, trial_id) else self.test(trial_id, self.dense)

    def chosen(self, front: Iterable[str]) -> dict[tuple[str, str], Comparison]:
        """The front's trials against each other, then all others against the dense model, MOST_PAIRS at most."""
        pairs = [*itertools.combinations(front, 2)]
        pairs += [(name, self.dense) for name in self.results if self.dense not in (None, name)]
        known = {tuple(sorted(pair)): pair for pair in reversed(pairs)}
        kept = [pair for pair in dict.fromkeys(pairs) if known[tuple(sorted(pair))] == pair][:MOST_PAIRS]
        return {pair: found for pair in kept if (found := self.test(*pair))}

    def _test(self, trial_a: str, trial_b: str) -> Comparison | None:
        first, second = self._answers(trial_a), self._answers(trial_b)
        if first is None or second is None:
            return None
        with suppress(ConfigError):
            return compare_answers(trial_a, first, trial_b, second)
        return None

    def _read(self, trial_id: str) -> Answers | None:
        if trial_id in self.results:
            with suppress(ConfigError):
                return read_answers(self.storage, self.results[trial_id])
        return None


def as_rows(found: Comparison) -> list[dict[str, Any]]:
    """The tests of single tasks and the pooled one, for JSON."""
    every = (*found.tasks, *([found.pooled] if found.pooled else []))
    return [vars(one) | {"difference": one.difference} for one in every]
