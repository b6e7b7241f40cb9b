"""Whatever is written into an experiment file is refused in words or runs; whatever a table holds, its front is right.

Hypothesis changes the repo's own experiments at random, as mappings and as text, and makes tables of trials. A failure
is printed with the smallest input that shows it; it gets a small test of its own where its mend is.
"""

from __future__ import annotations

import copy
import json
import math
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from paths import ROOT
from ray.tune.search import Searcher

from greenprune.columns import COLUMNS
from greenprune.comparability import compared_objectives
from greenprune.config import known_keys
from greenprune.errors import ConfigError
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
            section[leaf] = draw(VALUES)
        elif change == "nest":
            section[leaf] = {leaf: section[leaf]}
        elif change == "list":
            section[leaf] = [section[leaf]]
        elif isinstance(section, dict):
            section[draw(st.text(max_size=6) | st.sampled_from(KEYS))] = draw(VALUES)
    return data


KEYS = sorted(
    known_keys() | {f"sweep.{name}" for name in DATA["demo"]["sweep"]} | {"name", "sweep", "sweep.num_trials"}
)


def check(experiment: Experiment) -> None:
    """What was accepted is a valid run: it is written and read, and its search suggests trials."""
    assert parse_experiment(yaml.safe_load(yaml.safe_dump(experiment.to_dict()))) == experiment
    assert experiment.trial().trial_id()
    if experiment.sweep:
        search = SweepSearch(experiment)
        for number in range(3):
            suggestion = search.suggest(f"t{number}")
            if suggestion == Searcher.FINISHED:
                break
            assert suggestion["number"] == number


def is_clear(problem: ConfigError) -> bool:
    return bool(str(problem).strip()) and "Traceback" not in str(problem)


@TRIED_200_TIMES
@given(mutations())
def test_a_changed_experiment_is_refused_in_words_or_runs(data):
    try:
        experiment = parse_experiment(data, source="mutated")
    except ConfigError as problem:
        assert is_clear(problem)
    else:
        check(experiment)


SCALARS = st.sampled_from(
    "1 -1 0 .5 1e3 1e999 nan .nan .inf -.inf ~ null yes no off 0o17 0x1F 1:30 2001-13-45 2001-01-01 ! !!int !!int:x &a *a "
    "&a[*a] [ ] { } [} {a {a: b: c} - ? | > % @ ` \" ' # : , é 🦙 \ufeff \x85 !!python/object:os.system !!binary ==".split()
    + [
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
        "\t",
    ]
)


@TRIED_200_TIMES
@given(
    st.sampled_from(sorted(DATA)),
    st.lists(
        st.tuples(st.sampled_from(KEYS) | st.text(max_size=9), SCALARS | st.text(max_size=9)), min_size=1, max_size=3
    ),
)
def test_overrides_are_refused_in_words_or_run(name, overrides):
    try:
        experiment = load_experiment(
            ROOT / "experiments" / f"{name}.yaml", [f"{key}={value}" for key, value in overrides]
        )
    except ConfigError as problem:
        assert is_clear(problem)
    else:
        check(experiment)


@pytest.fixture(scope="module")
def changed_file(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("changed") / "changed.yaml"


@TRIED_200_TIMES
@given(st.sampled_from(FILES), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 9), SCALARS), min_size=1, max_size=3))
def test_a_changed_file_is_refused_in_words_or_runs(changed_file, path, changes):
    text = path.read_text()
    for where, gone, put in changes:
        at = int(where * len(text))
        text = text[:at] + put + text[at + gone :]
    changed_file.write_text(text)
    try:
        experiment = load_experiment(changed_file)
    except ConfigError as problem:
        assert is_clear(problem)
    else:
        check(experiment)
