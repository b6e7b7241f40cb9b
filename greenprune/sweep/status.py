"""What a trial is doing now: a small file that its driver writes and whoever watches reads."""

from __future__ import annotations

import json
import time
from pathlib import Path

from greenprune.storage import write_atomically

FILE_NAME = "status.json"


class Status:
    """What one trial is doing now; `read` is for those who watch."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.stage = folder, "start"

    def show(self, stage: str) -> None:
        self.stage = stage
        write_atomically(self.folder / FILE_NAME, json.dumps({"stage": stage, "since": time.time()}))

    @staticmethod
    def read(folder: Path) -> str:
        try:
            status = json.loads((folder / FILE_NAME).read_text())
        except (OSError, ValueError):
            return "starting"
        return f"{status['stage']} {time.time() - status['since']:.0f} s"
