"""Whether this machine is a node of a Ray cluster, as the head is: a sweep without an address wouldn't use it."""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

FOLDER = Path(tempfile.gettempdir()) / "ray"  # Ray's own


def cluster_here(folder: Path = FOLDER) -> str | None:
    """The address ("host:port") that `ray start` noted on this machine, if somebody still listens there."""
    try:
        address = (folder / "ray_current_cluster").read_text().strip()
        where = urlsplit(f"//{address}")
        socket.create_connection((where.hostname or "", where.port or 0), timeout=1.0).close()
    except (OSError, ValueError):
        return None
    return address
