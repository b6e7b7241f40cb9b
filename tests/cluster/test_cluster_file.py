"""cluster.yaml is one that Ray's launcher accepts, and fits what the experiments ask for."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml
from paths import ROOT
from ray.autoscaler._private.util import prepare_config, validate_config

from greenprune.experiment import load_experiment

CLUSTER = yaml.safe_load((ROOT / "cluster.yaml").read_text())
COMMANDS = [command for key, value in CLUSTER.items() if key.endswith("_commands") for command in value]
SET_UP = [command for command in CLUSTER["setup_commands"] if "venv /" not in command and "pip install" not in command]
RAY_STARTS = [command for command in COMMANDS if " start " in command]


def test_launcher_accepts_it():
    validate_config(prepare_config(CLUSTER))


def test_head_runs_no_stage_and_metering_nodes_are_not_spot():
    types = CLUSTER["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0}
    meters = [node for node in types.values() if node["resources"].get("energy_meter")]
    assert meters
    assert all("InstanceMarketOptions" not in node["node_config"] for node in meters)


def test_dashboard_stays_on_the_head_and_the_token_travels():
    assert all("0.0.0.0" not in command for command in CLUSTER["head_start_ray_commands"])
    assert "~/.ray/auth_token" in CLUSTER["file_mounts"].values()


def test_thesis_study_finds_its_metering_node():
    asked = load_experiment(ROOT / "experiments" / "thesis_llama31_8b.yaml").sweep.resources.energy.custom
    assert any(
        all(node["resources"].get(name, 0) >= amount for name, amount in asked.items())
        for node in CLUSTER["available_node_types"].values()
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_whole(command):
    """YAML ends a plain scalar at ` #`, and the shell then waits for the closing quote."""
    checked = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    assert not checked.stderr


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """A node's home after the set-up commands that need no network; its `ray` prints its environment."""
    ray = tmp_path / "venv" / "bin" / "ray"
    ray.parent.mkdir(parents=True)
    ray.write_text("#!/bin/sh\nenv\n")
    ray.chmod(0o755)
    (tmp_path / "venv" / "bin" / "activate").write_text("")
    for name in (".bashrc", ".profile"):
        (tmp_path / name).touch()
    for command in SET_UP:
        run_at_home(command, tmp_path)
    return tmp_path


def run_at_home(command: str, home: Path) -> str:
    bare = {"HOME": str(home), "PATH": "/usr/bin:/bin", "RAY_HEAD_IP": "10.0.0.1"}
    at_home = command.replace("/home/ubuntu", str(home))
    done = subprocess.run(["bash", "-c", at_home], env=bare, capture_output=True, text=True, check=True)
    return done.stdout


def test_every_ray_start_and_login_shell_has_the_token_and_a_short_keepalive(node):
    assert len(RAY_STARTS) == 2
    for started in (*RAY_STARTS, "bash --login -c env"):
        environment = run_at_home(started, node).splitlines()
        assert "RAY_AUTH_MODE=token" in environment, started
        assert "HF_HOME=/shared/hub" in environment
        assert "RAY_grpc_client_keepalive_time_ms=10000" in environment
        assert "RAY_grpc_client_keepalive_timeout_ms=20000" in environment


def test_setting_up_twice_adds_nothing(node):
    before = (node / ".profile").read_text()
    for command in SET_UP:
        run_at_home(command, node)
    assert (node / ".profile").read_text() == before
