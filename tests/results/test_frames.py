"""Tables with other rows than trials, and of several runs."""

from __future__ import annotations

import time
from pathlib import Path

import pandas as pd
import pytest
from handmade_runs import ANGULAR, LORA, trial
from replayed_run import DOCUMENTS, TASKS, replayed_run

import greenprune as gp
from greenprune.errors import ConfigError
from greenprune.results import write_result, write_trials


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return replayed_run(tmp_path_factory.mktemp("runs") / "small", 12)


def test_a_row_a_task(run: Path):
    trials, tasks = gp.load_trials(run), gp.load_trials(run, long=True)
    assert len(tasks) == (trials["status"] == "ok").sum() * len(TASKS)
    assert list(tasks["task"][: len(TASKS)]) == list(TASKS)
    means = tasks.groupby("trial_id")["acc"].mean()
    expected = trials.set_index("trial_id")["accuracy"]
    pd.testing.assert_series_equal(means.sort_index(), expected[means.index].sort_index(), check_names=False)
    assert tasks["floor"].unique().tolist() == list(dict.fromkeys(TASKS.values()))
    assert dict(tasks.dtypes.astype(str))["task"] == "str"
    assert {"trial_number", "prune.method", "stderr", "wh"} <= set(tasks.columns)


def test_a_task_whose_name_begins_another(tmp_path: Path):
    write_trials(tmp_path / "r", [trial(0, 0.5, 1.0, arc_acc=0.1, arc_easy_acc=0.2)])
    table = gp.load_trials(tmp_path / "r", long=True).set_index("task")["acc"]
    assert table.to_dict() == {"piqa": 0.5, "arc": 0.1, "arc_easy": 0.2}


def test_a_row_a_step_of_healing(run: Path):
    curves = gp.load_trials(run, curves=True)
    healed = gp.load_trials(run).query("`heal.method` == 'lora' and status == 'ok'")
    assert set(curves["trial_id"]) == set(healed["trial_id"])
    first = curves[curves["trial_id"] == healed["trial_id"].iloc[0]]
    assert first["step"].tolist() == [0, 20, 40, 60, 80, 100]
    assert first["loss"].is_monotonic_decreasing
    assert set(curves["split"]) == {"validation"}


def test_a_row_a_window(tmp_path: Path):
    reading = {"energy_j": 2.0, "seconds": 1.0, "kind": "estimated", "cpu_j": 2.0, "gpu_j": None}
    named = [reading | {"name": name} for name in ("idle", "prefill 1", "decode 1", "decode 2")]
    energy = {"idle": named[0], "readings": named[1:3], "discarded": [named[3] | {"contamination": "PID 7"}]}
    result = trial(0, 0.5, 1.0)
    result.stages.append({"stage": "energy", "key": "k"})
    folder = tmp_path / "_stages" / "energy" / "k"
    folder.mkdir(parents=True)
    (folder / "energy.json").write_text(pd.Series(energy).to_json())
    write_result(tmp_path / "r", result)
    table = gp.load_trials(tmp_path / "r", windows=True)
    assert table["phase"].tolist() == ["idle", "prefill", "decode", "decode"]
    assert table["discarded"].tolist() == [False, False, False, True]
    assert table["repeat"].astype("float64").fillna(0).tolist() == [0, 1, 1, 2]
    assert table["gpu_j"].isna().all()
    assert table["contamination"].tolist()[-1] == "PID 7"


def test_several_runs_keep_their_names_and_dtypes(tmp_path: Path):
    write_trials(tmp_path / "a", [trial(0, 0.5, 1.0), trial(1, 0.4, 0.9, ANGULAR, LORA, layers=3)])
    flagged = trial(0, 0.6, 1.0, layers=4)
    flagged.config["model"]["trust_remote_code"] = True
    write_trials(tmp_path / "b", [flagged])
    write_trials(tmp_path / "c", [trial(0, 0.7, 1.0)])
    table = gp.load_trials([tmp_path / name for name in "abc"])
    assert table["run"].tolist() == ["a", "a", "b", "c"]
    assert table.columns[0] == "run"
    assert str(table["layers"].dtype) == "Int64"
    assert str(table["model.trust_remote_code"].dtype) == "boolean"
    assert "object" not in set(table.dtypes.astype(str))
    (tmp_path / "other").mkdir()
    write_trials(tmp_path / "other" / "a", [trial(0, 0.5, 1.0)])
    alike = gp.load_trials([tmp_path / "a", tmp_path / "other" / "a"], long=True)
    assert set(alike["run"]) == {str(tmp_path / "a"), str(tmp_path / "other" / "a")}


def test_what_cant_be_one_table(tmp_path: Path):
    write_trials(tmp_path / "a", [trial(0, 0.5, 1.0)])
    with pytest.raises(ConfigError, match="one kind of row, got long and windows"):
        gp.load_trials(tmp_path / "a", long=True, windows=True)
    with pytest.raises(ConfigError, match="at least one run"):
        gp.load_trials([])
    with pytest.raises(ConfigError, match="runs of a table must differ"):
        gp.load_trials([tmp_path / "a", tmp_path / "a"])


def test_runs_without_what_a_table_is_of_have_an_empty_one(tmp_path: Path):
    write_trials(tmp_path / "a", [])
    for kind in ("long", "curves", "windows"):
        table = gp.load_trials(tmp_path / "a", **{kind: True})
        assert table.empty
        assert "trial_id" in table


@pytest.mark.slow
def test_two_thousand_trials_are_loaded_soon(tmp_path: Path):
    folder = replayed_run(tmp_path / "large", 2000)
    began = time.process_time()
    assert len(gp.load_trials(folder)) == 2000
    assert time.process_time() - began < 2
    assert len(gp.load_trials(folder, long=True)) > 1900 * len(TASKS) > DOCUMENTS
