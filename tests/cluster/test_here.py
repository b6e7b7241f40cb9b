"""A sweep without an address on a cluster's node says that it runs there alone."""

from __future__ import annotations

import socket
import sys
from contextlib import closing

import pytest

from greenprune import cli
from greenprune.cluster.here import cluster_here


@pytest.fixture
def head(tmp_path):
    """Where Ray notes its address, and a port at which somebody listens."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        (tmp_path / "ray_current_cluster").write_text(f"127.0.0.1:{server.getsockname()[1]}")
        yield tmp_path


def test_a_cluster_that_answers_is_found(head):
    assert cluster_here(head) == (head / "ray_current_cluster").read_text()


@pytest.mark.parametrize("noted", [None, "", "nonsense", "127.0.0.1:1", "a:b:c"])
def test_what_was_left_behind_is_none(tmp_path, noted):
    if noted is not None:
        (tmp_path / "ray_current_cluster").write_text(noted)
    assert cluster_here(tmp_path) is None


@pytest.mark.parametrize(
    ("arguments", "environment", "address", "told"),
    [
        ([], {}, None, True),
        (["--address", "local"], {}, None, False),
        (["--address", "auto"], {}, "auto", False),
        ([], {"GREENPRUNE_ADDRESS": "auto"}, "auto", False),
        ([], {"RAY_ADDRESS": "10.0.0.1:6379"}, "10.0.0.1:6379", False),
    ],
)
def test_the_sweep_says_where_it_runs(monkeypatch, tmp_path, capsys, arguments, environment, address, told):
    used = []
    monkeypatch.setattr(cli, "_sweep", lambda experiment, address, *_: used.append(address))
    monkeypatch.setattr("greenprune.cluster.here.cluster_here", lambda: "10.0.0.1:6379")
    for name in ("GREENPRUNE_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["greenprune", "sweep", str(cli.DEMO), *arguments])
    with pytest.raises(SystemExit):
        cli.main()
    assert used == [address]
    assert ("this machine alone" in capsys.readouterr().out) is told
