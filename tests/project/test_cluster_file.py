"""cluster.yaml is one that Ray's launcher accepts, and fits what the experiments ask for."""

from __future__ import annotations

import yaml
from paths import ROOT
from ray.autoscaler._private.util import prepare_config, validate_config

from greenprune.experiment import load_experiment

CLUSTER = yaml.safe_load((ROOT / "cluster.yaml").read_text())


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
