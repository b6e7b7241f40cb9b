"""What the page's script works on: the run's table with the words and formats of its columns, and what belongs to it.

Everything is from the declarations (columns.py) and the run; nothing here decides how a column is called or compared.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from greenprune.columns import CONTAMINATED, Column, column, expanded, heading, parts_of, pattern_of, phrase, those_of
from greenprune.comparability import comparable
from greenprune.config import METHODS
from greenprune.energy.costs import search_cost
from greenprune.energy.units import JOULES_PER_WH
from greenprune.errors import ConfigError
from greenprune.pareto import dense_row, front_probability, knee
from greenprune.report.layers import layer_statistics, layers_kept
from greenprune.report.looks import look_of
from greenprune.report.paired_tests import as_rows
from greenprune.report.progress import search_progress
from greenprune.report.run import ReportedRun
from greenprune.report.sections.trials import OF_ALL_TRIALS
from greenprune.report.uncertainty import error_bars, floor_of, standard_errors
from greenprune.results import is_missing
from greenprune.results.evidence import artifact_json

if TYPE_CHECKING:
    from pandas import DataFrame

CONFIG = "<section>.<key>"
UNSAID = ("error", "started")  # long texts, and what no view shows
MOST_HEALINGS = 40


def payload(run: ReportedRun) -> dict[str, Any]:
    """All of it, as JSON takes it; trials and columns are in the table's order, trials counted from 0."""
    trials = run.trials.reset_index(drop=True)
    front = [] if run.front is None else [run.trials.index.get_loc(index) for index in run.front.index]
    columns = _columns(trials)
    return {
        "labels": list(run.labels.values()),
        "objectives": list(run.objectives.items()),
        "columns": {name: _words(name) for name in columns},
        "trials": {name: [_plain(value) for value in trials[name].tolist()] for name in columns},
        "errors": _errors(trials, columns),
        "front": front,
        "dense": _dense(trials),
        "knee": _knee(run),
        "probability": _probability(run, trials),
        "looks": _looks(trials),
        "contaminated": CONTAMINATED,
        "first_columns": [name for name in expanded(OF_ALL_TRIALS, columns) if name in columns],
        "commands": _commands(run),
        "tests": _tests(run, trials),
        "tasks": {"Accuracy": those_of("<task>_acc", columns), "Energy in Wh": those_of("<task>_wh", columns)},
        "task_names": {name: parts_of(name)["task"] for name in columns if "task" in parts_of(name)},
        "qualities": ["accuracy", *those_of("<task>_acc", columns), *those_of("<text>_ppl@<length>", columns)],
        "floors": {name: floor for name in columns if (floor := floor_of(trials, name)) is not None},
        "layers": _layers(run, front),
        "healing": _healing(run),
        "progress": [vars(point) for point in search_progress(run.trials, run.results, run.objectives)],
        "stages": _stages(run, trials),
    }


