"""Tables as papers print theirs, and beside what they print."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from statistics import fmean

import pytest
from handmade_runs import ANGULAR, results, trial
from typer.testing import CliRunner

from greenprune.cli import app
from greenprune.errors import ConfigError
from greenprune.report.paper_tables import STYLES, paper_table
from greenprune.report.published import PAPERS, SEVEN_TASKS
from greenprune.results import write_trials


def scores(value: float) -> dict[str, float]:
    return {f"{task}_acc": value for task in SEVEN_TASKS}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    pruned = {"method": "llm_pruner", "ratio": 0.25, "importance": "param_first"}
    dense = trial(0, 0.8, 2.0, parameters_removed_ratio=0.0, energy_wh_tasks=2.0, **scores(0.8))
    other = trial(1, 0.6, 1.0, pruned, parameters_removed_ratio=0.2, energy_wh_tasks=1.0, **scores(0.6))
    for each in (dense, other):
        each.config["model"]["id"] = "huggyllama/llama-7b"
    write_trials(tmp_path / "r", [other, dense, *results()[-1:]])
    return tmp_path / "r"


def rows_of(run: Path, style: str, beside: str | None = None) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(paper_table(run, style, "csv", beside))))


@pytest.mark.parametrize("style", STYLES)
def test_tasks_are_in_the_papers_order_and_dense_comes_first(style: str, run: Path):
    dense, pruned = rows_of(run, style)
    tasks = [name for name in dense if name in {*SEVEN_TASKS, "rte"}]
    assert tasks[: len(STYLES[style].tasks)] == list(STYLES[style].tasks)
    assert (dense["method"], dense["mean"], dense["boolq"]) == ("dense", "80.00", "80.00")
    assert (pruned["method"], pruned["ratio"], pruned["mean"]) == ("llm_pruner 25 %", "20.0%", "60.00")
    assert ("w_ppl@512" in dense) == STYLES[style].texts


def test_the_ratio_to_dense_and_the_energy(run: Path):
    dense, pruned = rows_of(run, "greenpruning")
    assert (dense["ratio to dense"], pruned["ratio to dense"], pruned["Wh"]) == ("100.0%", "75.0%", "1")


def test_beside_published_values(run: Path):
    rows = rows_of(run, "llm_pruner", "llm_pruner")[2:]
    published = {row["method"].split(" (")[0]: row for row in rows if row["ratio"]}
    assert published["Element¹"]["boolq"] == "57.06"
    less = next(row for row in rows if row["method"] == "llm_pruner 25 % − Element¹")
    assert (less["boolq"], less["mean"]) == ("+2.94", "+3.31")
    assert not any("Vector" in row["method"] and "−" in row["method"] for row in rows)


def test_another_model_has_no_difference(tmp_path: Path):
    for number, model in enumerate(("pypi:smollm2-135m", "huggyllama/llama-7b")):
        dense = trial(0, 0.8, 2.0, parameters_removed_ratio=0.0, **scores(0.8))
        dense.config["model"]["id"] = model
        write_trials(tmp_path / model, [dense])
        less = [row for row in rows_of(tmp_path / model, "llm_pruner", "llm_pruner") if "−" in row["method"]]
        assert len(less) == number, model


@pytest.mark.parametrize("paper", PAPERS)
def test_published_means_are_the_means_of_what_is_published(paper: str):
    """A slip of the pen in a score shows in its row's mean."""
    for row in PAPERS[paper].rows:
        assert fmean(row.scores.values()) == pytest.approx(row.mean, abs=0.006), row.name
    assert "arXiv" in PAPERS[paper].source


def test_latex_escapes_what_trials_say(tmp_path: Path):
    write_trials(tmp_path / "r", [trial(0, 0.8, 2.0), trial(1, 0.7, 1.0, {"method": r"a_b&c\d", "ratio": 0.1})])
    text = paper_table(tmp_path / "r", layout="latex")
    assert r"a\_b\&c\textbackslash{}d 10 \%" in text
    assert text.startswith(r"\begin{tabular}{llrrrrrrrrrr}")
    assert len({line.count("&") - line.count(r"\&") for line in text.splitlines() if line.endswith(r"\\")}) == 1


def test_markdown_is_a_table(run: Path):
    lines = paper_table(run).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[1].startswith("| --- | --- | ---: |")


def test_what_cant_be_printed_is_said(run: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="style must be known, got 'wnda'; did you mean 'wanda'"):
        paper_table(run, "wnda")
    with pytest.raises(ConfigError, match="known paper, got 'x'"):
        paper_table(run, beside="x")
    write_trials(tmp_path / "failed", results()[-1:])
    with pytest.raises(ConfigError, match="finished trials that answered tasks, got none"):
        paper_table(tmp_path / "failed")


def test_the_commands(run: Path, tmp_path: Path):
    write_trials(tmp_path / "other", [trial(0, 0.8, 2.0), trial(1, 0.7, 1.0, ANGULAR)])
    call = CliRunner().invoke
    done = call(app, ["table", str(run), "--style", "llm_pruner", "--format", "latex", "--beside", "paper:llm_pruner"])
    assert done.exit_code == 0, done.output
    assert r"\bottomrule" in done.output
    assert call(app, ["plot", str(run), "front", str(tmp_path / "f.svg")]).exit_code == 0
    assert (tmp_path / "f.svg").exists()
    assert call(app, ["report", str(run), str(tmp_path / "other")]).output.strip() == str(run / "report.html")
    assert "Runs beside each other" in (run / "report.html").read_text()
