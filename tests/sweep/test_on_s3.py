"""A sweep on an object store (moto's S3): two nodes and a head that share nothing else, a node lost, another head."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import yaml
from s3_here import S3, s3_here, use

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]
MB = 10**6
STORAGE = "s3://bucket/runs"
SWEEP = """
import sys, ray
import greenprune as gp
address, experiment, resume = sys.argv[1:]
ray.init(address=address, log_to_driver=False, logging_level="ERROR")
run = gp.run_sweep(gp.load_experiment(experiment), resume=bool(resume))
sys.exit(bool(run.failed) or run.interrupted)
"""
NUMBERS = ("trial_number", "trial_id", "status", "held_ppl@16", "parameters_removed_ratio", "checkpoint_bytes")


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[S3]:
    with s3_here(tmp_path / "server") as s3:
        use(s3, monkeypatch)
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        yield s3


@pytest.fixture
def experiment(tiny_experiment, tmp_path) -> Path:
    """Five trials, each of whose checkpoints is larger than what a head may be given."""
    from tiny import tiny_config
    from transformers import LlamaForCausalLM

    LlamaForCausalLM(tiny_config(vocab_size=50_000)).save_pretrained(tiny_experiment["model"]["id"])
    tiny_experiment["heal"] = {"method": "none"}
    tiny_experiment["benchmark"]["energy"] = None
    tiny_experiment["sweep"] |= {
        "space": {"prune.method": {"choice": ["angular", "bi"]}, "prune.block_size": {"choice": [1, 2]}},
        "objectives": {"held_ppl@16": "min"},
        "storage": STORAGE,
        "resources": {stage: {"cpu": 1} for stage in ("collect", "prune", "accuracy")},
        "stage_retries": 3,
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_experiment))
    return path


class Cluster:
    """A head without cores and two nodes, each with a cache of its own."""

    def __init__(self, folder: Path) -> None:
        from ray.cluster_utils import Cluster as Nodes

        self.folder = folder
        self.head = {"GREENPRUNE_CACHE": str(folder / "head")}
        self.nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 0, "env_vars": self.head})
        self.workers = [
            self.nodes.add_node(num_cpus=1, env_vars={"GREENPRUNE_CACHE": str(folder / name)})
            for name in ("one", "two")
        ]

    def sweep(self, experiment: Path, cache: Path, resume: bool = False) -> subprocess.Popen[str]:
        """As `greenprune sweep --address …`, but on a busy machine it may take long to join."""
        command = [sys.executable, "-c", SWEEP, self.nodes.address, str(experiment), "yes" if resume else ""]
        environment = os.environ | {"GREENPRUNE_CACHE": str(cache)}
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def cluster(server, tmp_path) -> Iterator[Cluster]:
    made = Cluster(tmp_path / "caches")
    yield made
    made.nodes.shutdown()


def test_a_node_is_lost_and_another_head_goes_on(server, cluster, experiment, tmp_path, monkeypatch):
    first = cluster.sweep(experiment, tmp_path / "driver")
    _until(lambda: first.poll() is not None or _rows(tmp_path / "look") >= 2, 500)
    cluster.nodes.remove_node(cluster.workers[0])
    output, _ = first.communicate(timeout=600)
    assert first.returncode == 0, output
    table = _table(tmp_path / "after")
    assert list(table["status"]) == ["ok"] * 5

    per_trial = (_bytes(cluster.folder / "head") + _bytes(tmp_path / "driver")) / 5  # of the trials, of the command
    largest = table["checkpoint_bytes"].max()
    print(f"to the head: {per_trial / MB:.2f} MB a trial, a checkpoint has {largest / MB:.1f} MB")
    assert largest > 5 * MB
    assert per_trial < 5 * MB

    before = server.asked("/manifest.json")["PUT"]
    second = cluster.sweep(experiment, tmp_path / "another driver", resume=True)
    output, _ = second.communicate(timeout=300)
    assert second.returncode == 0, output
    assert "5 of 5 trials are done, going on" in output
    pd.testing.assert_frame_equal(_table(tmp_path / "again"), table)
    assert server.asked("/manifest.json")["PUT"] == before, "nothing was made again"

    names = _names(tmp_path / "names")
    assert any("/logs/prune." in name for name in names)
    assert any(name.endswith("status.json") for name in names)
    assert not any("/tune/" in name or ".partial/" in name for name in names)
    made = Counter(name.split("/")[1] for name in names if name.endswith("manifest.json"))
    assert made == {"collect": 1, "prune": 4, "accuracy": 5}


def _table(cache: Path) -> pd.DataFrame:
    """The table in the bucket, as a machine with an empty cache reads it; what two runs of a trial have in common."""
    code = f"import greenprune as gp; gp.load_trials({f'{STORAGE}/tiny'!r}).to_json({str(cache) + '.json'!r})"
    environment = os.environ | {"GREENPRUNE_CACHE": str(cache)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    return pd.read_json(f"{cache}.json")[list(NUMBERS)]


def _names(cache: Path) -> list[str]:
    code = f"from greenprune.storage import Storage; print(*Storage({STORAGE!r}).files(''))"
    environment = os.environ | {"GREENPRUNE_CACHE": str(cache)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    return done.stdout.split()


def _rows(cache: Path) -> int:
    return sum(name.endswith("result.json") for name in _names(cache))


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _until(holds, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came"
        time.sleep(5)
