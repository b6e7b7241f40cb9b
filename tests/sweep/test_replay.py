"""A search that goes on decides as if it had never been interrupted: from its journal, or from results alone."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
import yaml
from optuna.trial import TrialState
from ray.tune.search import Searcher

from greenprune.config import TrialConfig
from greenprune.experiment import Experiment, parse_experiment
from greenprune.results import TrialResult
from greenprune.storage import Storage
from greenprune.sweep.run_folder import RunFolder
from greenprune.sweep.search import SweepSearch

SEARCHES = ["grid", "random", "tpe", "nsga2", "gp"]


def experiment(search: str = "tpe", **sweep: Any) -> Experiment:
    space = {
        "prune.method": {"choice": ["angular", "bi"]},
        "prune.block_size": {"int": [1, 6]},
        "heal.method": {"choice": ["none", "lora"]},
        "heal.rank": {"choice": [4, 8], "when": {"heal.method": ["lora"]}},
    }
    chosen = {} if search == "grid" else {"num_trials": 14}
    return parse_experiment(
        {
            "model": {"id": "pypi:smollm2-135m"},
            "prune": {"method": "angular", "block_size": 1},
            "heal": {"method": "lora"},
            "benchmark": {"tasks": ["piqa"]},
            "sweep": {"search": search, "space": space} | chosen | sweep,
        }
    )


def metrics_of(trial: dict) -> dict[str, float]:
    block = trial["prune"].get("block_size", 0)
    return {"accuracy": 1 - block / 10, "energy_j_per_token": 10.0 - block + (trial["heal"]["method"] == "lora")}


def ended(trial: dict, fails: bool) -> TrialResult:
    metrics = {} if fails else metrics_of(trial["trial"])
    return TrialResult(trial["trial_id"], trial["number"], "failed" if fails else "ok", trial["trial"], metrics)


class Played:
    """What a run would keep: the journal's events and the results, and in which order configurations were suggested."""

    def __init__(self, events: list = (), results: dict = ()) -> None:
        self.events, self.results, self.suggested = list(events), dict(results), []

    def go_on(
        self, experiment: Experiment, *, at_once: int, until: int = 1000, told: bool = True, failing: Any = ()
    ) -> SweepSearch:
        """Play with so many trials at once until there are so many results; unless `told` the last isn't told."""
        known = sorted(self.results.values(), key=lambda result: result.number)
        search = SweepSearch(experiment, known=known, journal=tuple(self.events), record=self.events.append)
        running: dict[str, dict] = {}
        while True:
            while len(running) < at_once:
                name = f"t{len(self.suggested)}"
                suggestion = search.suggest(name)
                if suggestion == Searcher.FINISHED:
                    break
                running[name] = suggestion
                self.suggested.append(suggestion["trial_id"])
            if not running or len(self.results) >= until:
                return search
            name = min(running, key=lambda name: hashlib.sha256(running[name]["trial_id"].encode()).digest())
            trial = running.pop(name)
            result = ended(trial, fails=trial["trial_id"] in failing)
            self.results[result.trial_id] = result
            if not told and len(self.results) >= until:
                return search
            search.on_trial_complete(name, result.metrics or None, error=result.status == "failed")


def numbers(played: Played) -> dict[str, int]:
    return {trial_id: result.number for trial_id, result in played.results.items()}


@pytest.mark.parametrize("told", [True, False], ids=["told", "killed before it was told"])
@pytest.mark.parametrize(
    ("name", "at_once"), [(name, 3) for name in SEARCHES] + [("grid", 1), ("tpe", 1), ("nsga2", 1)]
)
def test_an_interrupted_search_goes_on_as_the_undisturbed_one(name, at_once, told):
    undisturbed, interrupted = Played(), Played()
    undisturbed.go_on(experiment(name), at_once=at_once)
    interrupted.go_on(experiment(name), at_once=at_once, until=6, told=told)
    before = interrupted.suggested
    again = Played(interrupted.events, interrupted.results)
    again.go_on(experiment(name), at_once=at_once)
    running = [trial_id for trial_id in before if trial_id not in interrupted.results]
    assert again.suggested[: len(running)] == running, "what was running comes first"
    assert before + again.suggested[len(running) :] == undisturbed.suggested
    assert numbers(again) == numbers(undisturbed)
    assert not Played(again.events, again.results).go_on(experiment(name), at_once=1).waiting


