"""The files of Ray's launcher are ones that it accepts, their commands are whole, and they fit the experiments."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from paths import ROOT
from ray.autoscaler._private.util import prepare_config, validate_config

from greenprune.experiment import load_experiment

FILES = {
    "aws": ROOT / "cluster.yaml",
    "gcp": ROOT / "scripts" / "cluster" / "gcp.yaml",
    "onprem": ROOT / "scripts" / "cluster" / "onprem.yaml",
}
CLUSTERS = {name: yaml.safe_load(path.read_text()) for name, path in FILES.items()}
IN_CLOUDS = [name for name, cluster in CLUSTERS.items() if "available_node_types" in cluster]
NEEDS_NETWORK = ("-m venv", "pip install")


def commands_of(cluster: dict[str, Any]) -> list[str]:
    return [command for key, value in cluster.items() if key.endswith("_commands") for command in value]


def ray_starts_of(cluster: dict[str, Any]) -> list[str]:
    return [command for command in commands_of(cluster) if " start " in command]


def set_up_of(cluster: dict[str, Any]) -> list[str]:
    return [each for each in cluster["setup_commands"] if not any(needs in each for needs in NEEDS_NETWORK)]


@pytest.mark.parametrize("name", CLUSTERS)
def test_launcher_accepts_it(name):
    validate_config(prepare_config(CLUSTERS[name]))


@pytest.mark.parametrize("name", IN_CLOUDS)
def test_head_runs_no_stage_and_metering_nodes_are_not_spot(name):
    types = CLUSTERS[name]["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0}
    meters = [node for node in types.values() if node["resources"].get("energy_meter")]
    assert meters
    assert all("spot" not in str(node["node_config"]).lower() for node in meters)
    assert "spot" in str(types["prepare"]["node_config"]).lower()


@pytest.mark.parametrize("name", CLUSTERS)
def test_dashboard_stays_on_the_head_and_the_token_travels(name):
    cluster = CLUSTERS[name]
    head = next(command for command in ray_starts_of(cluster) if "--head" in command)
    assert "--dashboard-host=127.0.0.1" in head
    assert "--num-cpus=0" in head
    assert "~/.ray/auth_token" in cluster["file_mounts"].values()


@pytest.mark.parametrize("name", IN_CLOUDS)
def test_thesis_study_finds_its_metering_node(name):
    asked = load_experiment(ROOT / "experiments" / "thesis_llama31_8b.yaml").sweep.resources.energy.custom
    assert any(
        all(node["resources"].get(resource, 0) >= amount for resource, amount in asked.items())
        for node in CLUSTERS[name]["available_node_types"].values()
    )


def test_machines_of_ones_own_get_the_autoscaler_that_brings_them_up():
    """Ray's second one, which `ray up` asks for, starts no worker on them."""
    head = next(command for command in ray_starts_of(CLUSTERS["onprem"]) if "--head" in command)
    assert head.index("RAY_enable_autoscaler_v2=0") < head.index("ray start")


@pytest.mark.parametrize("name", CLUSTERS)
def test_every_command_is_whole(name):
    """YAML ends a plain scalar at ` #`, and the shell then waits for the closing quote."""
    for command in commands_of(CLUSTERS[name]):
        checked = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stderr
        assert not checked.stderr


@pytest.fixture(params=CLUSTERS)
def node(request, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A node's home after the set-up commands that need no network; its `ray` prints its environment."""
    ray = tmp_path / "venv" / "bin" / "ray"
    ray.parent.mkdir(parents=True)
    ray.write_text("#!/bin/sh\nenv\n")
    ray.chmod(0o755)
    (tmp_path / "venv" / "bin" / "activate").write_text("")
    for name in (".bashrc", ".profile"):
        (tmp_path / name).touch()
    cluster = CLUSTERS[request.param]
    for command in set_up_of(cluster):
        run_at_home(command, tmp_path)
    return tmp_path, cluster


def run_at_home(command: str, home: Path) -> str:
    bare = {"HOME": str(home), "PATH": "/usr/bin:/bin", "RAY_HEAD_IP": "10.0.0.1"}
    at_home = command.replace("/home/ubuntu", str(home))
    done = subprocess.run(["bash", "-c", at_home], env=bare, capture_output=True, text=True, check=True)
    return done.stdout


def test_every_ray_start_and_login_shell_has_the_token_and_a_short_keepalive(node):
    home, cluster = node
    starts = ray_starts_of(cluster)
    assert len(starts) == 2
    for started in (*starts, "bash --login -c env"):
        environment = run_at_home(started, home).splitlines()
        assert "RAY_AUTH_MODE=token" in environment, started
        assert "HF_HOME=/shared/hub" in environment
        assert "RAY_grpc_client_keepalive_time_ms=10000" in environment
        assert "RAY_grpc_client_keepalive_timeout_ms=20000" in environment


def test_setting_up_twice_adds_nothing(node):
    home, cluster = node
    before = (home / ".profile").read_text()
    for command in set_up_of(cluster):
        run_at_home(command, home)
    assert (home / ".profile").read_text() == before
