"""The command line: thin commands over the Python API. Errors a user can mend are one message, exit code 2."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from greenprune.cli import launching, live, pictures
from greenprune.cli.launching import ExperimentFile, Overrides
from greenprune.columns import DEFAULT_OBJECTIVES
from greenprune.errors import GreenpruneError
from greenprune.logs import logging_to

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Find the ways of pruning a language model that nothing else beats on both accuracy and energy.",
)
app.add_typer(pictures.commands)
app.add_typer(live.commands)
app.add_typer(launching.commands)
console = Console(width=None if sys.stdout.isatty() else 180)  # a log file has no width to fit

DEMO = Path(__file__).parents[2] / "experiments" / "demo.yaml"  # of a checkout
TRIAL = "a trial's id, the beginning of it, its number, or dense"
Fresh = Annotated[bool, typer.Option("--fresh", help="start anew; the old run is kept under a dated name")]
AnyVersions = Annotated[
    bool, typer.Option("--any-versions", help="use what other versions of torch or another library made")
]
RunFolder = Annotated[str, typer.Argument(metavar="RUN", help="a run's folder, e.g. runs/demo", show_default=False)]


def main() -> None:
    """Entry point: greenprune's own errors are printed without a traceback."""
    try:
        app()
    except GreenpruneError as problem:
        print(f"error: {problem}", file=sys.stderr)
        raise SystemExit(2) from None


@app.command()
def demo(storage: Annotated[str, typer.Option(help="where runs go")] = "runs", fresh: Fresh = False) -> None:
    """The whole thing on a small real model: sweep, front, report."""
    from greenprune.experiment import load_experiment

    _sweep(load_experiment(DEMO, [f"sweep.storage={storage}"]), fresh=fresh)


@app.command()
def trial(
    experiment: ExperimentFile,
    overrides: Overrides = None,
    storage: Annotated[str | None, typer.Option(help="where artifacts go; default: the file's, else runs")] = None,
    any_versions: AnyVersions = False,
) -> None:
    """Run one trial in this process and print its metrics."""
    from greenprune.experiment import load_experiment
    from greenprune.plan import refuse_too_large
    from greenprune.results import read_results, write_trials
    from greenprune.storage import Storage
    from greenprune.trial import run_trial, write_trial

    loaded = load_experiment(experiment, overrides or [])
    refuse_too_large(loaded.trial())
    place = Storage(storage or (loaded.sweep.storage if loaded.sweep else "runs"))
    with logging_to(logging.StreamHandler()):
        result = run_trial(loaded.trial(), place, any_versions=any_versions)
    folder = place.local / f"{loaded.name}-trials"
    path = write_trial(folder, result, place)
    write_trials(folder, read_results(folder))
    for name, value in result.metrics.items():
        console.print(f"{name:32} {value:.6g}" if isinstance(value, float) else f"{name:32} {value}", highlight=False)
    console.print(f"\n{path}")


@app.command()
def sweep(
    experiment: ExperimentFile,
    overrides: Overrides = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="a Ray cluster: auto, host:6379, or ray://host:10001 (needs ray[client]); local: this machine alone",
            envvar=["GREENPRUNE_ADDRESS", "RAY_ADDRESS"],
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="there must be a run to go on with")] = False,
    fresh: Fresh = False,
    any_versions: AnyVersions = False,
) -> None:
    """Run every trial of a sweep on Ray; failed trials become rows. Repeated, it goes on with the run.

    The exit code is 1 where every trial failed, 130 after Ctrl-C.
    """
    from greenprune.cluster.here import cluster_here
    from greenprune.experiment import load_experiment

    if address is None and (there := cluster_here()):
        said = f"this sweep runs on this machine alone; --address auto runs it on the Ray cluster at {there}"
        console.print(said, highlight=False)
    alone = address in (None, "local")
    _sweep(load_experiment(experiment, overrides or []), None if alone else address, resume, fresh, any_versions)


