"""An address where no Ray answers is refused in time: sockets that refuse, swallow, keep silent or answer wrongly."""

from __future__ import annotations

import http.server
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import yaml

from greenprune.cluster.join import check_address
from greenprune.errors import SweepError


@contextmanager
def closed_port() -> Iterator[int]:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens, and nobody else can begin to
        yield taken.getsockname()[1]


@contextmanager
def black_hole() -> Iterator[int]:
    """A port whose queue is full: a connection is neither made nor refused."""
    with closing(socket.socket()) as full, closing(socket.socket()) as first, closing(socket.socket()) as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for waiting in (first, second):
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        yield full.getsockname()[1]


@contextmanager
def silence() -> Iterator[int]:
    """Somebody who listens and says nothing."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield server.getsockname()[1]


@contextmanager
def web_server() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.mark.parametrize("scheme", ["", "ray://"])
@pytest.mark.parametrize("port_of", [closed_port, black_hole, silence, web_server])
def test_an_address_without_ray_is_refused_in_time(port_of, scheme):
    begun = time.monotonic()
    with port_of() as port, pytest.raises(SweepError, match=r"Ray must be reachable at .*, got .*; check") as refused:
        check_address(f"{scheme}127.0.0.1:{port}", connect_s=1.0, answer_s=4.0)
    assert time.monotonic() - begun < 60  # the seconds above, and those that a busy machine takes to import Ray
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("address", ["nowhere.invalid:6379", "ray://", "127.0.0.1", "ray://127.0.0.1:http", "a:b:c"])
def test_a_wrong_address_is_refused(address):
    with pytest.raises(SweepError, match=r"Ray must be reachable at"):
        check_address(address, answer_s=20.0)


def test_a_cluster_is_not_refused(ray_here):
    check_address(ray_here.get_runtime_context().gcs_address)


def test_a_busy_node_has_time_to_import_ray(tmp_path, monkeypatch):
    """Seen on a cluster's head under load: importing Ray took longer than an answer may."""
    for name, text in {
        "__init__.py": "import time\ntime.sleep(2)\nfrom ray import _raylet",
        "_raylet.py": "class GcsClient:\n    def __init__(self, address): pass",
        "_private/__init__.py": "",
        "_private/services.py": "def canonicalize_bootstrap_address_or_die(address): return address",
    }.items():
        path = tmp_path / "ray" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    check_address("auto", answer_s=1.0)


def test_a_sweep_is_refused_before_anything_is_touched(tiny_experiment):
    """The whole command, with its own deadlines."""
    runs = Path(tiny_experiment["sweep"]["storage"])
    path = runs.parent / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_experiment))
    with black_hole() as port:
        command = [sys.executable, "-m", "greenprune.cli", "sweep", str(path), "--address", f"127.0.0.1:{port}"]
        begun = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "Ray must be reachable at 127.0.0.1" in done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - begun < 30
    assert not runs.exists()
