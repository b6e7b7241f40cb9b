"""An S3 on this machine (moto's server), in a process of its own, as sweeps and their nodes reach it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SERVER = """
import sys, logging
from moto.server import ThreadedMotoServer
logging.basicConfig(filename=sys.argv[1], level=logging.INFO, format="%(message)s")
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
open(sys.argv[2], "w").write("%s:%d" % server.get_host_and_port())
sys.stdin.read()
"""


class S3:
    """environment: what a client needs; and what it was asked for."""

    def __init__(self, endpoint: str, log: Path) -> None:
        self.endpoint, self.log = endpoint, log
        self.environment = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
        }

    def make_bucket(self, name: str) -> None:
        urllib.request.urlopen(urllib.request.Request(f"{self.endpoint}/{name}", method="PUT"))

    def asked(self, containing: str = "") -> Counter[str]:
        """How often each method was called so far, on paths with this text."""
        found = re.findall(r"(GET|PUT|HEAD|POST|DELETE) (\S+) HTTP", self.log.read_text())
        return Counter(method for method, path in found if containing in path)


@contextmanager
def s3_here(folder: Path) -> Iterator[S3]:
    """The server, with a bucket `bucket`. The test is skipped where moto or obstore isn't installed."""
    pytest.importorskip("moto", reason="needs moto: pip install -e '.[s3-test]'")
    folder.mkdir(parents=True, exist_ok=True)
    said, log = folder / "address", folder / "requests.log"
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(log), str(said)], stdin=subprocess.PIPE)
    try:
        end = time.monotonic() + 120
        while not (said.exists() and said.read_text()):
            assert time.monotonic() < end, "moto didn't start"
            assert server.poll() is None, "moto ended"
            time.sleep(0.1)
        s3 = S3(f"http://{said.read_text()}", log)
        s3.make_bucket("bucket")
        yield s3
    finally:
        server.kill()
        server.wait()
        assert server.stdin is not None
        server.stdin.close()


def use(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    for name in set(os.environ) & {"AWS_PROFILE", "AWS_SESSION_TOKEN"}:
        monkeypatch.delenv(name)
