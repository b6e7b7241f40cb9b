"""Whatever is written into an experiment file is refused in words or runs; whatever a table holds, its front is right.

Hypothesis changes the repo's own experiments at random, as mappings and as text, and makes tables of trials. A failure
is printed with the smallest input that shows it; it gets a small test of its own where its mend is.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paths import ROOT
from ray.tune.search import Searcher

from greenprune.comparability import compared_objectives
from greenprune.config import known_keys
from greenprune.errors import ConfigError, GreenpruneError
from greenprune.experiment import Experiment, load_experiment, parse_experiment
from greenprune.pareto import hypervolume, knee, pareto_front
from greenprune.sweep.search import SweepSearch

FILES = sorted((ROOT / "experiments").glob("*.yaml"))
DATA = {path.stem: yaml.safe_load(path.read_text()) for path in FILES}
TRIED_200_TIMES = settings(
    max_examples=200, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)

ODD = st.sampled_from(
    [
        None, True, False, 0, 1, -1, 2, 10**9, 10**30, -(10**400), 0.5, -0.0, 1e-320, 1e308, -1e308, math.nan, math.inf,
        -math.inf, "", " ", "none", "auto", "2:4", "a/b/c", "../x", "/", "~", "s3://", "pypi:", "pypi:nothing", "\x00",
        "é🦙\u202e", "x" * 300, "1e3", "@", "@512", "a@b@3", [], {}, [[]], [None], {"": 1}, {1: 2}, {None: None},
        {"a": {"b": {"c": 1}}}, {"choice": []}, {"choice": [1, 1.0, True]}, {"int": [3, 1]}, {"int": [0, 10**12]},
        {"float": [0, 1e-320], "step": 1e-320}, {"float": [-1e308, 1e308], "step": 1}, {"method": "none"},
        {"method": []}, {"method": {}}, {"method": "sequence", "steps": []}, b"bytes", ["angular", "bi"] * 50,
    ]
)  # fmt: skip
VALUES = ODD | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=4,
)


def places(data: Any, path: tuple = ()) -> list[tuple]:
    """The paths of all that a nested mapping holds."""
    inside = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [place for key, value in inside for place in [(*path, key), *places(value, (*path, key))]]


@st.composite
def mutations(draw: Any) -> dict[str, Any]:
    """One of the repo's experiments with one to three changes."""
    data = copy.deepcopy(DATA[draw(st.sampled_from(sorted(DATA)))])
    for _ in range(draw(st.integers(1, 3))):
        found = places(data)
        if not found:
            break
        *parents, leaf = draw(st.sampled_from(found))
        section = data
        for parent in parents:
            section = section[parent]
        change = draw(st.sampled_from(["drop", "rename", "retype", "retype", "nest", "list", "add"]))
        if change in ("drop", "rename") and isinstance(section, dict):
            value = section.pop(leaf)
            if change == "rename":
                section[draw(st.sampled_from([f"{leaf}s", str(leaf).upper(), "", 7, None, "prune.method"]))] = value
        elif change == "retype":
            section[leaf] = copy.deepcopy(draw(VALUES))
        elif change == "nest":
            section[leaf] = {leaf: section[leaf]}
        elif change == "list":
            section[leaf] = [section[leaf]]
        elif isinstance(section, dict):
            section[draw(st.text(max_size=6) | st.sampled_from(KEYS))] = copy.deepcopy(draw(VALUES))
    return data


KEYS = sorted(
    known_keys() | {f"sweep.{name}" for name in DATA["demo"]["sweep"]} | {"name", "sweep", "sweep.num_trials"}
)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def check(experiment: Experiment, checkpoint: Path) -> None:
    """What was accepted is a valid run: it is written and read, and its search suggests trials, here of a checkpoint
    whose tokenizer needs no network.
    """
    assert parse_experiment(yaml.safe_load(yaml.safe_dump(experiment.to_dict()))) == experiment
    assert experiment.trial().trial_id()
    if experiment.sweep:
        model = experiment.model.model_copy(update={"id": str(checkpoint), "revision": None})
        search = SweepSearch(experiment.model_copy(update={"model": model}))
        for number in range(3):
            suggestion = search.suggest(f"t{number}")
            if suggestion == Searcher.FINISHED:
                break
            assert suggestion["number"] == number


def refused_in_words_or_runs(read: Callable[[], Experiment], checkpoint: Path) -> None:
    try:
        check(read(), checkpoint)
    except GreenpruneError as problem:
        said = str(problem)
    else:
        return
    assert said.strip()
    assert len(said) < 20_000


@TRIED_200_TIMES
@given(mutations())
def test_a_changed_experiment_is_refused_in_words_or_runs(tiny_checkpoint, data):
    refused_in_words_or_runs(lambda: parse_experiment(data, source="mutated"), tiny_checkpoint)


ODD_WORDS = (
    "1 -1 0 .5 1e3 1e999 nan .nan .inf -.inf ~ null yes no off 0o17 0x1F 1:30 2001-13-45 2001-01-01 ! !!int !!int:x &a "
    "*a &a[*a] [ ] { } [} {a {a: b: c} - ? | > % @ ` \" ' # : , é 🦙 \ufeff \x85 !!python/object:os.system !!binary =="
)
ODD_LINES = [
    "",
    " ",
    "9" * 5000,
    "[" * 400,
    "!!timestamp x",
    "!!float x",
    "{? [a] : b}",
    "<<: 1",
    "{<<: 1}",
    "!!set {a}",
    "&a [*a]",
]
SCALARS = st.sampled_from([*ODD_WORDS.split(), *ODD_LINES, "\t"])


