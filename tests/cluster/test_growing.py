"""A group of workers waits for nodes that an autoscaler may bring, and is refused where nobody brings any."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from secrets import token_hex

import pytest

from greenprune.cluster import workers
from greenprune.cluster.resources import can_grow
from greenprune.errors import GreenpruneError

# A head without cores, labelled as a launcher labels it; a node joins when the first line says what is missing.
GROWING = """
import logging, threading
from ray.cluster_utils import Cluster
from greenprune.cluster import workers
from greenprune.cluster.join import start_ray
from greenprune.cluster.resources import can_grow

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
start_ray(cluster.address)
assert can_grow()

class Autoscaler(logging.Handler):
    def emit(self, record):
        print(record.getMessage(), flush=True)
        if len(cluster.list_all_nodes()) == 1:
            cluster.add_node(num_cpus=2)

workers.log.addHandler(Autoscaler())
workers.log.setLevel(logging.INFO)
workers.SECONDS_BETWEEN_LINES = 1.0
workers.wait_for_room("CPU", 2)
print("there is room")
"""


def test_waits_for_the_autoscaler():
    environment = os.environ | {"RAY_NODE_TYPE_NAME": "head", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token_hex(32)}
    done = subprocess.run([sys.executable, "-c", GROWING], env=environment, capture_output=True, text=True, timeout=240)
    assert "waiting for 2 workers with a free CPU each; the cluster has 0 now" in done.stdout, done.stderr
    assert "there is room" in done.stdout, done.stderr


def test_a_cluster_that_cannot_grow_refuses_at_once(ray_here, tmp_path: Path):
    assert not can_grow()
    with pytest.raises(GreenpruneError, match=r"at most the cluster's \d+ CPUs, got 999; lower it"):
        workers.run_workers(print, {}, 999, str(tmp_path))
