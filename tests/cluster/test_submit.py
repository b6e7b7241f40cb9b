"""`greenprune submit` against a stand-in for Ray's launcher and job API that keeps jobs in a folder (tests/cluster/
test_three_hosts.py has the real ones)."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import yaml
from stub_sweep import stub_experiment, stub_model

from greenprune.cli import main
from greenprune.cluster.launcher import Launcher
from greenprune.errors import ConfigError, SweepError
from greenprune.experiment import load_experiment
from greenprune.sweep.submit import Job

# `ray VERB [options] CLUSTER …`: notes what it is told, answers `ray job …` as Ray does, copies as rsync would.
RAY = """#!/usr/bin/env bash
here=$PWD
cd "$(dirname "$0")/.."
verb=$1; shift
while [[ $1 == --* ]]; do shift 2; done
shift
echo "$verb $*" >> said
[ -e unreachable ] && { echo "RuntimeError: Head node of cluster (x) not found!" >&2; exit 1; }
job=$(grep -o '[a-z]*-[0-9a-f]\\{8\\}' <<< "$*" | head -n 1)
case "$verb $1" in
  rsync-up*) cp "$1" "$(basename "$2")" ;;
  rsync-down*) cp -r "head$1." "$here/$2" ;;
  *"job status"*)
    [ -e silent ] && { echo "ConnectionError: Failed to connect to Ray at address: http://127.0.0.1:8265."; exit 0; }
    [ -e state ] || { echo "RuntimeError: Request failed with status code 404: Job $job does not exist."; exit 0; }
    case "$(cat state)" in
      RUNNING) echo "Status for job '$job': RUNNING" ;;
      STOPPED) echo "Job '$job' was stopped" ;;
      *) echo "Job '$job' $(cat state)" ;;
    esac ;;
  *"job delete"*) rm state ;;
  *"job submit"*) [ -e state ] && exit 1; echo RUNNING > state ;;
  *"job logs"*) echo "the sweep's log"; echo "${END:-succeeded}" > state ;;
esac
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch) -> Path:
    """A folder with the stand-in beside the interpreter; the working directory is another one."""
    binaries = tmp_path / "ray" / "bin"
    binaries.mkdir(parents=True)
    (binaries / "ray").write_text(RAY)
    (binaries / "ray").chmod(0o755)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "executable", str(binaries / "python"))
    Path("cluster.yaml").write_text("cluster_name: x\nprovider: {type: aws}\n")
    return tmp_path / "ray"


@pytest.fixture
def study(machine) -> Path:
    experiment = stub_experiment(stub_model(machine / "model"), "/shared/runs")
    path = Path("stub.yaml").absolute()
    path.write_text(yaml.safe_dump(experiment.to_dict()))
    return path


def said(machine: Path) -> list[str]:
    return [line.split("'")[0].split(" stub-")[0] for line in (machine / "said").read_text().splitlines()]


