"""What a model's making cost, and when it has paid for itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from greenprune.energy.units import JOULES_PER_WH


def break_even_requests(spent_wh: float | None, wh_per_1k_requests: float | None, ratio: float | None) -> float | None:
    """Requests after which `spent_wh` is saved again, against the dense model.

    ratio: the model's energy per token / the dense one's. None where something isn't known, and where the
    model needs no less than the dense one: then it never is.
    """
    if spent_wh is None or wh_per_1k_requests is None or ratio is None or ratio >= 1:
        return None
    saved_wh = wh_per_1k_requests / 1000 * (1 / ratio - 1)
    return spent_wh / saved_wh


@dataclass(frozen=True)
class SearchCost:
    """Energy and time of a sweep's stages, each artifact once, whoever made it."""

    energy_wh: float | None
    kinds: tuple[str, ...]
    unmetered: int
    seconds: float
    by_stage_wh: Mapping[str, float]

    def describe(self) -> str:
        """One line for people."""
        if self.energy_wh is None:
            return "not metered"
        shares = ", ".join(f"{stage} {wh:.3g}" for stage, wh in self.by_stage_wh.items())
        gaps = f"; not metered: {self.unmetered}" if self.unmetered else ""
        return f"{self.energy_wh:.3g} Wh, {' and '.join(self.kinds)} ({shares}{gaps})"


def search_cost(stages: Iterable[Mapping[str, Any]]) -> SearchCost:
    """The cost of these stages (as in TrialResult.stages); several trials' share of an artifact counts once."""
    unique = {(stage["stage"], stage["key"]): stage for stage in stages}.values()
    metered = [stage for stage in unique if stage.get("energy_j") is not None]
    by_stage: dict[str, float] = {}
    for stage in metered:
        by_stage[stage["stage"]] = by_stage.get(stage["stage"], 0.0) + stage["energy_j"] / JOULES_PER_WH
    return SearchCost(
        energy_wh=sum(by_stage.values()) if metered else None,
        kinds=tuple(sorted({str(stage.get("energy_kind")) for stage in metered})),
        unmetered=len(unique) - len(metered),
        seconds=sum(stage.get("seconds", 0.0) for stage in unique),
        by_stage_wh=by_stage,
    )
