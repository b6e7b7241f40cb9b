"""Commands that show runs: pages, pictures, tables of papers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

commands = typer.Typer()
Runs = Annotated[list[str], typer.Argument(metavar="RUN …", help="folders of runs, e.g. runs/demo", show_default=False)]
OneRun = Annotated[str, typer.Argument(metavar="RUN", help="a run's folder, e.g. runs/demo", show_default=False)]


@commands.command()
def report(runs: Runs) -> None:
    """Write RUN/report.html, one file that needs no network; other runs are compared with the first on its page."""
    from greenprune.report import write_report

    print(write_report(runs[0], beside=runs[1:]))


@commands.command()
def plot(
    runs: Runs,
    kind: Annotated[str, typer.Argument(help="front, layers, radar, curves, energy; of several runs: family")],
    out: Annotated[Path, typer.Argument(help="its suffix tells the format: .png, .svg or .pdf")],
) -> None:
    """Draw a picture of a run for a paper."""
    from greenprune.report.plots import save_plot

    print(save_plot(runs, kind, out))


@commands.command()
def table(
    run: OneRun,
    style: Annotated[
        str, typer.Option(help="greenpruning, llm_pruner or wanda: whose rows and columns")
    ] = "greenpruning",
    layout: Annotated[Literal["markdown", "latex", "csv"], typer.Option("--format")] = "markdown",
    beside: Annotated[
        str | None, typer.Option(help="published values and the differences to them: paper:llm_pruner")
    ] = None,
) -> None:
    """Print a run as a paper prints its own: tasks in its order, mean, ratio to dense."""
    from greenprune.report.paper_tables import paper_table

    print(paper_table(run, style, layout, beside.removeprefix("paper:") if beside else None), end="")
