"""A result survives the disk; a table of unlike trials keeps its types and its gaps."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from greenprune import results
from greenprune.config import TrialConfig
from greenprune.errors import ConfigError
from greenprune.experiment import load_experiment
from greenprune.results import TrialResult, find_trial, load_trials, read_results, to_frame, write_result, write_trials


def config(prune: dict[str, Any], heal: dict[str, Any] | None = None) -> dict[str, Any]:
    parts = {"model": {"id": "some/model"}, "prune": prune, "heal": heal or {"method": "none"}}
    return TrialConfig.model_validate({**parts, "benchmark": {"tasks": ["piqa", "boolq"]}}).model_dump(mode="json")


DENSE = TrialResult(
    "none-00000000", 0, "ok", config({"method": "none"}),
    {"accuracy": 0.5, "parameters": 100, "heal_energy_wh": None, "energy_ratio": 1.0, "machine": "m"},
    started="2026-01-01T00:00:00+00:00", seconds=2.5,
)  # fmt: skip
BLOCK = TrialResult(
    "angular-11111111", 1, "ok", config({"method": "angular", "block_size": 3}),
    {"accuracy": 0.0, "parameters": 80, "layers_removed": "[4, 5, 6]", "wikitext2_ppl@512": math.inf},
    stages=[{"stage": "prune", "key": "abc", "seconds": 1.0, "reused": True}],
)  # fmt: skip
FAILED = TrialResult(
    "bi-22222222", 2, "failed", config({"method": "bi", "block_size": 2}, {"method": "lora"}), {},
    error="HealingDiverged: loss is nan,\n\"twice\"",
)  # fmt: skip


def test_a_result_is_the_same_after_json():
    for result in (DENSE, BLOCK, FAILED):
        assert TrialResult.from_json(result.to_json()) == result


def test_a_numpy_metric_does_not_lose_the_result():
    result = TrialResult("x", 1, "ok", {}, {"accuracy": np.float32(0.5), "parameters": np.int64(7)})  # type: ignore[dict-item]
    assert TrialResult.from_json(result.to_json()).metrics == {"accuracy": 0.5, "parameters": 7}
    assert to_frame([result]).dtypes[["accuracy", "parameters"]].astype(str).tolist() == ["float64", "int64"]


def test_a_row_is_flat_and_keeps_gaps():
    row = DENSE.to_row()
    assert list(row)[:4] == ["trial_number", "trial_id", "status", "error"]
    assert list(row)[-2:] == ["seconds", "started"]
    assert row["prune.method"] == "none"
    assert row["benchmark.tasks"] == '["piqa", "boolq"]'
    assert row["heal_energy_wh"] is None
    assert "prune.block_size" not in row


def test_table_from_parquet_and_from_results_are_equal(tmp_path: Path):
    for result in (FAILED, BLOCK, DENSE):
        write_result(tmp_path, result)
    from_results = load_trials(tmp_path)
    write_trials(tmp_path, read_results(tmp_path))
    pd.testing.assert_frame_equal(load_trials(tmp_path), from_results)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["trials", "trials.csv", "trials.parquet"]


def test_missing_is_missing_and_zero_is_zero():
    frame = to_frame([FAILED, BLOCK, DENSE])
    assert frame["trial_number"].tolist() == [0, 1, 2]
    assert frame["accuracy"].tolist()[:2] == [0.5, 0.0]
    assert frame["accuracy"].isna().tolist() == [False, False, True]
    assert frame["prune.block_size"].isna().tolist() == [True, False, False]
    assert str(frame["prune.block_size"].dtype) == "Int64"
    assert frame["heal_energy_wh"].isna().all()
    assert frame["wikitext2_ppl@512"][1] == math.inf


def test_columns_go_from_identity_to_config_to_metrics_to_time():
    columns = to_frame([DENSE, BLOCK, FAILED]).columns.tolist()
    assert columns[:4] == list(results.HEAD)
    assert columns[-2:] == list(results.TAIL)
    sections = [c.split(".")[0] for c in columns if "." in c]
    assert list(dict.fromkeys(sections)) == ["model", "calibration", "prune", "heal", "quantize", "benchmark"]
    assert columns.index("accuracy") > columns.index("benchmark.tasks")


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ([4, "auto", None], "str", ["4", "auto", None]),
        ([4, 0.5, None], "float64", [4.0, 0.5, None]),
        ([True, None, False], "boolean", [True, None, False]),
        ([True, 3, None], "str", ["true", "3", None]),
        ([1, 2, 3], "int64", [1, 2, 3]),
        ([2**70, 1, None], "str", [str(2**70), "1", None]),
        ([None, None, None], "float64", [None, None, None]),
        (["all-linear", ["q", "v"], None], "str", ["all-linear", '["q", "v"]', None]),
    ],
)
def test_mixed_columns_reach_parquet(tmp_path: Path, values: list[Any], dtype: str, expected: list[Any]):
    write_trials(tmp_path, [TrialResult(f"t{i}", i, "ok", {"x": {"y": v}}) for i, v in enumerate(values)])
    column = load_trials(tmp_path)["x.y"]
    assert str(column.dtype) == dtype
    assert [None if pd.isna(v) else v for v in column] == expected


def test_csv_reads_back(tmp_path: Path):
    write_trials(tmp_path, [DENSE, BLOCK, FAILED])
    table = pd.read_csv(tmp_path / "trials.csv")
    assert table["error"][2] == FAILED.error
    assert table["parameters"].isna().tolist() == [False, False, True]


def test_a_sweep_without_results_has_an_empty_table(tmp_path: Path):
    write_trials(tmp_path, [])
    table = load_trials(tmp_path)
    assert table.empty
    assert {"status", "trial_id", "seconds"} <= set(table.columns)


def test_config_of_a_row_is_an_experiment_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("greenprune.experiment._check_shape", lambda trial: None)  # it would look the model up
    for result in (DENSE, BLOCK, FAILED):
        loaded = load_experiment(write_result(tmp_path, result) / "config.yaml")
        assert loaded.trial().model_dump(mode="json") == result.config


def test_no_trials_is_an_error_that_names_other_runs(tmp_path: Path):
    (tmp_path / "demo" / "trials").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"neither.*greenprune sweep.*did you mean 'demo'"):
        load_trials(tmp_path / "dmo")


def test_a_broken_result_names_its_file(tmp_path: Path):
    write_result(tmp_path, DENSE)
    path = tmp_path / "trials" / DENSE.trial_id / "result.json"
    path.write_text(path.read_text()[:40])
    with pytest.raises(ConfigError, match=r"none-00000000/result\.json"):
        load_trials(tmp_path)


def test_a_file_uri_is_a_run(tmp_path: Path):
    write_trials(tmp_path / "demo", [DENSE])
    assert len(load_trials(f"file://{tmp_path}/demo/")) == 1
    with pytest.raises(ConfigError, match="end in the run's name"):
        load_trials("s3://bucket")


def test_a_trial_is_found_by_id_prefix_number_and_as_dense():
    trials = [
        TrialResult("none-0", 0, "ok", {"prune": {"method": "none"}}),
        TrialResult("bi-aa12", 1, "ok", {"prune": {"method": "bi"}}),
        TrialResult("bi-aa", 12, "ok", {"prune": {"method": "bi"}, "heal": {"method": "lora"}}),
        TrialResult("angular-aa", 2, "failed", {"prune": {"method": "angular"}}, error="oh"),
    ]
    for name, number in {"bi-aa": 12, "bi-aa1": 1, "an": 2, "dense": 0, "none-0": 0, "12": 12, 2: 2}.items():
        assert find_trial(trials, name).number == number
    with pytest.raises(ConfigError, match="unambiguously, got 'bi', which fits bi-aa, bi-aa12; give one of these ids"):
        find_trial(trials, "bi")
    for name in ("", "3", "bee-aa"):
        with pytest.raises(ConfigError, match="its id, the beginning of it, its number, or as dense, got"):
            find_trial(trials, name)
    with pytest.raises(ConfigError, match="a run without trials"):
        find_trial([], "dense")
