"""A folder of half-done work, sent to the object store as it grows: a lost node costs what was written since."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from greenprune.errors import StorageError
from greenprune.storage.place import Storage

log = logging.getLogger("greenprune")
EVERY_S = 5.0

State = tuple[int, int]  # when a file was changed last, in ns, and its bytes


@contextmanager
def sent_as_it_grows(storage: Storage, relative: Path) -> Iterator[None]:
    """Inside, a file that has rested for EVERY_S is sent, one that is gone here goes there. On failure all is sent.

    A store that can't be reached costs a warning: the work itself goes on.
    """
    if storage.remote is None:
        yield
        return
    follower, ended = _Follower(storage, relative), threading.Event()

    def run() -> None:
        while not ended.wait(EVERY_S):
            follower.look()

    thread = threading.Thread(target=run, name="greenprune-following", daemon=True)
    thread.start()
    try:
        yield
    except BaseException:
        ended.set()
        thread.join()
        follower.look()
        follower.look()  # the second finds all at rest
        raise
    finally:
        ended.set()
        thread.join()


class _Follower:
    """What of a folder was seen, and what was sent."""

    def __init__(self, storage: Storage, relative: Path) -> None:
        self.storage, self.relative = storage, relative
        self.seen = self._now()
        self.sent = dict(self.seen)  # what is there at the start was fetched from there

    def look(self) -> None:
        """Send what has changed and has rested since the last look; remove there what is gone here."""
        now = self._now()
        try:
            for name, state in now.items():
                if state == self.seen.get(name) and state != self.sent.get(name):
                    self.storage.push(self.relative / name)
                    self.sent[name] = state
            for name in set(self.sent) - set(now):
                self.storage.delete_remote(self.relative / name)
                del self.sent[name]
        except FileNotFoundError:
            pass  # removed while it was to be sent: the next look sees that
        except StorageError as problem:
            log.warning("half-done work isn't sent: %s", problem)
        self.seen = now

    def _now(self) -> dict[str, State]:
        folder, found = self.storage.local / self.relative, {}
        for path in folder.rglob("*"):
            try:
                if path.is_file():
                    found[path.relative_to(folder).as_posix()] = (path.stat().st_mtime_ns, path.stat().st_size)
            except FileNotFoundError:
                continue
        return found
