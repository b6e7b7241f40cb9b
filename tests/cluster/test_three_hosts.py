"""A real cluster of three hosts (tests/hosts.py), brought up by `ray up scripts/cluster/onprem.yaml`, used by
`greenprune submit` from a fourth, and broken in all the ways in which clusters break. `scripts/cluster_test` runs it.

After each fault: all trials are there and are what the same trials are elsewhere, no finished stage was run twice, and
no stage ran on the head.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from hosts import NETWORK, UID, USER, Hosts, lacking, wait_for
from paths import ROOT
from tiny import tiny_config, write_text

from greenprune.config import STAGES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
WORKERS = ("one", "two")
SHARED = "/shared/greenprune"
CLUSTER = f"/home/{USER}/cluster.yaml"
BRIEF = {"prompt_len": 8, "decode_len": 2, "min_seconds": 0.05, "repeats": 2, "max_foreign_load": 1.0}
LONG_ENERGY = {**BRIEF, "min_seconds": 6}  # four windows
HEAL = {"method": "lora", "warmup_steps": 0, "seq_len": 16, "gradient_accumulation": 1, "validation_samples": 2}


class Cluster:
    """Three hosts under `ray up`, and a laptop."""

    def __init__(self, hosts: Hosts) -> None:
        self.hosts, self.head, self.laptop = hosts, hosts["head"], hosts["laptop"]

    def experiment(self, name: str, energy: dict[str, Any] = BRIEF, **sections: Any) -> Path:
        """A file on the laptop: a sweep of three trials over the tiny model, which shares no artifact with another."""
        data, seed = f"{SHARED}/data", zlib.crc32(name.encode()) % 10**6
        experiment = {
            "name": name,
            "model": {"id": f"{data}/tiny"},
            "calibration": {"dataset": f"{data}/train.jsonl", "num_samples": 4, "seq_len": 16, "seed": seed},
            "prune": {"method": "angular", "block_size": 1},
            "heal": {"method": "none"},
            "benchmark": {"perplexity": [f"{data}/held.jsonl@16"], "energy": {**energy, "seed": seed}, "seed": seed},
            "sweep": {
                "space": {"prune.block_size": {"choice": [1, 2]}},
                "objectives": {"held_ppl@16": "min", "energy_j_per_token": "min"},
                "storage": f"{SHARED}/runs",
            },
        }
        for section, changes in sections.items():
            experiment[section] = {**experiment.get(section, {}), **changes}
        path = self.laptop_path(f"/home/{USER}/{name}.yaml")
        path.write_text(yaml.safe_dump(experiment))
        path.chmod(0o644)
        return path

    def laptop_path(self, path: str) -> Path:
        return Path(f"/proc/{self.laptop.pid}/root{path}")

    @contextmanager
    def sweeping(self, name: str, ends: str = "succeeded") -> Iterator[subprocess.Popen[str]]:
        """`greenprune submit … --watch --fetch` is running; at the end of the block its job has ended so."""
        running = subprocess.Popen(
            self.laptop.enter("bash", "-lc", submit(name)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            yield running
            said = running.communicate(timeout=1500)[0]
        finally:
            if running.poll() is None:  # the test failed
                running.kill()
                running.communicate()
                self.head.run("pkill -9 -f '[g]reenprune sweep'", check=False)
        assert f": {ends}" in said, said
        assert (running.returncode == 0) == (ends == "succeeded"), said

    def wait_for_stage(self, *stages: str, among: tuple[str, ...] = WORKERS, seconds: float = 600) -> str:
        """The worker host on which one of these stages runs, once one does."""
        found: list[str] = []

        def runs() -> bool:
            titles = {name: processes(self.hosts[name]) for name in among}
            found[:] = [name for name in among if any(f"ray::{stage}" in titles[name] for stage in stages)]
            return bool(found)

        wait_for(runs, seconds, f"{stages} on {among}")
        return found[0]

    def has_workers(self, *names: str) -> bool:
        said = self.head.run("ray list nodes --format json --filter state=ALIVE 2>/dev/null", check=False)
        start = said.find("[{")
        alive = {node["node_ip"] for node in json.loads(said[start:])} if start >= 0 else set()
        return {self.hosts[name].address for name in names} <= alive

    def check(self, name: str, stages: tuple[str, ...], trials: int = 3) -> list[dict[str, Any]]:
        """The fetched rows, after what must hold of every sweep."""
        fetched = self.laptop_path(f"/home/{USER}/runs/{name}/trials")
        rows = [json.loads(path.read_text()) for path in sorted(fetched.glob("*/result.json"))]
        assert [row["status"] for row in rows] == ["ok"] * trials, [row["error"] for row in rows]
        assert {stage["stage"] for row in rows for stage in row["stages"]} == set(stages)
        computed = Counter((s["stage"], s["key"]) for row in rows for s in row["stages"] if not s["reused"])
        assert set(computed.values()) == {1}, f"stages that were run again though they were finished: {computed}"
        assert not self.stages_on_head(), "a stage ran on the head"
        return rows

    def stages_on_head(self) -> list[str]:
        nodes = self.head.run("ray list nodes --format json --filter is_head_node=True 2>/dev/null")
        head = json.loads(nodes[nodes.index("[{") :])[0]["node_id"]
        tasks = self.head.run(f"ray list tasks --format json --limit 10000 --filter node_id={head} 2>/dev/null")
        names = [task["name"] for task in json.loads(tasks[tasks.index("[") :])]
        return [name for name in names if name in STAGES]


def processes(host: Any) -> str:
    return host.run("ps -eo args", check=False)


def submit(name: str) -> str:
    return (
        f"cd ~ && PYTHONPATH=~/checkout python -m greenprune.cli submit {name}.yaml --cluster {CLUSTER} --watch --fetch"
    )


def cluster_file() -> str:
    """scripts/cluster/onprem.yaml with its marked lines edited, and a core a worker."""
    text = (ROOT / "scripts" / "cluster" / "onprem.yaml").read_text()
    for before, after in {
        "192.0.2.10": f"{NETWORK}.1",
        "192.0.2.11, 192.0.2.12": f"{NETWORK}.2, {NETWORK}.3",
        "ssh_user: ubuntu": f"ssh_user: {USER}",
        "--address=$RAY_HEAD_IP:6379": "--address=$RAY_HEAD_IP:6379 --num-cpus=1",
    }.items():
        assert text.count(before) == 1, before
        text = text.replace(before, after)
    return text


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, tiny_tokenizer) -> Iterator[Cluster]:
    """Up, with worker `two` still switched off."""
    missing = lacking() or (None if find_spec("aiohttp_cors") else "the dashboard of Ray; pip install 'ray[default]'")
    if missing:
        pytest.skip(missing)
    packages = [path for path in sys.path if path.endswith("site-packages")]
    hosts = Hosts(tmp_path_factory.mktemp("hosts"), ["head", *WORKERS, "laptop"], packages)
    with hosts:
        hosts.kill("two")
        data = hosts.shared / "greenprune" / "data"
        data.mkdir(parents=True)
        write_tiny_model(data / "tiny", tiny_tokenizer)
        write_text(data / "train.jsonl", 200, 0), write_text(data / "held.jsonl", 40, 1)
        subprocess.run(["chown", "-R", f"{UID}:{UID}", hosts.shared / "greenprune"], check=True)
        here = Cluster(hosts)
        ignored = shutil.ignore_patterns(
            ".venv", ".git", "runs", "__pycache__", ".*_cache", "*.egg-info", ".hypothesis"
        )
        shutil.copytree(ROOT, here.laptop_path(f"/home/{USER}/checkout"), ignore=ignored)
        here.laptop_path(CLUSTER).write_text(cluster_file())
        here.laptop.run("echo . ~/venv/bin/activate >> ~/.profile")
        here.laptop.run("ray get-auth-token --generate > /dev/null", timeout=60)
        here.laptop.run(f"cd checkout && ray up -y {CLUSTER}", timeout=600)
        yield here
        here.laptop.run(f"ray down -y {CLUSTER}", timeout=120)
        assert "raylet" not in processes(here.head)
        for name in WORKERS:  # Ray's launcher leaves them, and they end by themselves when they miss the head
            wait_for(lambda name=name: "/raylet " not in processes(hosts[name]), 180, f"no Ray on {name}", every=3)


@pytest.fixture
def whole(cluster) -> Cluster:
    """All hosts are on and have joined."""
    for name in WORKERS:
        if name not in {host.name for host in cluster.hosts}:
            cluster.hosts.start(name)
    wait_for(lambda: cluster.has_workers(*WORKERS), 600, "all workers", every=3)
    return cluster


def write_tiny_model(folder: Path, tokenizer: Any) -> None:
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(tiny_config()).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def test_a_worker_joins_late_and_works(cluster):
    cluster.experiment("late", energy=LONG_ENERGY)
    with cluster.sweeping("late"):
        cluster.wait_for_stage("accuracy", among=("one",))
        cluster.hosts.start("two")
        cluster.wait_for_stage(*STAGES, among=("two",))
    rows = cluster.check("late", ("collect", "prune", "accuracy", "energy"))
    assert {row["metrics"]["hostname"] for row in rows} <= set(WORKERS)


@pytest.mark.parametrize(
    ("stage", "sections"),
    [
        ("heal", {"heal": {**HEAL, "dataset": f"{SHARED}/data/train.jsonl", "steps": 400}}),
        ("energy", {"energy": LONG_ENERGY}),
    ],
)
def test_a_worker_is_killed(whole, stage, sections):
    name = f"killed-{stage}"
    whole.experiment(name, **sections)
    with whole.sweeping(name):
        killed = whole.wait_for_stage(stage)
        whole.hosts.kill(killed)
        whole.hosts.start(killed)
    whole.check(name, ("collect", "prune", *({"heal"} & {stage}), "accuracy", "energy"))


def test_the_driver_is_killed_and_the_same_command_goes_on(whole):
    whole.experiment("driver", energy=LONG_ENERGY)
    with whole.sweeping("driver", ends="failed"):
        whole.wait_for_stage("energy")
        whole.head.run("pkill -9 -f '[g]reenprune sweep'")
    with whole.sweeping("driver"):
        pass
    whole.check("driver", ("collect", "prune", "accuracy", "energy"))


def test_the_network_is_cut_for_thirty_seconds(whole):
    whole.experiment("cut", energy=LONG_ENERGY)
    with whole.sweeping("cut"):
        away = whole.wait_for_stage("energy")
        with whole.hosts.cut_off(away):
            time.sleep(30)
    whole.check("cut", ("collect", "prune", "accuracy", "energy"))


def test_the_storage_is_frozen_for_a_minute(whole):
    whole.experiment("frozen", energy=LONG_ENERGY)
    with whole.sweeping("frozen"):
        whole.wait_for_stage("accuracy")
        with whole.hosts.shared_frozen():
            time.sleep(60)
    whole.check("frozen", ("collect", "prune", "accuracy", "energy"))


def test_a_workers_disk_is_full(whole):
    whole.experiment("full", heal={**HEAL, "dataset": f"{SHARED}/data/train.jsonl", "steps": 4})
    with whole.hosts.disk_full("one"), whole.sweeping("full"):
        pass
    whole.check("full", ("collect", "prune", "heal", "accuracy", "energy"))


def test_a_worker_is_killed_in_a_pass_over_two_hosts(whole):
    whole.experiment("zero3", calibration={"num_workers": 2})
    with whole.sweeping("zero3"):
        wait_for(lambda: "RayTrainWorker" in processes(whole.hosts["two"]), 400, "a ZeRO-3 worker on two")
        whole.hosts.kill("two")
        whole.hosts.start("two")
    whole.check("zero3", ("collect", "prune", "accuracy", "energy"))


def test_a_stopped_job_leaves_no_stage_running(whole):
    whole.experiment("stopped", energy=LONG_ENERGY)
    with whole.sweeping("stopped", ends="stopped"):
        whole.wait_for_stage("energy")
        jobs = whole.head.run("ray job list 2>/dev/null")
        found = re.search(r"'(stopped-[0-9a-f]{8})'", jobs)
        assert found, jobs
        whole.head.run(f"ray job stop {found[1]}")
    wait_for(lambda: not any("ray::energy" in processes(whole.hosts[name]) for name in WORKERS), 120, "idle workers")
