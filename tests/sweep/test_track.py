"""Experiment trackers: what each is told of a sweep's trials, and what happens where one can't be told.

python -m pytest -m slow tests/sweep/test_track.py      # needs mlflow and wandb: pip install 'greenprune[mlflow,wandb]'
"""

from __future__ import annotations

import logging
import re
import struct
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from handmade_runs import ANGULAR, trial
from paths import ROOT
from ray.tune.logger import LoggerCallback

from greenprune.config.track import TRACKERS
from greenprune.errors import ConfigError, SweepError
from greenprune.experiment import parse_experiment
from greenprune.pareto import pareto_front
from greenprune.results import TrialResult
from greenprune.storage import Storage
from greenprune.sweep.driver import run_sweep
from greenprune.sweep.run_folder import RunFolder
from greenprune.sweep.track import FAILURES, Trackers

RESULT = replace(trial(3, 0.5, 1.25, ANGULAR), seconds=7.5)
RESULT.metrics.update({"wikipedia_ppl@512": 40.5, "c4_ppl@128": float("inf"), "energy_note": None})


class Unreachable(LoggerCallback):
    """A tracker whose server answers nothing."""

    asked = 0

    def __init__(self, run: RunFolder) -> None:
        super().__init__()

    def log_trial_start(self, trial: Any) -> None:
        type(self).asked += 1
        raise OSError("http://me:hush@host:5000 doesn't answer\nand more")


class Closed(LoggerCallback):
    def __init__(self, run: RunFolder) -> None:
        raise OSError("http://me:hush@host:5000 doesn't answer")


def stands_in(monkeypatch: pytest.MonkeyPatch, name: Any, callback: type[LoggerCallback]) -> None:
    """`callback` in a tracker's place."""
    monkeypatch.setitem(sys.modules, "stand_in", SimpleNamespace(callback=callback))
    monkeypatch.setitem(TRACKERS, name, replace(TRACKERS[name], callback="stand_in:callback"))


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(Storage(tmp_path), "r")


def scalars(folder: Path) -> dict[str, tuple[int, float]]:
    """name -> step and value of what TensorBoard's files hold."""
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for path in folder.glob("events*"):
        for record in _records(path.read_bytes()):
            event = Event.FromString(record)
            numbers = [value for value in event.summary.value if value.HasField("simple_value")]
            found |= {value.tag: (event.step, value.simple_value) for value in numbers}
    return found


def _records(data: bytes) -> Iterator[bytes]:
    """TFRecord: length, its checksum, data, its checksum."""
    while data:
        length = struct.unpack("<Q", data[:8])[0]
        yield data[12 : 12 + length]
        data = data[16 + length :]


def test_tensorboard_holds_a_trials_finite_numbers_under_its_columns_names(run: RunFolder):
    trackers = Trackers(["tensorboard"], run)
    trackers.started(TrialResult(RESULT.trial_id, 3, "ok", RESULT.config))
    trackers.ended(RESULT)
    trackers.ended(replace(RESULT, trial_id="late-1", number=4))  # its start was another command's
    trackers.close({RESULT.trial_id})
    held = scalars(run.path / "tensorboard" / RESULT.trial_id)
    told = {"accuracy": 0.5, "energy_j_per_token": 1.25, "wikipedia_ppl_512": 40.5, "seconds": 7.5}
    assert {name: held[f"ray/tune/{name}"] for name in told} == {name: (3, value) for name, value in told.items()}
    assert not [name for name in held if "c4" in name or "note" in name or "config" in name]
    assert scalars(run.path / "tensorboard" / "late-1")["ray/tune/accuracy"] == (4, 0.5)