def _sweep(
    experiment: Any,
    address: str | None = None,
    resume: bool = False,
    fresh: bool = False,
    any_versions: bool = False,
) -> None:
    from greenprune.errors import ConfigError
    from greenprune.report.terminal import front_table
    from greenprune.results import run_cost
    from greenprune.sweep.driver import run_sweep

    with logging_to(logging.StreamHandler()):
        run = run_sweep(experiment, address=address, resume=resume, fresh=fresh, any_versions=any_versions)
    ok = run.trials[run.trials["status"] == "ok"] if len(run.trials) else run.trials
    if len(ok):
        try:
            console.print(front_table(run.trials, experiment.sweep.objectives))
        except ConfigError as problem:  # the trials are there all the same
            console.print(f"no front: {problem}", highlight=False)
        console.print(f"the search took {run_cost(run.folder).describe()}", highlight=False)
        _write_report(str(run.folder))
    for result in run.failed:
        console.print(f"failed: {result.trial_id}: {result.error}", highlight=False)
    console.print(f"{len(ok)} trials, {len(run.failed)} failed: {run.folder / 'trials.csv'}", highlight=False)
    if run.interrupted:
        console.print("interrupted: the same command goes on with it")
        raise typer.Exit(130)
    if not len(ok):
        raise typer.Exit(1)


def _write_report(run: str) -> None:
    from greenprune.report import write_report

    try:
        console.print(f"report: {write_report(run)}", highlight=False)
    except GreenpruneError as problem:
        console.print(f"no report: {problem}", highlight=False)


