"""A cluster that grows from nothing on this machine: Ray's head, its real autoscaler, and its provider of fake nodes.

    with fake_cloud({"prepare": node_type({"CPU": 1}, at_most=2)}) as cloud:
        subprocess.run([…, "--address", cloud.address], env=cloud.environment)

Ray's own AutoscalingCluster can't be taken: it ends every Ray of the machine first, and its example.yaml is not in the
wheel. Everything that is started here carries a mark in its environment, by which it is ended, whoever started it.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any

import psutil
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FAKE_HEAD_NODE_TYPE
from ray.util import get_node_ip_address

from greenprune.cluster.capacity import NODE_GROUP

MARK = "GREENPRUNE_FAKE_CLOUD"
STARTS_IN_S = 60.0
STEPS = ("setup", "head_setup", "worker_setup", "initialization", "head_start_ray", "worker_start_ray")


@dataclass(frozen=True)
class FakeCloud:
    """address: of the head; environment: what a process needs that joins it."""

    address: str
    environment: dict[str, str]
    folder: Path


def node_type(resources: Mapping[str, float], at_most: int, **more: Any) -> dict[str, Any]:
    return {"resources": dict(resources), "node_config": {}, "min_workers": 0, "max_workers": at_most, **more}


@contextmanager
def fake_cloud(
    types: Mapping[str, Any], head: Mapping[str, float] | None = None, idle_minutes: float = 0.2, **more: Any
) -> Iterator[FakeCloud]:
    """Inside, a head with the resources `head` (no cores by default) that brings nodes of these types when asked."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # the names of sockets must be short
    joining = {MARK: uuid.uuid4().hex, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token_hex(32)}
    starting = (
        os.environ
        | joining
        | {
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
            "RAY_NODE_TYPE_NAME": FAKE_HEAD_NODE_TYPE,
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_TMPDIR": str(folder),
        }
    )
    starting.pop("RAY_ADDRESS", None)
    address = f"{get_node_ip_address()}:{_free_port()}"
    head = dict(head or {"CPU": 0})
    provider = {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "gcs_address": address,
        "head_node_id": FAKE_HEAD_NODE_ID,
        "disable_node_updaters": True,
        "launch_multiple": True,
    }
    config = {
        "cluster_name": "fake",
        "max_workers": sum(kind["max_workers"] for kind in types.values()),
        "idle_timeout_minutes": idle_minutes,
        "upscaling_speed": 100.0,
        "provider": provider,
        "available_node_types": {FAKE_HEAD_NODE_TYPE: node_type(head, 0), **_labelled(types)},
        "head_node_type": FAKE_HEAD_NODE_TYPE,
        **{f"{step}_commands": [] for step in STEPS},
        "cluster_synced_files": [],
        **more,
    }
    (folder / "autoscaling.yaml").write_text(json.dumps(config))
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", f"--port={address.rpartition(':')[2]}"]
    start += [f"--autoscaling-config={folder}/autoscaling.yaml", f"--temp-dir={folder}", "--include-dashboard=false"]
    start += [f"--num-cpus={head.pop('CPU', 0):.0f}", f"--num-gpus={head.pop('GPU', 0):.0f}", "--disable-usage-stats"]
    start += [f"--resources={json.dumps(head)}", "--object-store-memory=150000000"]
    try:
        started = subprocess.run(start, env=starting, capture_output=True, text=True, timeout=STARTS_IN_S)
        assert started.returncode == 0, started.stdout + started.stderr
        yield FakeCloud(address, os.environ | joining, folder)
    finally:
        _end_all(joining[MARK])
        shutil.rmtree(folder, ignore_errors=True)


def _labelled(types: Mapping[str, Any]) -> dict[str, Any]:
    """With the label that a node of a real launcher has: a fake one would say what its head is."""
    return {name: {**kind, "labels": {NODE_GROUP: name, **kind.get("labels", {})}} for name, kind in types.items()}


def _free_port() -> int:
    with closing(socket.socket()) as found:
        found.bind(("", 0))
        return found.getsockname()[1]


def _end_all(mark: str) -> None:
    for _ in range(20):
        if not (left := list(_marked(mark))):
            return
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        time.sleep(0.2)


def _marked(mark: str) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                yield process
