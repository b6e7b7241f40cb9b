"""The node types are read where the autoscaler of this very cluster has them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from greenprune.cluster import node_types
from greenprune.cluster.node_types import Growth, NodeType, is_a_launched_head


@contextmanager
def monitor(gcs_address: str, config: Path) -> Iterator[None]:
    """A process that is called as Ray calls its autoscaler."""
    named = [f"--gcs-address={gcs_address}", f"--autoscaling-config={config}"]
    process = subprocess.Popen([sys.executable, "-c", "print(flush=True); input()", *named], stdin=-1, stdout=-1)
    try:
        process.stdout.readline()
        yield
    finally:
        process.communicate(b"\n")


def test_the_file_of_this_clusters_autoscaler_counts(tmp_path):
    config = tmp_path / "ray_bootstrap_config.yaml"
    types = {
        "head": {"resources": {"CPU": 0}},
        "gpu": {"resources": {"CPU": 4, "GPU": 1}, "labels": {"market": "spot"}},
    }
    config.write_text(yaml.safe_dump({"available_node_types": types, "head_node_type": "head", "max_workers": 3}))
    with monitor("10.0.0.1:6379", config):
        assert is_a_launched_head()
        assert node_types._from_file("10.0.0.9:6379") is None
        found = node_types._from_file("10.0.0.1:6379")
    assert node_types.growth_of(found) == Growth((NodeType("gpu", {"CPU": 4, "GPU": 1}, 3, {"market": "spot"}),), 3)


def test_ray_that_was_started_here_has_the_nodes_it_has(ray_here):
    assert node_types.growth() is None
