"""A sweep's command repeated: the run is gone on with, its results are never lost, and never computed twice."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from faulty_store import FaultyStore
from tiny import write_text

from greenprune.errors import ConfigError, SweepError
from greenprune.experiment import parse_experiment
from greenprune.results import TrialResult, load_trials, read_results, write_result
from greenprune.storage import Storage, leases
from greenprune.store import Store
from greenprune.sweep.driver import run_sweep
from greenprune.sweep.live import Live
from greenprune.sweep.run_folder import RunFolder
from greenprune.sweep.search import SweepSearch
from greenprune.sweep.track import Trackers


@pytest.fixture
def small(tiny_experiment) -> dict:
    """Two trials: the dense model and one block less. Nobody says anything about healing."""
    del tiny_experiment["heal"]
    tiny_experiment["sweep"]["space"] = {"prune.block_size": {"choice": [1]}}
    return tiny_experiment


def rows(folder: Path) -> dict[str, TrialResult]:
    return {result.trial_id: result for result in read_results(folder)}


def runs_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.parent.iterdir() if (path / "config.yaml").exists())


def test_the_same_command_goes_on_and_fresh_keeps_the_old_run_aside(small, ray_here, capsys):
    first = run_sweep(parse_experiment(small), quiet=True)
    before = rows(first.folder)
    assert len(before) == 2

    run_sweep(parse_experiment(small))  # finished: nothing is left to do
    assert rows(first.folder) == before, "no trial ran again"
    assert "2 of 2 trials are done, going on" in capsys.readouterr().out

    shutil.rmtree(first.folder / "tune")  # Tune's state is gone, the results aren't
    one = next(trial_id for trial_id, result in before.items() if result.number == 1)
    failed = TrialResult.failed(one, 1, before[one].config, "heal: oh", 0.0)
    write_result(first.folder, failed)
    again = run_sweep(parse_experiment(small), quiet=True)
    after = rows(first.folder)
    assert [result.number for result in read_results(first.folder)] == [0, 1]
    assert (after[one].status, after[one].number) == ("ok", 1), "a failed trial is tried again"
    assert {key: after[key] for key in before if key != one} == {key: before[key] for key in before if key != one}
    assert len(again.trials) == 2

    run_sweep(parse_experiment(small, ["sweep.resources={heal: {cpu: 1}, prune: {cpu: 1}}"]), quiet=True)
    with pytest.raises(SweepError, match="another configuration"):  # a window is of what it had to itself
        run_sweep(parse_experiment(small, ["sweep.resources={energy: {cpu: 1}}"]), quiet=True)
    changed = parse_experiment(small, ["calibration.seed=5"])
    with pytest.raises(SweepError, match=r"another configuration.*--fresh") as refused:
        run_sweep(changed, quiet=True)
    assert "remove" not in str(refused.value)
    new = run_sweep(changed, fresh=True, quiet=True)
    assert {result.config["calibration"]["seed"] for result in read_results(new.folder)} == {5}
    aside, name = runs_of(first.folder)[1:], runs_of(first.folder)[0]
    assert name == "tiny"
    assert len(aside) == 1
    assert re.fullmatch(r"tiny\.\d{4}-\d\d-\d\d-\d{6}", aside[0])
    assert rows(first.folder.with_name(aside[0])) == after
    assert len(load_trials(first.folder.with_name(aside[0]))) == 2


def test_going_on_reads_no_state_of_tune_and_takes_max_concurrent_as_it_now_is(small, ray_here, tmp_path):
    """All trials fail, one after the other, for want of a text; then it's there, and three may run at once."""
    text = tmp_path / "later.jsonl"
    small["benchmark"] |= {"perplexity": [f"{text}@16"], "energy": None}
    small["sweep"] |= {
        "objectives": {"later_ppl@16": "min"},
        "space": {"prune.block_size": {"choice": [1, 2, 3]}},
        "resources": {stage: {"cpu": 0.3} for stage in ("collect", "prune", "heal", "accuracy")},
    }
    first = run_sweep(parse_experiment(small, ["sweep.max_concurrent=1"]), quiet=True)
    assert len(first.failed) == 4
    for path in filter(Path.is_file, (first.folder / "tune").rglob("*")):
        path.write_bytes(b"a pickle of names that are gone")
    write_text(text, 40, 1)
    second = run_sweep(parse_experiment(small, ["sweep.max_concurrent=3"]), quiet=True)
    assert [(result.number, result.status) for result in read_results(second.folder)] == [(n, "ok") for n in range(4)]
    events = RunFolder(Storage(second.folder.parent), "tiny").journal().events
    assert len(events) == 2 * 2 * 4
    at_once = list(itertools.accumulate(1 if "asked" in event else -1 for event in events))
    assert (max(at_once[:8]), max(at_once[8:])) == (1, 3)


