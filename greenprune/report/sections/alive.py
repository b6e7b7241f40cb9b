"""The sections that only the page's script can show; without it they name the command that tells the same."""

from __future__ import annotations

import shlex
from typing import Any

from greenprune.comparability import finished
from greenprune.report.run import ReportedRun


def gather_budgets(run: ReportedRun) -> dict[str, Any] | None:
    return _part(run, "budgets", "pareto {} --min-accuracy 0.5")


def gather_compare(run: ReportedRun) -> dict[str, Any] | None:
    return _part(run, "compare", "compare {} TRIAL dense")


def gather_layers(run: ReportedRun) -> dict[str, Any] | None:
    return _part(run, "layers", "plot {} layers layers.png")


def gather_curves(run: ReportedRun) -> dict[str, Any] | None:
    return _part(run, "curves", "plot {} curves curves.png")


def gather_energy(run: ReportedRun) -> dict[str, Any] | None:
    return _part(run, "energy", "plot {} energy energy.png")


def _part(run: ReportedRun, name: str, command: str) -> dict[str, Any] | None:
    """None where no trial finished: then there is nothing to show."""
    if finished(run.trials).empty:
        return None
    return {"part": name, "command": "greenprune " + command.format(shlex.quote(run.path))}