def submit(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["greenprune", "submit", *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    return int(left.value.code or 0)


def test_a_sweep_is_shipped_started_followed_and_fetched(machine, study, monkeypatch, capfd):
    run = machine / "head" / "shared" / "runs" / "stub"
    run.mkdir(parents=True)
    (run / "trials.csv").write_text("trial_id\n")
    assert submit(monkeypatch, "stub.yaml", "prune.ratio=0.4", "--watch", "--fetch") == 0
    shown = capfd.readouterr()
    assert "is started" in shown.out
    assert "the sweep's log" in shown.out
    assert ": succeeded" in shown.out
    assert Path("runs/stub/trials.csv").read_text() == "trial_id\n"
    shipped = next(machine.glob("stub-*.yaml"))
    assert load_experiment(shipped) == load_experiment(study, ["prune.ratio=0.4"])
    ran = [line for line in shown.err.splitlines() if line.startswith("$ ray ")]
    assert len(ran) == len((machine / "said").read_text().splitlines()), "what it runs is shown"
    assert any(
        "ray job submit" in line
        and re.search(rf"GREENPRUNE_COMMIT=\S* greenprune sweep ~/{shipped.name} --address auto", line)
        for line in ran
    )


def test_the_same_command_finds_the_job_that_runs(machine, study, monkeypatch, capfd):
    assert submit(monkeypatch, "stub.yaml") == 0
    first = said(machine)
    assert submit(monkeypatch, "stub.yaml") == 0
    assert "runs already" in capfd.readouterr().out
    assert said(machine)[len(first) :] == ["exec ray job status", "exec ray job status"]


@pytest.mark.parametrize("state", ["succeeded", "failed", "STOPPED"])
def test_a_job_that_ended_is_started_again(machine, study, monkeypatch, state):
    (machine / "state").write_text(state)
    assert submit(monkeypatch, "stub.yaml") == 0
    assert (machine / "state").read_text() == "RUNNING\n"


def test_a_failed_sweep_is_told_by_the_exit_code(machine, study, monkeypatch, capfd):
    monkeypatch.setenv("END", "failed")
    assert submit(monkeypatch, "stub.yaml", "--watch") == 1
    assert ": failed" in capfd.readouterr().out


def test_the_experiment_decides_the_jobs_name(machine, study):
    launcher = Launcher(Path("cluster.yaml"))
    plain, again, other = (
        Job(load_experiment(study, overrides), launcher).id for overrides in ([], [], ["prune.ratio=0.4"])
    )
    assert plain == again != other
    assert plain.startswith("stub-")


@pytest.mark.parametrize("storage", ["runs", "./runs", "~/runs"])
def test_a_storage_of_the_head_alone_is_refused(machine, study, storage):
    experiment = load_experiment(study, [f"sweep.storage={storage}"])
    with pytest.raises(ConfigError, match=r"sweep\.storage must be a folder that all nodes share, .*; e\.g\."):
        Job(experiment, Launcher(Path("cluster.yaml")))


def test_a_trial_without_a_sweep_is_refused(machine, study):
    experiment = load_experiment(study).model_copy(update={"sweep": None})
    with pytest.raises(ConfigError, match="a job needs a sweep section"):
        Job(experiment, Launcher(Path("cluster.yaml")))


@pytest.mark.parametrize("name", ["unreachable", "silent"])
def test_a_cluster_that_is_not_up_is_refused(machine, study, monkeypatch, capfd, name):
    (machine / name).touch()
    assert submit(monkeypatch, "stub.yaml") == 2
    problem = capfd.readouterr().err
    assert "error: " in problem
    assert "ray up" in problem
    assert "Traceback" not in problem


@pytest.mark.parametrize("text", [None, "a: [", "cluster_name: x", "[]", ""])
def test_what_is_no_cluster_file_is_refused(machine, study, text):
    path = Path("other.yaml")
    if text is not None:
        path.write_text(text)
    with pytest.raises(SweepError, match=r"--cluster must be a cluster file of Ray's launcher, got other\.yaml"):
        Launcher(path).note_head()


def test_a_machine_without_the_launcher_says_what_to_install(machine, study, monkeypatch):
    (machine / "bin" / "ray").unlink()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SweepError, match=r"pip install 'ray\[default\]'"):
        Job(load_experiment(study), Launcher(Path("cluster.yaml"))).state()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Ray leaves its state file open
def test_the_head_of_machines_of_ones_own_is_known_where_ray_up_never_ran(machine, tmp_path, monkeypatch):
    monkeypatch.setattr("ray.autoscaler._private.local.config.get_default_ray_temp_dir", lambda: str(tmp_path / "ray"))
    Path("own.yaml").write_text(
        "cluster_name: own\nprovider: {type: local, head_ip: 192.0.2.1, worker_ips: [192.0.2.2]}\n"
    )
    Launcher(Path("own.yaml")).note_head()
    noted = yaml.safe_load((tmp_path / "ray" / "cluster-own.state").read_text())
    assert noted["192.0.2.1"]["state"] == "running"
    assert noted["192.0.2.1"]["tags"]["ray-node-status"] == "up-to-date"
    assert noted["192.0.2.2"]["state"] == "terminated"
