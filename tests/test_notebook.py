"""experiments/analysis.ipynb, run cell by cell on a small run that is kept in the tests."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT
from replayed_run import TASKS, replayed_run

NOTEBOOK = json.loads((ROOT / "experiments" / "analysis.ipynb").read_text())


def run_cell(source: str, names: dict[str, Any]) -> Any:
    """Run a cell, and give the value of its last expression, as a notebook shows it."""
    body = ast.parse(source).body
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names) if last else None


def test_from_frame_to_front_to_paired_test_to_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    run = replayed_run(tmp_path / "runs" / "small", 16)
    monkeypatch.setenv("GREENPRUNE_RUN", str(run))
    monkeypatch.chdir(tmp_path)
    code = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert len(code) == 10
    names: dict[str, Any] = {}
    shown = [run_cell(source, names) for source in code]
    assert len(shown[0]) == 5
    assert {"accuracy", "energy_ratio"} <= set(shown[2].columns)
    assert {task for task, *_ in shown[4]} == set(TASKS)
    assert set(shown[5].columns) == set(TASKS)
    assert (tmp_path / "layers.pdf").read_bytes().startswith(b"%PDF")
    assert "<svg" in (tmp_path / "curves.svg").read_text()
    assert r"\toprule" in capsys.readouterr().out


def test_it_is_kept_without_outputs():
    assert all(not cell.get("outputs") for cell in NOTEBOOK["cells"])
