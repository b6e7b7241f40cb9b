"""A run as one HTML file that needs no network: the front, drawn and listed, every trial, every failure.

`write_report("runs/demo")` writes runs/demo/report.html. run.py reads the run, sections/ holds what the page consists
of, page.py puts it together; tables.py and front_figure.py are what sections show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from greenprune.columns import Direction
from greenprune.report import plots
from greenprune.report.front_figure import save_front
from greenprune.report.page import render
from greenprune.report.run import read_run
from greenprune.storage import write_atomically

__all__ = ["plots", "save_front", "write_report"]


def write_report(
    run: str | Path, objectives: Mapping[str, Direction] | None = None, beside: Sequence[str | Path] = ()
) -> Path:
    """Write the run's report.html and give its path; `objectives` default to the sweep's own.

    beside: other runs that are compared with it on the page, each by the ratio to its own dense model.

    Raises ConfigError where there are no trials or the given objectives have no front, and GreenpruneError
    where matplotlib or jinja2 is missing. Objectives taken from the sweep that have no front (several
    machines, nothing measured) leave a report without one, which says why.
    """
    reported = read_run(run, objectives, beside)
    path = reported.folder / "report.html"
    write_atomically(path, render(reported))
    reported.storage.push(f"{reported.name}/report.html")
    return path