@TRIED_200_TIMES
@given(
    st.sampled_from(sorted(DATA)),
    st.lists(
        st.tuples(st.sampled_from(KEYS) | st.text(max_size=9), SCALARS | st.text(max_size=9)), min_size=1, max_size=3
    ),
)
def test_overrides_are_refused_in_words_or_run(tiny_checkpoint, name, overrides):
    path = ROOT / "experiments" / f"{name}.yaml"
    refused_in_words_or_runs(
        lambda: load_experiment(path, [f"{key}={value}" for key, value in overrides]), tiny_checkpoint
    )


@pytest.fixture(scope="module")
def changed_file(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("changed") / "changed.yaml"


@TRIED_200_TIMES
@given(st.sampled_from(FILES), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 9), SCALARS), min_size=1, max_size=3))
def test_a_changed_file_is_refused_in_words_or_runs(tiny_checkpoint, changed_file, path, changes):
    text = path.read_text()
    for where, gone, put in changes:
        at = int(where * len(text))
        text = text[:at] + put + text[at + gone :]
    changed_file.write_text(text)
    refused_in_words_or_runs(lambda: load_experiment(changed_file), tiny_checkpoint)


# ------------------------------------------------------------------------------------------- tables of trials

METRICS = ("accuracy", "energy_j_per_token", "energy_ratio", "decode_latency_s", "held_ppl@16", "own_metric")
NUMBERS = st.sampled_from([0.0, 0.5, 1.0, 2.0, None, math.nan, math.inf, -math.inf]) | st.floats(-10, 10)
TEXTS = {
    "status": ["ok", "ok", "ok", "failed", None],
    "energy_kind": ["measured", "estimated", "contaminated", None],
    "energy_scope": ["device", "package", None],
    "machine": ["a", "b", None],
    "prune.method": ["none", "bi", None],
}
DIRECTIONS = st.sampled_from(["max", "min"])


@st.composite
def tables(draw: Any, texts: dict[str, list] = TEXTS) -> pd.DataFrame:
    """Trials with some of the columns, gaps and ties among them."""
    size = draw(st.integers(0, 8))
    columns = {"trial_id": [f"t{i}" for i in range(size)]}
    for name in draw(st.lists(st.sampled_from(METRICS), unique=True)):
        numbers = draw(st.lists(NUMBERS, min_size=size, max_size=size))
        columns[name] = pd.Series(numbers, dtype=draw(st.sampled_from(["float64", "Float64"])))
    for name in draw(st.lists(st.sampled_from(sorted(texts)), unique=True)) if texts else ():
        columns[name] = draw(st.lists(st.sampled_from(texts[name]), min_size=size, max_size=size))
    return pd.DataFrame(columns)


OBJECTIVES = st.dictionaries(st.sampled_from([*METRICS, "trial_id", "nothing"]), DIRECTIONS, max_size=3)


@TRIED_200_TIMES
@given(tables(), OBJECTIVES, st.booleans(), st.randoms(use_true_random=False))
def test_what_may_be_compared_does_not_depend_on_the_order(trials, objectives, mixed, shuffler):
    """Rows and objectives in another order: the same rows on the front, or the same refusal; never a traceback."""
    order = list(range(len(trials)))
    shuffler.shuffle(order)
    turned = dict(reversed(objectives.items()))
    assert answer(trials, objectives, mixed) == answer(trials.iloc[order], turned, mixed)


def answer(trials: pd.DataFrame, objectives: dict, mixed: bool) -> Any:
    try:
        front = pareto_front(trials, objectives, mixed)
        compared = compared_objectives(trials, objectives, mixed)
        hypervolume(trials, objectives, mixed=mixed)
        knee(front, compared)
    except ConfigError:
        return "refused"
    return sorted(front["trial_id"])


@TRIED_200_TIMES
@given(tables(texts={}), st.dictionaries(st.sampled_from(METRICS), DIRECTIONS, min_size=1, max_size=3))
def test_the_front_is_what_its_definition_says(trials, objectives):
    """No row of the front is dominated; every other is, or isn't complete. It begins with the best."""
    if not set(objectives) <= set(trials.columns):
        return
    good = [row_goodness(row, objectives) for _, row in trials.iterrows()]
    complete = [values for values in good if values is not None]
    wanted = {
        i for i, own in enumerate(good) if own is not None and not any(dominates(other, own) for other in complete)
    }
    front = pareto_front(trials, objectives)
    assert set(front.index) == wanted
    firsts = [good[i][0] for i in front.index]
    assert all(before >= after for before, after in pairwise(firsts))


def row_goodness(row: pd.Series, objectives: dict[str, str]) -> list[float] | None:
    """A row's objectives, larger is better; None where one isn't a finite number."""
    values = [row[name] for name in objectives]
    if any(pd.isna(value) or not math.isfinite(value) for value in values):
        return None
    return [float(v) if way == "max" else -float(v) for v, way in zip(values, objectives.values(), strict=True)]


def dominates(a: list[float], b: list[float]) -> bool:
    return all(x >= y for x, y in zip(a, b, strict=True)) and a != b