@app.command()
def trials(
    run: RunFolder,
    csv: Annotated[bool, typer.Option("--csv")] = False,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Print the table of a run's trials."""
    from greenprune.report.terminal import terminal_table
    from greenprune.results import load_trials, run_cost

    table = load_trials(run)
    if csv:
        print(table.to_csv(index=False), end="")
    elif as_json:
        print(table.to_json(orient="records", indent=1))
    else:
        console.print(terminal_table(table, "trials"))
        console.print(f"the search took {run_cost(run).describe()}", highlight=False)


@app.command()
def pareto(
    run: RunFolder,
    min_accuracy: Annotated[float | None, typer.Option(help="only trials of at least this accuracy")] = None,
    max_energy: Annotated[float | None, typer.Option(help="only trials of at most this energy_j_per_token")] = None,
    objectives: Annotated[str, typer.Option(help="name:max or name:min, joined by commas")] = ",".join(
        f"{name}:{direction}" for name, direction in DEFAULT_OBJECTIVES.items()
    ),
    mixed: Annotated[
        bool, typer.Option("--mixed", help="several kinds or machines: compare by the ratio to the dense model")
    ] = False,
) -> None:
    """Print the trials that no other trial beats on every objective."""
    from greenprune.comparability import finished
    from greenprune.errors import ConfigError
    from greenprune.pareto import parse_objectives
    from greenprune.report.terminal import front_table
    from greenprune.results import load_trials

    table = load_trials(run)
    if min_accuracy is not None:
        table = table[table["accuracy"] >= min_accuracy]
    if max_energy is not None:
        table = table[table["energy_j_per_token"] <= max_energy]
    aims = parse_objectives(objectives)
    if finished(table).empty:
        raise ConfigError(f"a front is of finished trials, got none that keeps to this in {run}; check the run")
    console.print(front_table(table, aims, mixed))


@app.command()
def compare(
    run: RunFolder,
    trial_a: Annotated[str, typer.Argument(metavar="A", help=TRIAL)],
    trial_b: Annotated[str, typer.Argument(metavar="B", help="the trial to compare it with")],
    task: Annotated[list[str] | None, typer.Option(help="only this task; may be repeated")] = None,
) -> None:
    """Say whether trial A answers better than trial B, by paired tests on the same documents."""
    from greenprune.paired import compare as compare_trials

    found = compare_trials(run, trial_a, trial_b, task)
    title = f"A: {found.trial_a}   B: {found.trial_b}"
    table = Table("task", "A", "B", "A − B", "95 % interval", "p", "verdict", "documents", title=title)
    for row in (*found.tasks, *([found.pooled] if found.pooled else [])):
        interval = "-" if row.low is None else f"{row.low:+.3f} … {row.high:+.3f}"
        scores = (f"{row.a:.3f}", f"{row.b:.3f}", f"{row.difference:+.3f}")
        table.add_row(row.task, *scores, interval, f"{row.p:.3g}", row.verdict, str(row.documents))
    console.print(table)
    if found.pooled:
        console.print("p of single tasks is raised for their number (Holm); the intervals aren't.")


@app.command()
def export(
    run: RunFolder,
    trial: Annotated[str, typer.Argument(metavar="TRIAL", help=TRIAL)],
    out: Path,
    format: Annotated[
        Literal["transformers", "gguf"], typer.Option(help="gguf: one file, for llama.cpp")
    ] = "transformers",
    type: Annotated[str | None, typer.Option(help="of gguf: f32, f16 (default), q8_0, q4_k_m")] = None,
) -> None:
    """Copy a trial's checkpoint, tokenizer and model card to OUT."""
    from greenprune.export import export as export_trial

    export_trial(run, trial, out, format, type)
    console.print(str(out), highlight=False)


@app.command()
def clean(
    storage: Annotated[str, typer.Argument(metavar="STORAGE", help="e.g. runs, or s3://bucket/runs")],
    yes: Annotated[bool, typer.Option("--yes", help="remove what is listed")] = False,
    days: Annotated[float, typer.Option(help="only what hasn't been written for so many days")] = 1.0,
    keep_checkpoints: Annotated[
        Literal["all", "front"], typer.Option(help="front: of other trials only the numbers stay")
    ] = "all",
) -> None:
    """List what no run of a storage needs, how big it is, and why; with --yes remove it."""
    from greenprune.clean import leftovers, remove
    from greenprune.storage import Storage

    place = Storage(storage)
    found = leftovers(place, days, keep_checkpoints)
    table = Table("folder", Column("MB", justify="right"), "why", title=f"greenprune clean {storage}")
    for leftover in found:
        table.add_row(escape(str(leftover.path)), f"{leftover.bytes / 1e6:,.1f}", leftover.why)
    console.print(table)
    if yes:
        remove(place, found)
    total = f"{len(found)} folders, {sum(leftover.bytes for leftover in found) / 1e6:,.1f} MB"
    console.print(f"removed: {total}" if yes else f"{total}; nothing is removed without --yes", highlight=False)


@app.command()
def columns() -> None:
    """List every column of the table of trials: unit, meaning, which way is better."""
    from greenprune.columns import COLUMNS

    table = Table("column", "unit", Column("meaning", overflow="fold"), "better", title="greenprune columns")
    for name, entry in COLUMNS.items():
        table.add_row(escape(name), entry.unit, escape(entry.meaning), entry.better or "")
    console.print(table)


@app.command()
def methods() -> None:
    """List the pruning methods: what goes, options (the default first), what they need, papers."""
    from greenprune.config.describe import HEADER, method_rows

    table = Table(*HEADER, title="greenprune methods", show_lines=True)
    for row in method_rows():
        table.add_row(*map(escape, row))
    console.print(table)


@app.command()
def schema() -> None:
    """Print the JSON schema of an experiment file, for editors."""
    from greenprune.experiment import json_schema

    print(json.dumps(json_schema(), indent=1))


@app.command()
def doctor() -> None:
    """Say what works on this machine, what doesn't, and how to mend it."""
    from greenprune.doctor import examine

    table = Table("part", "state", Column("what would mend it", overflow="fold"), title="greenprune doctor")
    for check in examine():
        table.add_row(check.part, check.state, check.remedy or "-")
    console.print(table)
