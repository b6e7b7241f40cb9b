"""Runs that nobody wants: a command gives what there is or says what is wrong, never a traceback or foreign markup."""

from __future__ import annotations

from pathlib import Path

import pytest
from handmade_runs import EVIL, ODD
from typer.testing import CliRunner

from greenprune.cli import app
from greenprune.errors import GreenpruneError
from greenprune.results import write_trials

REFUSED = {
    "report": (),
    "trials": (),
    "table": ("all failed", "no trials"),
    "pareto": ("all failed", "no trials", "no front"),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("command", REFUSED)
def test_an_odd_run(command: str, kind: str, tmp_path: Path):
    write_trials(tmp_path / "r", ODD[kind]())
    done = CliRunner().invoke(app, [command, str(tmp_path / "r")])
    if kind in REFUSED[command]:
        assert isinstance(done.exception, GreenpruneError), done.exception
    else:
        assert (done.exit_code, done.exception) == (0, None)
    if command == "report":
        assert EVIL not in (tmp_path / "r" / "report.html").read_text()


@pytest.mark.parametrize("command", [*REFUSED, "watch"])
def test_what_is_no_run_is_refused(command: str, tmp_path: Path):
    done = CliRunner().invoke(app, [command, str(tmp_path)])
    assert isinstance(done.exception, GreenpruneError)
    assert "a run must hold" in str(done.exception)