def test_a_run_stays_whole_where_ray_cannot_be_reached(small, tmp_path):
    experiment = parse_experiment(small)
    folder = Path(small["sweep"]["storage"]) / "tiny"
    config = experiment.trial().dense()
    write_result(folder, TrialResult(config.trial_id(), 0, "ok", config.model_dump(mode="json")))
    (folder / "config.yaml").write_text(yaml.safe_dump(experiment.to_dict()))
    before = sorted(folder.rglob("*"))
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(small))
    for more in ([], ["--fresh"]):
        done = subprocess.run(
            [sys.executable, "-m", "greenprune.cli", "sweep", str(path), "--address", "ray://127.0.0.1:1", *more],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2
        assert "Ray must be reachable" in done.stderr
        assert sorted(folder.rglob("*")) == before


def test_all_trials_failed_is_exit_code_1(small, tmp_path):
    small["benchmark"]["perplexity"] = [str(tmp_path / "nowhere.jsonl@16")]
    small["sweep"]["objectives"] = {"energy_j_per_token": "min"}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(small))
    done = subprocess.run([sys.executable, "-m", "greenprune.cli", "sweep", str(path)], capture_output=True, text=True)
    assert "0 trials, 2 failed" in done.stdout, done.stderr
    assert done.returncode == 1


def test_what_is_refused(small):
    experiment = parse_experiment(small)
    with pytest.raises(ConfigError, match=r"--resume.*--fresh.*got both"):
        run_sweep(experiment, resume=True, fresh=True)
    folder = Path(small["sweep"]["storage"]) / "tiny"
    write_result(folder, TrialResult("bi-1", 0, "ok", {}))
    with pytest.raises(SweepError, match=r"must have a config.yaml.*--fresh"):
        run_sweep(experiment)


def result_of(config, number: int, status: str = "ok") -> TrialResult:
    metrics = {"held_ppl@16": 5.0 - number, "energy_j_per_token": 1.0 + number}
    return TrialResult(config.trial_id(), number, status, config.model_dump(mode="json"), metrics)


@pytest.mark.parametrize("chosen", [{}, {"search": "tpe", "num_trials": 3}], ids=["grid", "tpe"])
def test_a_search_without_state_leaves_out_what_is_done_and_keeps_the_numbers(tiny_experiment, chosen):
    tiny_experiment["sweep"] |= chosen
    experiment = parse_experiment(tiny_experiment)
    whole = suggestions(SweepSearch(experiment))
    configs = [experiment.trial({}).model_validate(trial["trial"]) for trial in whole]
    known = [result_of(configs[0], 0), result_of(configs[1], 1, "failed"), result_of(configs[2], 2)]
    rest = suggestions(SweepSearch(experiment, known=known))
    assert rest[0]["trial_id"] == whole[1]["trial_id"]
    assert rest[0]["number"] == 1
    assert not {trial["trial_id"] for trial in rest} & {whole[0]["trial_id"], whole[2]["trial_id"]}
    assert [trial["number"] for trial in rest[1:]] == list(range(3, len(whole)))
    assert not suggestions(SweepSearch(experiment, known=[result_of(c, n) for n, c in enumerate(configs)]))


def suggestions(search: SweepSearch) -> list[dict]:
    found: list[dict] = []
    while isinstance(suggestion := search.suggest(f"t{len(found)}"), dict):
        found.append(suggestion)
        search.on_trial_complete(f"t{len(found) - 1}", {"held_ppl@16": 1.0, "energy_j_per_token": 1.0})
    return found


