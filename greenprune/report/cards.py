"""How much cards of one class differ: what the dense model took on each."""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING

from greenprune.columns import CONTAMINATED, shown
from greenprune.comparability import finished
from greenprune.energy.machine import machine_class_of

if TYPE_CHECKING:
    from pandas import DataFrame

NEEDED = ("energy_j_per_token", "energy_ratio", "energy_kind", "machine")


def card_to_card(trials: DataFrame) -> list[str]:
    """A line for each class of which the run has several cards.

    The dense model's joules on a trial's card are the trial's over its ratio to them; each trial of a card tells the
    same, unless they were measured again, and then their mean counts.
    """
    if not set(NEEDED) <= set(trials.columns):
        return []
    by_class: dict[tuple[str | None, str], dict[str, list[float]]] = {}
    for row in finished(trials).dropna(subset=list(NEEDED)).to_dict("records"):
        if row["energy_kind"] != CONTAMINATED and row["energy_ratio"] > 0:
            cards = by_class.setdefault((machine_class_of(row), row["energy_kind"]), {})
            cards.setdefault(row["machine"], []).append(row["energy_j_per_token"] / row["energy_ratio"])
    means = [[fmean(values) for values in cards.values()] for cards in by_class.values()]
    return [_line(of_cards) for of_cards in means if len(of_cards) > 1]


def _line(joules: list[float]) -> str:
    low, high = (shown("energy_j_per_token", value) for value in (min(joules), max(joules)))
    spread = (max(joules) - min(joules)) / fmean(joules)
    return f"the dense model took {low}–{high} J/token over {len(joules)} cards of one class, spread {spread:.1%}"
