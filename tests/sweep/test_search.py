"""Which trials a sweep suggests: dense first, no configuration twice, conditions kept, state restorable."""

from __future__ import annotations

import time
import tracemalloc

import pytest
from ray.tune.search import Searcher

from greenprune.errors import ConfigError
from greenprune.experiment import parse_experiment
from greenprune.results import TrialResult
from greenprune.sweep.search import SweepSearch

SEARCHES = ["random", "tpe", "nsga2", "gp"]


def experiment(**sweep):
    space = {
        "prune.method": {"choice": ["angular", "bi"]},
        "prune.block_size": {"int": [1, 6]},
        "heal.method": {"choice": ["none", "lora"]},
        "heal.rank": {"choice": [4, 8], "when": {"heal.method": ["lora"]}},
    }
    return parse_experiment(
        {
            "model": {"id": "pypi:smollm2-135m"},
            "prune": {"method": "angular", "block_size": 1},
            "heal": {"method": "lora"},
            "benchmark": {"tasks": ["piqa"]},
            "sweep": {"space": space} | sweep,
        }
    )


def run_all(search: SweepSearch, start: int = 0, count: int = 1000) -> list[dict]:
    """Suggestions, each answered at once: small blocks are accurate, large ones save energy."""
    found = []
    for i in range(start, start + count):
        suggestion = search.suggest(f"t{i}")
        if suggestion == Searcher.FINISHED:
            break
        found.append(suggestion)
        block = suggestion["trial"]["prune"].get("block_size", 0)
        search.on_trial_complete(f"t{i}", {"accuracy": 1 - block / 10, "energy_j_per_token": 10.0 - block})
    return found


def test_grid_is_complete_dense_first_and_distinct():
    found = run_all(SweepSearch(experiment()))
    assert found[0]["trial"]["prune"] == {"method": "none"}
    assert [trial["number"] for trial in found] == list(range(len(found)))
    assert len(found) == 1 + 2 * 6 * (1 + 2)
    assert len({trial["trial_id"] for trial in found}) == len(found)


@pytest.mark.parametrize("name", SEARCHES)
def test_searches_give_distinct_trials_that_keep_the_conditions(name):
    found = run_all(SweepSearch(experiment(search=name, num_trials=10)))
    assert len(found) == 11
    assert found[0]["trial"]["prune"] == {"method": "none"}
    assert len({trial["trial_id"] for trial in found}) == 11
    for trial in found[1:]:
        assert ("rank" in trial["trial"]["heal"]) == (trial["trial"]["heal"]["method"] == "lora")


@pytest.mark.parametrize("name", SEARCHES)
def test_same_seed_same_trials(name):
    ids = [
        [trial["trial_id"] for trial in run_all(SweepSearch(experiment(search=name, num_trials=8, seed=seed)))]
        for seed in (3, 3, 4)
    ]
    assert ids[0] == ids[1]
    assert ids[0] != ids[2]


@pytest.mark.parametrize("name", SEARCHES)
def test_an_exhausted_space_ends_the_search(name):
    small = {"prune.method": {"choice": ["angular", "bi"]}, "prune.block_size": {"int": [1, 3]}}
    begun = time.monotonic()
    found = run_all(SweepSearch(experiment(search=name, num_trials=50, space=small)))
    assert len({trial["trial_id"] for trial in found}) == len(found) == 7
    assert time.monotonic() - begun < 30  # a Gaussian process thinks for half a second


def test_a_sampler_that_repeats_itself_is_helped_out():
    """Most combinations are refused, and one value is all but never drawn: every trial is found all the same."""
    space = {
        "prune.method": {"choice": ["angular"] * 30 + ["bi"]},
        "prune.block_size": {"choice": [1] * 30 + [2, 3]},
        "heal.dropout": {"choice": [0.0, 0.1]},
    }
    found = run_all(SweepSearch(experiment(search="random", num_trials=50, space=space)))
    assert len(found) == 1 + 2 * 3 * 2


