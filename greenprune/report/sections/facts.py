"""What the run is of: model, machine, days, energy; and what its front is made of."""

from __future__ import annotations

from typing import Any

from greenprune.report.cards import card_to_card
from greenprune.report.run import ReportedRun, distinct
from greenprune.results import run_cost


def gather_facts(run: ReportedRun) -> dict[str, Any]:
    trials = run.trials
    days = sorted({str(start)[:10] for start in trials["started"].dropna() if start})
    found = {
        "model": distinct(trials, "model.id"),
        "machine": distinct(trials, "machine"),
        "host": distinct(trials, "hostname"),
        "date": [" to ".join(dict.fromkeys([days[0], days[-1]]))] if days else [],
        "energy source": distinct(trials, "energy_source"),
        "energy of the search": [run_cost(run.path).describe()],
        "objectives": [f"{metric} ({direction})" for metric, direction in run.objectives.items()],
    }
    facts = {name: ", ".join(values) or "not recorded" for name, values in found.items()}
    if spread := card_to_card(trials):
        facts["card to card"] = "; ".join(spread)
    return {"facts": facts}
