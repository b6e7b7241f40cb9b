"""A run watched from outside: what runs, what is left, and its logs as they grow."""

from __future__ import annotations

import dataclasses
import threading
import time
from pathlib import Path

import pytest
import yaml
from handmade_runs import ANGULAR, trial
from typer.testing import CliRunner

from greenprune.cli import app
from greenprune.errors import ConfigError
from greenprune.results import write_result
from greenprune.storage import Storage
from greenprune.sweep.status import Status
from greenprune.sweep.watch import look, watch_run

CONFIG = {
    "name": "r",
    "model": {"id": "nowhere"},
    "calibration": {"bos": "none"},
    "prune": {"method": "angular", "block_size": 1},
    "benchmark": {"bos": "none"},
    "sweep": {"space": {"prune.block_size": {"choice": [1, 2, 3]}}},
}
STAGES = [{"stage": "prune", "key": "k", "seconds": 2.0, "energy_j": 7200.0, "energy_kind": "estimated"}]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two of four trials have ended, one runs."""
    folder = tmp_path / "r"
    for number, energy in enumerate((2.0, 1.0)):
        result = trial(number, 0.8 - number / 10, energy, ANGULAR if number else None)
        write_result(folder, dataclasses.replace(result, stages=STAGES, seconds=1800.0))
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    Status(Storage(tmp_path), "r/trials/angular-now").show("heal")
    Status(Storage(tmp_path), "r/trials/angular-00000001").show("energy")  # it has ended since
    (folder / "trials" / "angular-now" / "log.txt").write_text("first\n")
    return folder


def test_what_runs_and_what_is_left(run: Path):
    seen = look(run)
    assert (len(seen.results), seen.total, seen.left, seen.over) == (2, 4, 2, False)
    assert list(seen.running) == ["angular-now"]
    assert seen.running["angular-now"].startswith("heal ")
    assert seen.hours_left == pytest.approx(1.0)
    assert seen.kwh_left == pytest.approx(0.002)
    assert seen.front == ["dense", "angular 4"]


def test_watching_ends_with_the_run(run: Path):
    seen: list[int] = []

    def each(now) -> None:
        seen.append(len(now.results))
        ended = trial(len(seen) + 1, 0.5, 0.5, ANGULAR)
        write_result(run, dataclasses.replace(ended, trial_id=["angular-now", "angular-4"][len(seen) - 1]))

    watch_run(run, lambda now: each(now) if len(now.results) < 4 else seen.append(4), every_s=0)
    assert seen == [2, 3, 4]


def test_the_commands(run: Path):
    shown = CliRunner().invoke(app, ["watch", str(run), "--once", "--html"])
    assert shown.exit_code == 0, shown.output
    for part in ("r: 2 of 4 trials ended", "about 60 min and 0.002 kWh", "angular-now heal", "front: dense, angular 4"):
        assert part in " ".join(shown.output.split())
    assert (run / "report.html").exists()
    assert CliRunner().invoke(app, ["logs", str(run), "angular-n"]).output == "first\n"


def test_a_log_is_followed_until_its_trial_has_ended(run: Path):
    folder = run / "trials" / "angular-now"

    def goes_on() -> None:
        time.sleep(0.7)
        with (folder / "log.txt").open("a") as log:
            log.write("second\n")
        (folder / "result.json").write_text("{}")

    thread = threading.Thread(target=goes_on)
    thread.start()
    assert CliRunner().invoke(app, ["logs", str(run), "angular-now", "-f"]).output == "first\nsecond\n"
    thread.join()


def test_what_cant_be_watched(run: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"must hold config\.yaml"):
        look(tmp_path / "none")
    (run / "config.yaml").write_text(yaml.safe_dump({key: value for key, value in CONFIG.items() if key != "sweep"}))
    with pytest.raises(ConfigError, match="only a sweep is watched"):
        look(run)
    call = CliRunner().invoke
    assert "named by its id or the beginning of it, got 'x'" in str(call(app, ["logs", str(run), "x"]).exception)
    assert "written once it begins" in str(call(app, ["logs", str(run), "angular-00000001"]).exception)
