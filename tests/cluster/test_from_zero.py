"""A real autoscaler that begins with a head alone: a sweep brings nodes, uses each for its role, lets them go."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from fake_cloud import FakeCloud, fake_cloud, node_type

from greenprune.results import load_trials

pytestmark = pytest.mark.slow

TYPES = {
    "prepare": node_type({"CPU": 1, "prepare": 1}, at_most=2),
    "meter": node_type({"CPU": 1, "energy_meter": 1}, at_most=1),
}
ALIVE = "import ray, sys; ray.init(sys.argv[1]); print(sum(node['Alive'] for node in ray.nodes()))"


def sweep(cloud: FakeCloud, path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "greenprune.cli", "sweep", str(path), "--address", cloud.address]
    return subprocess.run(command, env=cloud.environment, capture_output=True, text=True, timeout=1800)


def alive(cloud: FakeCloud) -> int:
    asked = [sys.executable, "-c", ALIVE, cloud.address]
    return int(subprocess.run(asked, env=cloud.environment, capture_output=True, text=True, check=True).stdout)


def stages_by_type(run: Path) -> dict[str, set[str | None]]:
    """For each stage the types of the nodes that it ran on, as the trials' logs and nodes.json say."""
    nodes = json.loads((run / "nodes.json").read_text())
    found: dict[str, set[str | None]] = {}
    for log in run.glob("trials/*/log.txt"):
        for stage, node_id in re.findall(r"INFO (\w+) runs on \S+ \((\w+)\)", log.read_text()):
            found.setdefault(stage, set()).add(nodes[node_id]["type"])
    return found


def test_a_sweep_grows_from_nothing_and_lets_the_nodes_go(tiny_experiment, tiny_experiment_file):
    """The head has cores of its own; the calibration pass is a group of two workers."""
    tiny_experiment["calibration"]["num_workers"] = 2
    tiny_experiment_file.write_text(yaml.safe_dump(tiny_experiment))
    run = Path(tiny_experiment["sweep"]["storage"]) / "tiny"
    with fake_cloud(TYPES, head={"CPU": 2}) as cloud:
        assert alive(cloud) == 1
        done = sweep(cloud, tiny_experiment_file)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "up to 4 at once" in done.stdout
        assert set(load_trials(run)["status"]) == {"ok"}
        assert stages_by_type(run) == {
            "collect": {"prepare"},
            "prune": {"prepare"},
            "accuracy": {"prepare"},
            "energy": {"meter"},
        }
        statistics = next(run.parent.glob("_stages/collect/*/statistics.json"))
        assert len(json.loads(statistics.read_text())["parameters_per_worker"]) == 2
        nodes = json.loads((run / "nodes.json").read_text())
        types = [str(node["type"]) for node in nodes.values()]  # one that idled went, and another may have come
        assert types.count("head") == 1
        assert types.count("prepare") >= 2
        assert set(types) == {"head", "meter", "prepare"}
        end = time.monotonic() + 180
        while alive(cloud) > 1:
            assert time.monotonic() < end, "idle nodes stay"


def test_what_no_node_type_holds_is_refused_before_a_node_starts(tiny_experiment, tiny_experiment_file):
    tiny_experiment["sweep"]["resources"] = {"prune": {"cpu": 4}}
    tiny_experiment_file.write_text(yaml.safe_dump(tiny_experiment))
    with fake_cloud(TYPES) as cloud:
        done = sweep(cloud, tiny_experiment_file)
        assert done.returncode == 2
        assert re.search(
            r"sweep.resources.prune must fit .*, got cpu 4.*, and the largest node \(\w+\) holds", done.stderr
        )
        assert alive(cloud) == 1
    assert not (Path(tiny_experiment["sweep"]["storage"]) / "tiny").exists()
