"""Commands that say what a sweep needs, and bring one to a cluster."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

commands = typer.Typer()
ExperimentFile = Annotated[Path, typer.Argument(metavar="EXPERIMENT.yaml", show_default=False)]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="key=value …", show_default=False)]


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else 180)  # a log file has no width to fit


@commands.command()
def plan(
    experiment: ExperimentFile,
    overrides: Overrides = None,
    gpus: Annotated[int | None, typer.Option(help="a stage's GPUs; default: this machine's")] = None,
    gpu_gb: Annotated[float | None, typer.Option(help="memory of one of them in GiB")] = None,
    cpu_gb: Annotated[float | None, typer.Option(help="memory of a node in GiB, for stages without a GPU")] = None,
) -> None:
    """Predict from shapes what each stage needs of memory; the exit code is 1 where one doesn't fit."""
    from greenprune.experiment import load_experiment
    from greenprune.memory.prediction import Devices, devices_here
    from greenprune.plan import plan_stages

    here = devices_here()
    bytes_of = [None if size is None else int(size * 2**30) for size in (gpu_gb, cpu_gb)]
    devices = Devices(here.gpus if gpus is None else gpus, bytes_of[0] or here.gpu_bytes, bytes_of[1] or here.cpu_bytes)
    parts = ("weights", "activations", "statistics", "gradients", "total", "there is")
    table = Table("stage", "on", *(Column(f"{part}, GiB", justify="right") for part in parts), "of", "fits")
    found = plan_stages(load_experiment(experiment, overrides or []), devices)
    for row in found:
        sizes = [*(getattr(row.memory, part) for part in parts[:-1]), row.there_is]
        cells = [row.stage, row.on, *(f"{size / 2**30:.2f}" for size in sizes), row.trial]
        table.add_row(*cells, "yes" if row.fits else "no")
    _console().print(table)
    for row in found:
        if not row.fits:
            _console().print(row.refusal(), highlight=False)
    if not all(row.fits for row in found):
        raise typer.Exit(1)


@commands.command()
def submit(
    experiment: ExperimentFile,
    overrides: Overrides = None,
    cluster: Annotated[Path, typer.Option(help="the file that `ray up` was given")] = Path("cluster.yaml"),
    watch: Annotated[bool, typer.Option("--watch", help="show the sweep's log until it ends")] = False,
    fetch: Annotated[bool, typer.Option("--fetch", help="copy the run's table, report and trials here")] = False,
    into: Annotated[Path, typer.Option(help="where --fetch puts the run's folder")] = Path("runs"),
) -> None:
    """Run a sweep on a cluster that `ray up` brought up, as a job of Ray's. Repeated, from any machine, it goes on.

    With --watch the exit code is 1 where the sweep failed, 130 after Ctrl-C, which leaves the sweep running.
    """
    from greenprune.cluster.launcher import Launcher
    from greenprune.experiment import load_experiment
    from greenprune.sweep.submit import Job

    shown = Console(stderr=True, soft_wrap=True, highlight=False)
    launcher = Launcher(cluster, show=lambda line: shown.print(escape(line)))
    job = Job(load_experiment(experiment, overrides or []), launcher)
    launcher.note_head()
    started = job.start()
    _console().print(f"job {job.id} {'is started' if started else 'runs already'}", highlight=False)
    try:
        state = job.follow() if watch else job.state()
    except KeyboardInterrupt:
        _console().print(f"it goes on; `ray exec {cluster} 'ray job stop {job.id}'` stops it", highlight=False)
        raise typer.Exit(130) from None
    _console().print(f"job {job.id}: {state}", highlight=False)
    if fetch:
        _console().print(f"fetched: {job.fetch(into)}", highlight=False)
    if watch and state != "succeeded":
        raise typer.Exit(1)
