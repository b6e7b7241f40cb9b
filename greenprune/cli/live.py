"""Commands that look at a run while it runs."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live

from greenprune.cli.pictures import OneRun

commands = typer.Typer()


@commands.command()
def watch(
    run: OneRun,
    html: Annotated[bool, typer.Option("--html", help="write the report anew as trials end")] = False,
    once: Annotated[bool, typer.Option("--once", help="look once")] = False,
) -> None:
    """Show what a run does: what runs, the front so far, time and kWh left; from any terminal that sees its folder."""
    from greenprune.sweep.watch import Seen, look, view, watch_run

    console, reported = Console(width=None if sys.stdout.isatty() else 180), [-1]

    def report(seen: Seen) -> None:
        if html and seen.results and len(seen.results) != reported[0]:
            from greenprune.report import write_report

            reported[0] = len(seen.results)
            write_report(run)

    if once:
        seen = look(run)
        report(seen)
        console.print(view(seen))
        return
    with Live(console=console, auto_refresh=False) as live:

        def show(seen: Seen) -> None:
            report(seen)
            live.update(view(seen), refresh=True)

        with suppress(KeyboardInterrupt):  # the run goes on
            watch_run(run, show)


@commands.command()
def logs(
    run: OneRun,
    trial: Annotated[str, typer.Argument(metavar="TRIAL", help="a trial's id, or the beginning of it")],
    follow: Annotated[bool, typer.Option("-f", "--follow", help="as it grows, until the trial has ended")] = False,
) -> None:
    """Print a trial's log."""
    from greenprune.sweep.watch import log_of

    with suppress(KeyboardInterrupt):  # the trial goes on
        for line in log_of(run, trial, follow):
            print(line, end="", flush=True)