def test_a_fresh_head_keeps_the_rows_of_the_bucket(tmp_path, tiny_experiment):
    """An object store with two finished trials and an empty mirror: the table that is written has both."""
    bucket = tmp_path / "bucket"
    bucket.mkdir()

    def storage_with(mirror: str) -> Storage:
        storage = Storage(tmp_path / mirror)
        storage.remote = FaultyStore(bucket)
        return storage

    experiment = parse_experiment(tiny_experiment)
    former, new = RunFolder(storage_with("former"), "tiny"), RunFolder(storage_with("new"), "tiny")
    former.write("config.yaml", yaml.safe_dump(experiment.to_dict()))
    for number, trial_id in enumerate(["none-1", "bi-1"]):
        write_result(former.path, TrialResult(trial_id, number, "ok", {"prune": {"method": "none"}}))
        former.storage.push(f"tiny/trials/{trial_id}")

    with Live(new, experiment, new.results(), Trackers([], new), total=5, concurrent=lambda: 1, quiet=True):
        pass
    reader = RunFolder(storage_with("reader"), "tiny")
    assert reader.storage.pull("tiny/trials.parquet")
    assert list(load_trials(reader.path)["trial_id"]) == ["none-1", "bi-1"]

    known = former.results()
    aside = new.keep_aside()
    assert not [path for path in (bucket / "folder" / "tiny").rglob("*") if path.is_file()]
    assert RunFolder(storage_with("other"), aside.name).results() == known
    assert not RunFolder(storage_with("empty"), "tiny").results()


def test_a_trial_whose_driver_has_another_cache_counts_by_what_it_wrote(tmp_path, tiny_experiment):
    def run_with(cache: str) -> RunFolder:
        storage = Storage(tmp_path / cache)
        storage.remote = FaultyStore(tmp_path / "bucket")
        return RunFolder(storage, "tiny")

    sweeps, trials = run_with("the sweep's"), run_with("the trial's")
    experiment = parse_experiment(tiny_experiment)
    config = experiment.trial()
    ours = {"trial_id": config.trial_id(), "number": 3, "trial": config.model_dump(mode="json")}
    looked: list[int] = []

    def width() -> int:
        looked.append(len(looked))
        return 1

    with Live(sweeps, experiment, [], Trackers([], sweeps), total=5, concurrent=width, quiet=True) as live:
        live.started(SimpleNamespace(trial_id="ray's", config=ours))
        before = len(looked)
        live.tick()
        assert len(looked) == before + 1, "nodes that join last are noted too"
        write_result(trials.path, result_of(config, 3))
        trials.storage.push(f"tiny/trials/{config.trial_id()}")
        live.ended(SimpleNamespace(trial_id="ray's", config=ours))
    assert [(result.number, result.status) for result in live.results.values()] == [(3, "ok")]


def test_who_was_taken_over_stops_and_leaves_the_table_to_the_other(small, ray_here, monkeypatch):
    """His results stay; what he would write of the run is what he knows of it, which is less than there is."""
    monkeypatch.setattr(leases, "RENEWED_EVERY_S", 0.05)
    started = Live.started

    def taken_over(self, trial):
        storage = self.run.storage
        number = max(int(Path(name).name) for name in storage.shared.listing(".tiny.lease"))
        storage.shared.create(f".tiny.lease/{number + 2:08}", b"{}")
        started(self, trial)

    monkeypatch.setattr(Live, "started", taken_over)
    with pytest.raises(SweepError, match="got another one, which took over"):
        run_sweep(parse_experiment(small), quiet=True)
    folder = Path(small["sweep"]["storage"]) / "tiny"
    assert not (folder / "trials.parquet").exists()
    monkeypatch.setattr(Live, "started", started)
    shutil.rmtree(folder.parent / ".tiny.lease")  # the other one has ended
    run = run_sweep(parse_experiment(small), quiet=True)
    assert [result.status for result in read_results(run.folder)] == ["ok", "ok"]


def test_finished_stages_are_reused(small, ray_here):
    run = run_sweep(parse_experiment(small), quiet=True)
    for manifest in run.folder.parent.glob("_stages/accuracy/*/manifest.json"):  # as if another version had made them
        known = json.loads(manifest.read_text())
        key = known["key"].partition("-")[0] + "-0"
        manifest.write_text(json.dumps(known | {"key": key}))
        manifest.parent.rename(manifest.parent.with_name(key))
    run_sweep(parse_experiment(small), fresh=True, quiet=True, any_versions=True)
    keys = [event["key"] for event in Store(run.folder.parent).events() if event["event"] == "computed"]
    assert len(keys) == len(set(keys))
