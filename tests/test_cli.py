"""The commands as a user types them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from greenprune.cli import app, main
from greenprune.errors import ConfigError
from greenprune.results import TrialResult, write_result, write_trials

runner = CliRunner()


@pytest.fixture
def run_folder(tmp_path):
    """A finished run of three trials, one failed."""
    results = []
    for number, (method, accuracy, energy) in enumerate([("none", 0.6, 2.0), ("angular", 0.5, 1.5), ("bi", 0.4, 1.8)]):
        config = {"model": {"id": "x"}, "prune": {"method": method}, "heal": {"method": "none"}}
        metrics = {"accuracy": accuracy, "energy_j_per_token": energy, "energy_kind": "estimated", "machine": "m"}
        results.append(TrialResult(f"{method}-1", number, "ok", config, metrics))
    results.append(TrialResult.failed("bi-2", 3, {"model": {"id": "x"}, "prune": {"method": "bi"}}, "heal: oh", 0.0))
    for result in results:
        write_result(tmp_path / "r", result)
    write_trials(tmp_path / "r", results)
    return tmp_path / "r"


def test_trials_as_table_csv_and_json(run_folder):
    assert "angular-1" in runner.invoke(app, ["trials", str(run_folder)]).output
    csv = runner.invoke(app, ["trials", str(run_folder), "--csv"]).output
    assert csv.splitlines()[0].startswith("trial_number,trial_id,status")
    assert len(csv.splitlines()) == 5
    rows = json.loads(runner.invoke(app, ["trials", str(run_folder), "--json"]).output)
    assert [row["status"] for row in rows] == ["ok", "ok", "ok", "failed"]


def test_pareto_prints_the_front_and_says_estimated(run_folder):
    output = runner.invoke(app, ["pareto", str(run_folder)]).output
    assert "angular-1" in output
    assert "none-1" in output
    assert "bi-1" not in output
    assert "estimated" in output
    above = runner.invoke(app, ["pareto", str(run_folder), "--min-accuracy", "0.55"]).output
    assert "angular-1" not in above


def test_tables_show_what_the_columns_declare_and_trials_no_markup(tmp_path):
    metrics = {"parameters": 134515008, "accuracy": 0.5, "x_acc": 0.25, "energy_j_per_token": 2.0}
    metrics |= {"energy_ratio": 1.0, "energy_wh_tasks": 3.0, "tasks_energy_kind": "contaminated?"}
    config = {"model": {"id": "x"}, "prune": {"method": "[red]m[/blue]"}}
    ok = TrialResult("t-1", 1, "ok", config, metrics)
    write_trials(tmp_path / "r", [ok, TrialResult.failed("t-2", 2, config, "must be a list, got [/oops]", 0.0)])
    output = runner.invoke(app, ["trials", str(tmp_path / "r")]).output
    for cell in ("134,515,008", "0.500", "0.250", "1.000", "[red]m[/blue]", "[/oops]", "÷ dense"):
        assert cell in output
    front = runner.invoke(app, ["pareto", str(tmp_path / "r"), "--objectives", "energy_wh_tasks:min"])
    assert "energies are contaminated?" in front.output, "the tasks' own kind"


def test_half_measured_half_estimated_is_refused_unless_asked(tmp_path):
    results = []
    for number in range(4):
        kind = "measured" if number % 2 else "estimated"
        config = {"model": {"id": "x"}, "prune": {"method": "bi" if number else "none"}, "heal": {"method": "none"}}
        metrics = {"accuracy": 0.6 - 0.1 * number, "energy_j_per_token": 5.0 - number, "energy_kind": kind}
        metrics |= {"energy_ratio": 1.0 - 0.1 * number, "machine": "m"}
        results.append(TrialResult(f"t-{number}", number, "ok", config, metrics))
    write_trials(tmp_path / "half", results)
    refused = subprocess.run(
        [sys.executable, "-m", "greenprune.cli", "pareto", str(tmp_path / "half")], capture_output=True, text=True
    )
    assert refused.returncode == 2
    for part in ("all measured or all estimated", "trials[trials.energy_kind == 'measured']", "--mixed"):
        assert part in refused.stderr
    mixed = runner.invoke(app, ["pareto", str(tmp_path / "half"), "--mixed"])
    assert mixed.exit_code == 0
    assert "energy_ratio (min)" in mixed.output
    assert "t-3" in mixed.output


def test_report_is_one_file(run_folder):
    assert runner.invoke(app, ["report", str(run_folder)]).exit_code == 0
    page = (run_folder / "report.html").read_text()
    assert "<svg" in page
    assert 'src="http' not in page
    assert "ESTIMATE" in page.upper()


def test_schema_is_json():
    assert "properties" in json.loads(runner.invoke(app, ["schema"]).output)


def test_doctor_ends_well_and_names_remedies():
    result = runner.invoke(app, ["doctor"])
    assert result.exit_code == 0
    for part in ("python", "gpu", "cpu energy", "ray", "cache"):
        assert part in result.output


def test_trial_prints_its_metrics(tiny_experiment_file, tmp_path):
    result = runner.invoke(app, ["trial", str(tiny_experiment_file), "heal.method=none"])
    assert result.exit_code == 0, result.output
    assert "held_ppl@16" in result.output
    assert (tmp_path / "runs" / "tiny-trials" / "trials.csv").is_file()


def test_errors_are_one_message_without_traceback():
    done = subprocess.run(
        [sys.executable, "-m", "greenprune.cli", "trial", "nowhere.yaml"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: nowhere.yaml: an experiment file must exist")
    assert "Traceback" not in done.stderr


def test_main_leaves_other_errors_alone(monkeypatch):
    import greenprune.cli as cli

    monkeypatch.setattr(cli, "app", lambda: (_ for _ in ()).throw(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        main()
    monkeypatch.setattr(cli, "app", lambda: (_ for _ in ()).throw(ConfigError("rule")))
    with pytest.raises(SystemExit):
        main()