def as_json(content: Any) -> str:
    """JSON to stand inside a script element of a page: without anything that could end it, or open another."""
    text = json.dumps(_finite(content), allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


# ------------------------------------------------------------------------------------------------------ the table


def _columns(trials: DataFrame) -> list[str]:
    """Those that any trial has; of the configuration only what differs."""
    return [name for name in trials.columns if name not in UNSAID and _is_told(trials, name)]


def _is_told(trials: DataFrame, name: str) -> bool:
    if pattern_of(name) == CONFIG:
        return name == "prune.method" or trials[name].nunique(dropna=False) > 1
    return bool(trials[name].notna().any())


def _words(name: str) -> dict[str, Any]:
    declared = column(name) or Column("")
    is_config = pattern_of(name) == CONFIG
    return {
        "title": name if is_config else heading(name),
        "phrase": name if is_config else phrase(name),
        "meaning": declared.meaning,
        "unit": "" if is_config else declared.unit,
        "better": declared.better,
        "text": declared.text,
        "config": is_config,
        "kind": declared.kind,
        "must_agree": list(declared.must_agree),
        "shown": declared.shown,
        "scale": declared.scale,
    }


def _errors(trials: DataFrame, columns: list[str]) -> dict[str, list[float]]:
    """Half-widths of bars by column, as the picture draws them."""
    found = {}
    for name in columns:
        declared = column(name)
        if name == "accuracy" or (declared and (declared.ci95_ratio or declared.stderr)):
            widths = error_bars(trials, name)
            if widths is not None:
                found[name] = [_plain(float(width)) or 0 for width in widths]
    return found


def _dense(trials: DataFrame) -> int | None:
    try:
        return int(dense_row(trials).name)
    except ConfigError:
        return None


def _knee(run: ReportedRun) -> int | None:
    best = None if run.front is None else knee(run.front, run.objectives)
    return None if best is None else int(run.trials.index.get_loc(best.name))


def _probability(run: ReportedRun, trials: DataFrame) -> list[float | None] | None:
    if run.front is None or run.front.empty:
        return None
    rows = comparable(trials, run.objectives)
    errors = {name: standard_errors(rows, name) for name in run.objectives}
    shares = front_probability(trials, run.objectives, errors)
    return [_plain(shares.get(i)) for i in trials.index]


def _looks(trials: DataFrame) -> dict[str, Any]:
    methods = set(trials["prune.method"].dropna()) if "prune.method" in trials else set()
    looks = {name: look_of(name) for name in [*METHODS, *sorted(methods - set(METHODS))] if name in methods | {"none"}}
    return {name: {"colour": look.colour, "path": look.path} for name, look in looks.items()}


def _commands(run: ReportedRun) -> dict[str, str]:
    """As a shell takes them; the page fills in TRIAL, A and B with trials' ids."""
    folder = shlex.quote(run.path)
    return {"export": f"greenprune export {folder} TRIAL out/", "compare": f"greenprune compare {folder} A B"}


# -------------------------------------------------------------------------------------------------- what belongs to it


def _tests(run: ReportedRun, trials: DataFrame) -> dict[str, Any]:
    """By "a,b": paired tests of trial a against trial b."""
    place = {trial_id: i for i, trial_id in enumerate(trials["trial_id"])}
    front = [] if run.front is None else list(run.front["trial_id"])
    return {f"{place[a]},{place[b]}": as_rows(found) for (a, b), found in run.tests.chosen(front).items()}


def _layers(run: ReportedRun, front: list[int]) -> dict[str, Any]:
    """The front's trials come first."""
    names = dict(zip(run.trials["trial_id"], run.labels.values(), strict=True))
    models = {result.trial_id: str(result.config.get("model", {}).get("id")) for result in run.results}
    chosen = set(run.trials["trial_id"].iloc[front])
    ordered = sorted(run.results, key=lambda result: result.trial_id not in chosen)
    kept = layers_kept(run.storage, ordered)
    blocks: dict[tuple[str, int, int], list[str]] = {}
    for one in kept:
        if one.block:
            blocks.setdefault((models[one.trial_id], *one.block), []).append(names[one.trial_id])
    statistics = [
        {
            "model": one.model,
            "angular": None if one.angular is None else one.angular.tolist(),
            "influence": None if one.influence is None else one.influence.tolist(),
        }
        for one in layer_statistics(run.storage, run.results)
    ]
    return {
        "statistics": statistics,
        "blocks": [
            {"model": model, "start": start, "size": size, "label": ", ".join(labels[:4])}
            for (model, start, size), labels in blocks.items()
        ],
        "kept": [vars(one) | {"label": names[one.trial_id]} for one in kept],
    }


def _healing(run: ReportedRun) -> list[dict[str, Any]]:
    """Validation losses by step, of the first MOST_HEALINGS trials that healed."""
    names = dict(zip(run.trials["trial_id"], run.labels.values(), strict=True))
    found: list[dict[str, Any]] = []
    for result in run.results:
        history = artifact_json(run.storage, result, "heal", "history.json") if len(found) < MOST_HEALINGS else None
        if history:
            method = str(result.config.get("prune", {}).get("method"))
            points = [[each["step"], each["loss"]] for each in history["validation"]]
            found.append(
                {"label": names[result.trial_id], "method": method, "colour": look_of(method).colour, "points": points}
            )
    return found


def _stages(run: ReportedRun, trials: DataFrame) -> dict[str, Any]:
    """Energies of the search: in all, by stage, and by trial what it ran itself and what its model's making took."""
    cost = search_cost(stage for result in run.results for stage in result.stages)
    results = {result.trial_id: result for result in run.results}
    own, making = [], []
    for i, trial_id in enumerate(trials["trial_id"]):
        stages = results[trial_id].stages if trial_id in results else []
        own.append(sum((s.get("energy_j") or 0) for s in stages if not s.get("reused")) / JOULES_PER_WH)
        spent = [trials[name][i] for name in those_of("<stage>_energy_wh", trials.columns)]
        making.append(math.fsum(value for value in spent if not is_missing(value)) if spent else None)
    return {
        "total_wh": cost.energy_wh,
        "kinds": list(cost.kinds),
        "by_stage": dict(cost.by_stage_wh),
        "by_trial": own,
        "making_wh": making,
    }


def _plain(value: Any) -> Any:
    """A cell as JSON takes it; floats to nine digits."""
    if value is None or is_missing(value):
        return None
    if hasattr(value, "item"):
        value = value.item()
    return float(f"{value:.9g}") if isinstance(value, float) and math.isfinite(value) else value


def _finite(content: Any) -> Any:
    """The same with null for every number that isn't finite."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {str(key): _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return content
