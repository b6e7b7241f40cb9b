"""Real sweeps on Ray with the tiny model: rows, failures, kill -9 and resume."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
import yaml

from greenprune.errors import ConfigError, SweepError
from greenprune.experiment import parse_experiment
from greenprune.results import TrialResult, load_trials
from greenprune.store import Store
from greenprune.sweep.driver import run_sweep
from greenprune.trial import run_trial

GREENPRUNE = [sys.executable, "-m", "greenprune.cli"]


def counts(root) -> pd.Series:
    return pd.DataFrame(Store(root).events()).query("event == 'computed'")["key"].value_counts()


def test_grid_ends_with_rows_front_and_files(tiny_experiment, ray_here):
    run = run_sweep(parse_experiment(tiny_experiment), quiet=True)
    trials = run.trials
    assert list(trials["trial_number"]) == [0, 1, 2, 3, 4]
    assert set(trials["status"]) == {"ok"}
    assert (trials.loc[0, "prune.method"], trials.loc[0, "energy_ratio"]) == ("none", 1.0)
    assert trials["energy_kind"].isin(["estimated", "measured"]).all()
    assert not run.failed
    assert not run.interrupted
    for name in ("config.yaml", "environment.json", "trials.parquet", "trials.csv"):
        assert (run.folder / name).is_file()
    for trial_id in trials["trial_id"]:
        files = {path.name for path in (run.folder / "trials" / trial_id).iterdir()}
        assert {"config.yaml", "result.json", "emissions.csv", "log.txt"} <= files
    stages = pd.DataFrame(Store(run.folder.parent).events()).query("event == 'computed'")["stage"].value_counts()
    assert stages["collect"] == 1
    assert (counts(run.folder.parent) == 1).all()

    again = run_sweep(parse_experiment(tiny_experiment), quiet=True)  # same configuration: all from artifacts
    assert (counts(run.folder.parent) == 1).all()
    pd.testing.assert_frame_equal(
        again.trials.drop(columns=["seconds", "started"]), trials.drop(columns=["seconds", "started"])
    )
    with pytest.raises(SweepError, match="another configuration"):
        run_sweep(parse_experiment(tiny_experiment, ["calibration.seed=5"]), quiet=True)


def run_row_here(run: Path, trial_id: str, storage: Path) -> TrialResult:
    """The trial again, in this process and from nothing."""
    config = yaml.safe_load((run / "trials" / trial_id / "config.yaml").read_text())
    return run_trial(parse_experiment(config).trial(), storage)


def test_a_row_is_reproduced_inline(tiny_experiment, ray_here, tmp_path):
    tiny_experiment["sweep"]["space"] = {"prune.block_size": {"choice": [2]}}
    run = run_sweep(parse_experiment(tiny_experiment), quiet=True)
    row = run.trials.iloc[1]
    result = run_row_here(run.folder, row["trial_id"], tmp_path / "elsewhere")
    assert result.metrics["held_ppl@16"] == row["held_ppl@16"]
    assert result.metrics["heal_loss_end"] == row["heal_loss_end"]


def test_search_with_conditions_and_failures(tiny_experiment, ray_here):
    tiny_experiment["sweep"] |= {
        "search": "nsga2",
        "num_trials": 4,
        "space": {
            "prune.block_size": {"int": [1, 3]},
            "heal.method": {"choice": ["none", "lora"]},
            "heal.dataset": {"choice": ["missing.jsonl"], "when": {"heal.method": ["lora"]}},
        },
    }
    run = run_sweep(parse_experiment(tiny_experiment), quiet=True)
    failed = run.trials[run.trials["status"] == "failed"]
    assert len(run.trials) == 5
    assert len(failed) >= 1
    assert (failed["heal.method"] == "lora").all()
    assert failed["error"].str.contains(r"heal: AssetError: a text file must exist").all()
    assert failed["held_ppl@16"].isna().all()  # a failure is no score
    assert {result.trial_id for result in run.failed} == set(failed["trial_id"])


def test_no_stage_overlaps_a_window_and_every_trial_ends(tiny_experiment, ray_here):
    tiny_experiment["benchmark"]["energy"] |= {"min_seconds": 0.2, "repeats": 1}
    small = {"cpu": 0.3}
    tiny_experiment["sweep"] |= {
        "space": {
            "prune.method": {"choice": ["angular", "bi"]},
            "prune.block_size": {"choice": [1, 2, 3]},
            "heal.method": {"choice": ["lora"]},
        },
        "max_concurrent": 6,
        "resources": {
            **dict.fromkeys(("collect", "prune", "heal", "accuracy"), small),
            "energy": {"cpu": 0.3, "exclusive": "node"},
        },
    }
    run = run_sweep(parse_experiment(tiny_experiment), quiet=True)
    assert len(run.trials) == 7
    assert set(run.trials["status"]) == {"ok"}
    assert set(run.trials["energy_sharing"]) == {"exclusive: node"}

    spans, begun = [], {}
    for event in Store(run.folder.parent).events():
        if event["event"] == "started":
            begun[event["key"]] = event["time"]
        elif event["event"] == "computed":
            spans.append((event["stage"], event["key"], begun[event["key"]], event["time"]))
    preparing = [span for span in spans if span[0] != "energy"]
    assert any(a[2] < b[3] and b[2] < a[3] for a in preparing for b in preparing if a[1] < b[1]), "they ran at once"
    windows = [
        (path.parent.name, reading["began"], reading["began"] + reading["seconds"])
        for path in run.folder.parent.glob("_stages/energy/*/energy.json")
        for reading in json.loads(path.read_text())["readings"]
    ]
    assert len(windows) == 2 * 7  # prefill and decode of six models and the dense one
    for stage, key, began, ended in spans:
        for owner, opened, closed in windows:
            assert owner == key or ended <= opened or closed <= began, f"{stage} ran while a window was open"


def test_what_is_refused_before_any_trial(tiny_experiment):
    with pytest.raises(ConfigError, match="needs a sweep section"):
        run_sweep(parse_experiment({k: v for k, v in tiny_experiment.items() if k != "sweep"}))
    with pytest.raises(SweepError, match="--resume needs an interrupted run"):
        run_sweep(parse_experiment(tiny_experiment), resume=True)


# ----------------------------------------------------------------------------------- crashes, in real processes


def start(path: Path, *more: str) -> subprocess.Popen:
    return subprocess.Popen(
        [*GREENPRUNE, "sweep", str(path), *more], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for(condition, seconds: float = 240):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)
    return found


def finished_trials(runs: Path) -> int:
    return len(list(runs.glob("tiny/trials/*/result.json")))


def test_ctrl_c_then_kill_9_of_the_driver_and_the_same_command_ends_the_run(tiny_experiment, tiny_experiment_file):
    runs = Path(tiny_experiment["sweep"]["storage"])
    driver = start(tiny_experiment_file)
    wait_for(lambda: finished_trials(runs) >= 1)
    driver.send_signal(signal.SIGINT)
    text, _ = driver.communicate(timeout=120)
    assert driver.returncode == 130, text
    assert "the same command goes on" in text

    done = finished_trials(runs)
    driver = start(tiny_experiment_file)
    wait_for(lambda: finished_trials(runs) > done)
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate(timeout=60)
    assert finished_trials(runs) < 5

    resumed = start(tiny_experiment_file, "--resume")
    text, _ = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, text
    trials = load_trials(runs / "tiny")
    assert list(trials["trial_number"]) == [0, 1, 2, 3, 4]
    assert set(trials["status"]) == {"ok"}
    assert (counts(runs) == 1).all()  # no finished stage ran again
    for _, row in trials.iterrows():
        undisturbed = run_row_here(runs / "tiny", row["trial_id"], runs.with_name("undisturbed")).metrics
        same = ["parameters", "layers", "held_ppl@16"]
        assert [undisturbed[name] for name in same] == list(row[same])


def stage_workers(driver: int, stage: str) -> list[psutil.Process]:
    """Ray worker processes that run this stage now (Ray writes the task's name into the title)."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        title = " ".join(process.info["cmdline"] or [])
        if title.startswith(f"ray::{stage}") and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def test_kill_9_of_a_stage_worker_is_retried_then_a_row(tiny_experiment, tiny_experiment_file):
    tiny_experiment["heal"] |= {"steps": 100_000, "checkpoint_every": 100_000, "eval_every": 100_000}
    tiny_experiment["sweep"]["space"] = {
        "prune.block_size": {"choice": [1]},
        "heal.method": {"choice": ["lora", "none"]},
    }
    tiny_experiment_file.write_text(yaml.safe_dump(tiny_experiment))
    runs = Path(tiny_experiment["sweep"]["storage"])
    driver = start(tiny_experiment_file)

    def attempts() -> int:
        events = Store(runs).events()
        return sum(event["event"] == "started" and event["stage"] == "heal" for event in events)

    for attempt in (1, 2):  # the first attempt and its retry
        wait_for(lambda attempt=attempt: attempts() == attempt)
        victims = wait_for(lambda: stage_workers(driver.pid, "heal"))
        for victim in victims:
            victim.kill()
    text, _ = driver.communicate(timeout=300)
    assert driver.returncode == 0, text
    assert attempts() == 2
    trials = load_trials(runs / "tiny").set_index("heal.method")
    assert len(trials) == 3
    assert trials.loc["lora", "status"] == "failed"
    assert "worker process must stay alive, got 2 deaths" in trials.loc["lora", "error"]
    assert trials.loc["lora", "trial_id"] in text
    assert "worker process must stay alive" in text
    assert (trials.loc["none", "status"] == "ok").all()
