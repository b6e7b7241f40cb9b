"""What a trial is doing now: a small file that its driver writes and whoever watches reads, wherever each is."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path

from greenprune.errors import StorageError
from greenprune.storage import Storage, write_atomically

FILE_NAME = "status.json"


class Status:
    """What one trial is doing now; `read` is for those who watch."""

    def __init__(self, storage: Storage, trial: str) -> None:
        """trial: its folder in the storage."""
        self.storage, self.trial, self.stage = storage, trial, "start"

    def show(self, stage: str) -> None:
        self.stage = stage
        status = json.dumps({"stage": stage, "since": time.time()})
        write_atomically(self.storage.local / self.trial / FILE_NAME, status)
        with suppress(StorageError):  # the next one may come through
            self.storage.push(f"{self.trial}/{FILE_NAME}")

    @staticmethod
    def read(folder: Path) -> str:
        try:
            status = json.loads((folder / FILE_NAME).read_text())
        except (OSError, ValueError):
            return "starting"
        return f"{status['stage']} {time.time() - status['since']:.0f} s"
