"""A hub on this machine that answers where models and data sets are, one commit each."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Hub:
    """commits: by `models/owner/name` or `datasets/owner/name`, with `/revision/…` where one is asked for; asked: the
    paths of all requests, oldest first.
    """

    url: str
    commits: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)


@contextmanager
def hub_here() -> Iterator[Hub]:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0].removeprefix("/api/")
            hub.asked.append(path)
            commit = hub.commits.get(path)
            repository = "/".join(path.split("/")[1:3])
            body = json.dumps(
                {"id": repository, "sha": commit} if commit else {"error": "Repository not found"}
            ).encode()
            self.send_response(200 if commit else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        hub = Hub(f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield hub
        server.shutdown()
