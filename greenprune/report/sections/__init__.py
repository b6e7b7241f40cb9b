"""The sections of a report, in their order.

A section is a file here: a function that gathers what it shows, and a template of the same name that shows it. To add
one, write both, enter them below, and add a row to tests/report/test_sections.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from greenprune.report.run import ReportedRun
from greenprune.report.sections.again import gather_commands
from greenprune.report.sections.alive import gather_budgets, gather_compare, gather_curves, gather_energy, gather_layers
from greenprune.report.sections.cautions import gather_cautions
from greenprune.report.sections.environment import gather_environment
from greenprune.report.sections.facts import gather_facts
from greenprune.report.sections.failed import gather_failed
from greenprune.report.sections.family import gather_family
from greenprune.report.sections.front import gather_front
from greenprune.report.sections.tasks import gather_tasks
from greenprune.report.sections.trials import gather_trials


@dataclass(frozen=True)
class PagePart:
    """title: its heading; None for none. gather: the values of the template's names; None leaves the section out.
    template: the file beside this one that shows them.
    """

    title: str | None
    gather: Callable[[ReportedRun], dict[str, Any] | None]
    template: str


SECTIONS: dict[str, PagePart] = {
    # What decides how the numbers may be read comes before any number.
    "cautions": PagePart(None, gather_cautions, "cautions.html.j2"),
    "facts": PagePart(None, gather_facts, "facts.html.j2"),
    "family": PagePart("Runs beside each other", gather_family, "family.html.j2"),
    "front": PagePart("The front", gather_front, "front.html.j2"),
    "budgets": PagePart("Within budgets", gather_budgets, "alive.html.j2"),
    "compare": PagePart("Two trials", gather_compare, "alive.html.j2"),
    "tasks": PagePart("By task", gather_tasks, "tasks.html.j2"),
    "layers": PagePart("By layer", gather_layers, "alive.html.j2"),
    "curves": PagePart("Curves", gather_curves, "alive.html.j2"),
    "energy": PagePart("Where the energy went", gather_energy, "alive.html.j2"),
    "trials": PagePart("All trials", gather_trials, "trials.html.j2"),
    "failed": PagePart("Failed trials", gather_failed, "failed.html.j2"),
    "again": PagePart("Run a row again", gather_commands, "again.html.j2"),
    "environment": PagePart("Environment", gather_environment, "environment.html.j2"),
}
