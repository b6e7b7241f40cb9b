"""A trial's log, wherever its stages run: one file in a shared folder; in an object store one a stage and node."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from greenprune.errors import StorageError
from greenprune.logs import logging_to
from greenprune.storage import Storage
from greenprune.storage.following import sent_as_it_grows

log = logging.getLogger("greenprune")
LOG = "log.txt"


@contextmanager
def logging_to_trial(storage_uri: str, trial: str, stage: str) -> Iterator[None]:
    """Inside, greenprune's lines also go to the trial's log, which is sent as it grows: a lost node's is there too.

    trial: its folder, relative to the storage's root.
    """
    storage, folder = Storage(storage_uri), Path(trial)
    if storage.remote is not None:
        folder /= f"logs/{stage}.{socket.gethostname()}"
    (storage.local / folder).mkdir(parents=True, exist_ok=True)
    with sent_as_it_grows(storage, folder):
        try:
            handler = logging.FileHandler(storage.local / folder / LOG)
            with logging_to(handler, "%(asctime)s %(levelname)s %(message)s"):
                yield
        finally:
            try:
                storage.push(folder / LOG)
            except StorageError as problem:  # the work itself counts
                log.warning("the log isn't sent: %s", problem)
