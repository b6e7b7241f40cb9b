"""An engine in a process of its own: whatever happens to it, this process lives and can say why, and no orphan stays.

Its CPU time and what it does on GPUs count as this process's (greenprune/energy/processes.py), for it is its child.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from greenprune.errors import EngineDied

TOLD = 1500  # characters of its last words
PEACE_S = 10.0  # to end by itself
START_S = 3600.0  # to load a model, and compile
SILENCE_S = 600.0  # between two signs of life


class EngineProcess:
    """A worker (worker.py) with the stepper that `maker` ("module:function") makes of `settings`.

    Raises EngineDied where it ends before it is closed, or says nothing for START_S as it starts and `silence_s` from
    then on; the message holds its last words.
    """

    def __init__(
        self,
        maker: str,
        settings: Mapping[str, Any],
        environment: Mapping[str, str],
        silence_s: float = SILENCE_S,
    ) -> None:
        self.maker, self.silence_s = maker, silence_s
        self.words = ""  # its last, once it has ended
        self._words = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "greenprune.engines.worker", maker, json.dumps(dict(settings))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            env={**os.environ, **_path_of_ours(), **environment},
            start_new_session=True,
            text=True,
        )
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._answer(START_S)

    @property
    def pid(self) -> int:
        return self._process.pid

    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, what: str, **details: Any) -> Any:
        assert self._process.stdin is not None, "it was started with a pipe"
        with suppress(BrokenPipeError):  # nothing is answered then
            self._process.stdin.write(json.dumps({"ask": what, **details}) + "\n")
            self._process.stdin.flush()
        return self._answer(self.silence_s)

    def _read(self) -> None:
        assert self._process.stdout is not None, "it was started with a pipe"
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def _answer(self, patience_s: float) -> Any:
        """The next line that is an answer. Others say that it works."""
        while True:
            try:
                line = self._lines.get(timeout=patience_s)
            except queue.Empty:
                self.close(peace_s=0)
                raise EngineDied(
                    f"the engine's process must step or answer within {patience_s:g} s, got silence{self.words}"
                ) from None
            if not line.endswith("\n"):
                break
            if "answer" in (said := json.loads(line)):
                return said["answer"]
        self.close()
        code = self._process.returncode
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"with exit status {code}"
        raise EngineDied(f"the engine's process must live while it is measured, got one that ended, {how}{self.words}")

    def close(self, peace_s: float = PEACE_S) -> None:
        """End it and whatever it started; once, since its number may be another's later. peace_s: to end by itself."""
        if self._words.closed:
            return
        pipes = (self._process.stdin, self._process.stdout)
        with suppress(BrokenPipeError, OSError):
            if pipes[0] is not None:
                pipes[0].close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(peace_s)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join()
        if pipes[1] is not None:
            pipes[1].close()
        self._words.seek(0)
        said = self._words.read().decode(errors="replace").strip()
        self.words = f"; its last words: {said[-TOLD:]}" if said else ""
        self._words.close()

    def reset_peak_memory(self) -> None:
        """Peak memory counts from here on, where Linux lets us (proc(5), clear_refs 5)."""
        with suppress(OSError):
            Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def peak_memory_bytes(self) -> int | None:
        """Its resident set at most; None where the system doesn't tell."""
        with suppress(OSError):
            for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        return None


def _path_of_ours() -> dict[str, str]:
    """What lets a new process import this package, where it isn't installed."""
    ours = str(Path(__file__).parents[2])
    return {"PYTHONPATH": os.pathsep.join(dict.fromkeys(filter(None, [ours, os.environ.get("PYTHONPATH")])))}