def test_a_large_grid_is_walked():
    steps = {"float": [0.0, 0.9], "step": 0.0001}
    space = {
        "prune.block_size": {"int": [1, 20]},
        "heal.dropout": steps,
        "heal.learning_rate": {**steps, "float": [0.1, 1.0]},
    }
    space["heal.rank"] = {"choice": [4, 8], "when": {"prune.block_size": [1]}}
    tracemalloc.start()
    begun = time.monotonic()
    search = SweepSearch(experiment(space=space))
    first = [search.suggest(f"t{i}") for i in range(3)]
    assert time.monotonic() - begun < 30  # mostly the check of 5000 of its points
    assert search.total == 1 + 9001 * 9001 * (19 + 2)
    assert [trial["trial"]["heal"].get("dropout") for trial in first] == [None, 0.0, 0.0]
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


def test_one_axis_may_be_long():
    space = {"heal.seed": {"int": [0, 10**9]}, "heal.rank": {"choice": [4], "when": {"heal.seed": [7]}}}
    assert SweepSearch(experiment(space=space)).suggest("t0")["number"] == 0
    with pytest.raises(ConfigError, match=r"never holds: heal.seed is 0 to 1000000000, got \[-1\]"):
        experiment(space=space | {"heal.alpha": {"choice": [4], "when": {"heal.seed": [-1]}}})


def test_failed_trials_do_not_stop_the_search():
    search = SweepSearch(experiment(search="nsga2", num_trials=6))
    found = []
    for i in range(20):
        suggestion = search.suggest(f"t{i}")
        if suggestion == Searcher.FINISHED:
            break
        found.append(suggestion)
        search.on_trial_complete(f"t{i}", error=True)
    assert len(found) == 7


def test_multi_objective_search_learns():
    """NSGA-II, TPE: after a warm-up the suggestions concentrate on what wins both objectives."""
    space = {"heal.dropout": {"float": [0.0, 0.9]}}
    search = SweepSearch(experiment(search="tpe", num_trials=40, space=space))
    drawn = []
    for i in range(41):
        suggestion = search.suggest(f"t{i}")
        x = suggestion["trial"]["heal"].get("dropout", 0.5)
        drawn.append(x)
        search.on_trial_complete(f"t{i}", {"accuracy": 1 - x, "energy_j_per_token": 1 + x})
    early, late = drawn[1:11], drawn[-10:]
    assert sum(late) / 10 < 0.5 * sum(early) / 10


def test_no_trial_starts_beside_an_open_window():
    open_windows = iter([True, False])
    search = SweepSearch(experiment(), busy=lambda: next(open_windows))
    assert search.suggest("a") is None
    assert search.suggest("a")["number"] == 0


def test_no_more_trials_run_than_find_room_at_that_moment():
    room = iter([1, 1, 2, 2, 1, 1])
    search = SweepSearch(experiment(), width=lambda: next(room))
    assert search.suggest("a")["number"] == 0
    assert search.suggest("b") is None
    assert search.suggest("b")["number"] == 1  # a node came
    search.on_trial_complete("a", {})
    assert search.suggest("c")["number"] == 2
    assert search.suggest("d") is None  # a node went
    search.on_trial_complete("b", {})
    assert search.suggest("d") is None


def test_a_search_learns_only_what_a_front_would_take():
    search = SweepSearch(experiment(search="tpe", num_trials=6))
    kinds = ["measured", "contaminated", "estimated", "measured"]
    for i, kind in enumerate(kinds):
        search.suggest(f"t{i}")
        search.on_trial_complete(f"t{i}", {"accuracy": 0.5, "energy_j_per_token": 1.0 + i, "energy_kind": kind})
    assert [values["energy_j_per_token"] for values in search.sampler.results.values()] == [1.0, 4.0]


def test_known_results_are_told_by_the_same_rule():
    suggestions = run_all(SweepSearch(experiment(search="tpe", num_trials=3)))
    kinds = ["measured", "contaminated", "estimated", "measured"]
    known = [
        TrialResult(
            each["trial_id"], each["number"], "ok", each["trial"],
            {"accuracy": 0.5, "energy_j_per_token": 1.0, "energy_kind": kind},
        )
        for each, kind in zip(suggestions, kinds, strict=True)
    ]  # fmt: skip
    search = SweepSearch(experiment(search="tpe", num_trials=3), known=known)
    assert list(search.sampler.results) == [suggestions[0]["trial_id"], suggestions[3]["trial_id"]]