@pytest.mark.parametrize("name", SEARCHES)
def test_results_alone_bring_back_the_decisions(name):
    undisturbed, interrupted = Played(), Played()
    undisturbed.go_on(experiment(name), at_once=1)
    interrupted.go_on(experiment(name), at_once=1, until=6)
    assert interrupted.suggested.pop() not in interrupted.results, "it was running"
    again = Played(results=interrupted.results)
    again.go_on(experiment(name), at_once=1)
    assert interrupted.suggested + again.suggested == undisturbed.suggested
    assert numbers(again) == numbers(undisturbed)


@pytest.mark.parametrize("name", ["random", "tpe", "nsga2"])
def test_a_trial_that_failed_is_run_again_and_learnt(name):
    undisturbed = Played()
    undisturbed.go_on(experiment(name), at_once=1, until=5)
    victim = undisturbed.suggested[3]
    played = Played()
    played.go_on(experiment(name), at_once=1, until=5, failing={victim})
    again = Played(played.events, played.results)
    search = again.go_on(experiment(name), at_once=1, until=7)
    assert again.suggested[0] == victim
    assert (again.results[victim].number, again.results[victim].status) == (3, "ok")
    assert list(again.results[victim].metrics.values()) in learnt(search)
    third = Played(again.events, again.results)
    assert learnt(third.go_on(experiment(name), at_once=1, until=7)) == learnt(search)
    assert third.suggested == again.suggested[-1:]


def learnt(search: SweepSearch) -> list[list[float]]:
    """The objectives that the sampler's study knows, in the order in which it was told."""
    assert search.sampler is not None
    return [trial.values for trial in search.sampler.study.get_trials(states=[TrialState.COMPLETE])]


def test_results_of_another_search_are_learnt_and_not_repeated(caplog):
    """As after an update of Optuna: the decisions can't be had again, the results can."""
    former = Played()
    former.go_on(experiment("tpe", seed=5), at_once=1, until=7)
    again = Played(former.events, former.results)
    search = again.go_on(experiment("tpe"), at_once=1)
    assert "would have tried other configurations" in caplog.text
    assert not set(again.suggested) & set(former.suggested)
    assert len(again.results) == 15
    assert sorted(numbers(again).values()) == list(range(15))
    assert len(learnt(search)) >= 14  # all but the dense model


def test_values_that_are_sections_are_learnt_from_results_alone():
    """A result says every field of a section, its choice only some; the one that says most is meant."""
    layers = {"method": "angular", "block_size": 3}
    sections = [layers, layers | {"patch": "linear"}, {"method": "flap", "ratio": 0.2}]
    losses = ["ce", "kd", {"ce": 0.3, "kd": 0.7}]
    whole = experiment("tpe", space={"prune": {"choice": sections}, "heal.loss": {"choice": losses}}, num_trials=9)
    former = Played()
    former.go_on(whole, at_once=1, until=10)
    sampler = SweepSearch(whole).sampler
    for result in former.results.values():
        config = TrialConfig.model_validate(result.config)
        if config.prune.method != "none":
            sampler.learn(config, metrics_of(result.config))
    learned = [trial.params for trial in sampler.study.get_trials(states=[TrialState.COMPLETE])]
    assert sorted(map(str, learned)) == sorted(
        str({"prune": json.dumps(section), "heal.loss": json.dumps(loss)}) for section in sections for loss in losses
    )


def test_the_journal_is_read_up_to_a_torn_event(tmp_path):
    run = RunFolder(Storage(tmp_path), "demo")
    journal = run.journal()
    assert journal.events == []
    events = [{"asked": "none-1"}, {"told": "none-1", "objectives": {"accuracy": 0.5}}, {"asked": "bi-1"}]
    for event in events:
        journal.record(event)
    assert run.journal().events == events
    path = tmp_path / "demo" / "search.jsonl"
    for torn in ('{"asked": "b', '{"ask": 1}\n', "[1]\n", "\udcff"):
        path.write_bytes(
            "".join(path.read_text().splitlines(True)[:3]).encode() + torn.encode(errors="surrogateescape")
        )
        assert run.journal().events == events


def test_what_changes_no_trial_may_change(tmp_path):
    run = RunFolder(Storage(tmp_path), "demo")
    run.write("config.yaml", yaml.safe_dump(experiment().to_dict()))
    run.check_configuration(experiment(max_concurrent=3, stage_retries=4), [])