def test_a_tracker_that_fails_is_given_up_and_the_others_go_on(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    stands_in(monkeypatch, "wandb", Unreachable)
    monkeypatch.setattr(Unreachable, "asked", 0)
    trackers = Trackers(["wandb", "tensorboard"], run)
    with caplog.at_level(logging.WARNING, "greenprune"):
        for number in range(FAILURES + 2):
            trackers.ended(replace(RESULT, trial_id=f"t-{number}"))
        trackers.close(None)
    assert Unreachable.asked == FAILURES
    said = [record.getMessage() for record in caplog.records]
    assert said == ["wandb isn't told: http://…@host:5000 doesn't answer"] * (FAILURES - 1) + [
        "wandb isn't told: http://…@host:5000 doesn't answer; it is told no more"
    ]
    assert len(list((run.path / "tensorboard").iterdir())) == FAILURES + 2


def test_a_tracker_that_cant_be_opened_is_refused(run: RunFolder, monkeypatch: pytest.MonkeyPatch):
    stands_in(monkeypatch, "mlflow", Closed)
    with pytest.raises(SweepError, match=r"got mlflow: http://…@host:5000 .*; check where .*MLFLOW_TRACKING_URI"):
        Trackers(["mlflow"], run)


def test_a_missing_library_is_refused_before_anything_is_touched(tiny_experiment, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(TRACKERS, "mlflow", replace(TRACKERS["mlflow"], library="no_such_library"))
    with pytest.raises(
        ConfigError, match=r"got mlflow and no no_such_library; run: pip install 'greenprune\[mlflow\]'"
    ):
        run_sweep(parse_experiment(tiny_experiment, ["sweep.track=[tensorboard, mlflow]"]), quiet=True)
    assert not Path(tiny_experiment["sweep"]["storage"]).exists()


@pytest.mark.parametrize(
    ("track", "message"),
    [("[mlfow]", r"sweep\.track\.0 must be one of its choices, got 'mlfow'; did you mean 'mlflow'"),
     ("[mlflow, mlflow]", "sweep.track must name each tracker once, got mlflow, mlflow")],
)  # fmt: skip
def test_what_is_no_tracker_is_refused(tiny_experiment, track: str, message: str):
    with pytest.raises(ConfigError, match=message):
        parse_experiment(tiny_experiment, [f"sweep.track={track}"])


def test_a_run_is_gone_on_with_by_other_trackers(tiny_experiment, run: RunFolder):
    import yaml

    run.write("config.yaml", yaml.safe_dump(parse_experiment(tiny_experiment).to_dict()))
    run.check_configuration(parse_experiment(tiny_experiment, ["sweep.track=[mlflow]"]), [])


def test_every_tracker_has_an_extra_that_brings_its_library():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name, tracker in TRACKERS.items():
        assert [re.split("[<>=]", needed)[0] for needed in extras[name]] == [tracker.library]


# --------------------------------------------------------------------------------------------- the real libraries


@pytest.fixture
def tracked(tiny_experiment) -> dict:
    """The dense model, two that prune, two whose healing has no text and fails."""
    tiny_experiment["sweep"]["space"] = {
        "prune.block_size": {"choice": [1, 2]},
        "heal.method": {"choice": ["none", "lora"]},
        "heal.dataset": {"choice": ["missing.jsonl"], "when": {"heal.method": ["lora"]}},
    }
    return tiny_experiment


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_mlflow_holds_each_trials_metrics_and_the_fronts_tag(tracked, ray_here, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="pip install 'greenprune[mlflow]'")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    run = run_sweep(parse_experiment(tracked, ["sweep.track=[mlflow, tensorboard]"]), quiet=True)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")

    def held() -> dict[str, Any]:
        experiment = client.get_experiment_by_name("tiny").experiment_id
        return {each.info.run_name: each for each in client.search_runs([experiment])}

    front = pareto_front(run.trials, tracked["sweep"]["objectives"])
    assert set(held()) == set(run.trials["trial_id"])
    for _, row in run.trials.iterrows():
        each = held()[row["trial_id"]]
        assert each.data.tags["status"] == row["status"]
        assert each.data.tags["front"] == str(row["trial_id"] in set(front["trial_id"])).lower()
        assert each.data.params["prune.method"] == row["prune.method"]
        if row["status"] == "failed":
            assert each.info.status == "FAILED"
            assert "missing.jsonl" in each.data.tags["error"]
            continue
        assert each.info.status == "FINISHED"
        assert each.data.metrics["held_ppl_16"] == pytest.approx(row["held_ppl@16"])
        assert each.data.metrics["energy_j_per_token"] == pytest.approx(row["energy_j_per_token"])
        assert each.data.tags["energy_kind"] == row["energy_kind"]
        assert scalars(run.folder / "tensorboard" / row["trial_id"])

    # what an interruption left running is ended, and a trial's older run is on no front
    trackers = Trackers(["mlflow"], RunFolder(Storage(run.folder.parent), "tiny"))
    again = TrialResult(front["trial_id"].iloc[0], 1, "ok", {"prune": {"method": "angular"}})
    trackers.started(again)
    trackers.close({again.trial_id})
    experiment = client.get_experiment_by_name("tiny").experiment_id
    of_it = client.search_runs([experiment], f"tags.trial_name = '{again.trial_id}'", order_by=["start_time DESC"])
    assert [(each.info.status, each.data.tags["front"]) for each in of_it] == [
        ("KILLED", "true"),
        ("FINISHED", "false"),
    ]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_wandb_is_told_and_its_key_is_in_no_log(tracked, ray_here, monkeypatch):
    pytest.importorskip("wandb", reason="pip install 'greenprune[wandb]'")
    import ray

    secret = "0123456789abcdef0123456789abcdef01234567"
    monkeypatch.setenv("WANDB_API_KEY", secret)
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = run_sweep(parse_experiment(tracked, ["sweep.track=[wandb]"]), quiet=True)
    for trial_id in run.trials["trial_id"]:
        (kept,) = (run.folder / "wandb" / trial_id).glob("wandb/offline-run-*/*.wandb")
        assert kept.stat().st_size > 0
    ended = run.trials[run.trials["status"] == "ok"]["trial_id"].iloc[0]
    (kept,) = (run.folder / "wandb" / ended).glob("wandb/offline-run-*/*.wandb")
    assert b"held_ppl_16" in kept.read_bytes()
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    for folder in (session, run.folder):
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                assert secret.encode() not in path.read_bytes(), path
