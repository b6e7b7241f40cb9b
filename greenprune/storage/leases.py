"""Locks between nodes: leases in the storage itself, which their owners renew, and others take over once nobody does.

with leased(storage, path): …                         one process at a time, wherever it runs; the others wait
with leased_or_refused(storage, path, SweepError(…))  one process at a time; the others are refused

A lease is a folder of numbered marks, of which the highest counts: odd is held, even is free. Whoever wants it makes
the next one, which the storage gives to one process only (O_EXCL on a folder, If-None-Match on an object store); a
lease whose mark hasn't been renewed for DEAD_AFTER_S is skipped. A process of this machine that has died is known at
once. The highest mark is never removed, so one who slept between his look and his mark finds a higher one, and has
nothing.

No clock is compared with another's: who waits counts the seconds in which he looked and saw no change. So a storage
that was frozen for all costs nobody his lease.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from greenprune.errors import StorageError
from greenprune.storage.bucket import FileState
from greenprune.storage.place import Storage

log = logging.getLogger("greenprune")
RENEWED_EVERY_S = 5.0  # how often an owner renews
DEAD_AFTER_S = 30.0
LOOKS_S = (0.02, 1.0)  # between two looks of one who waits: the first, the longest
OWNER_BYTES = 4096
SECONDS_OF_BOOT = 5.0  # by which two processes may see a third's birth apart: a clock is set now and then
FORGOTTEN_S = 600.0  # with clocks that differ, for those who only ask

_mine: set[str] = set()  # names of the owners that this process is


class Lease:
    """What is held. `check` raises StorageError once somebody else has taken it over; `lost` tells as of the last
    renewal, without a look."""

    def __init__(self, storage: Storage, path: Path, number: int, owner: str) -> None:
        self.storage, self.path, self.number, self.owner, self.lost = storage, path, number, owner, False
        self._ended = threading.Event()
        threading.Thread(target=self._renew, name="greenprune-lease", daemon=True).start()

    def check(self) -> None:
        if self._is_taken_over():
            raise StorageError(
                f"{self.path} must be renewed at least every {DEAD_AFTER_S:.0f} s, got a longer silence, after which "
                "another process took over; its result counts: run the same command again"
            )

    def _is_taken_over(self) -> bool:
        return _highest(_marks(self.storage, self.path))[0] > self.number

    def _renew(self) -> None:
        for beat in range(1, 1 << 60):
            if self.lost or self._ended.wait(RENEWED_EVERY_S):
                return
            with suppress(OSError, StorageError):  # the next one may get through
                self.storage.shared.write(_mark(self.path, self.number), _about(self.owner, beat))
                self.lost = self._is_taken_over()

    def release(self) -> None:
        self._ended.set()
        _mine.discard(self.owner)
        try:
            self.storage.persistently(self._free, f"free {self.path}")
        except StorageError as problem:
            log.warning("%s; others wait %.0f s for it", problem, DEAD_AFTER_S)

    def _free(self) -> None:
        self.storage.shared.create(_mark(self.path, self.number + 1), b"{}")
        for number in _numbers(self.storage.shared.listing(self.path.as_posix())):
            if number <= self.number:
                self.storage.shared.delete(_mark(self.path, number))


@contextmanager
def leased(storage: Storage, path: Path, waiting_for: str = "") -> Iterator[Lease]:
    """Only one process of all nodes is inside; the others wait, and log `waiting_for` where it is given.

    path: relative to the storage's root, a folder of its own.
    """
    lease = _taken(storage, path, waiting_for, None)
    try:
        yield lease
    finally:
        lease.release()


@contextmanager
def leased_or_refused(storage: Storage, path: Path, refusal: Exception) -> Iterator[Lease]:
    """Only one process of all nodes is inside; `refusal` is raised where somebody else is.

    Of one on another machine that is known by its next renewal, so it may take DEAD_AFTER_S.
    """
    lease = _taken(storage, path, "the end, or the next renewal, of whoever has it", refusal)
    try:
        yield lease
    finally:
        lease.release()


def is_leased(storage: Storage, path: Path) -> bool:
    """Whether somebody has it, as far as can be told at once."""
    marks = _marks(storage, path)
    number, _ = _highest(marks)
    if number % 2 == 0:
        return False
    lives = _lives(_owner(storage, path, number))
    return lives if lives is not None else time.time() - marks[_mark(path, number)].changed < FORGOTTEN_S


def _taken(storage: Storage, path: Path, waiting_for: str, refusal: Exception | None) -> Lease:
    owner, wait = uuid.uuid4().hex, LOOKS_S[0]
    watched = _Watched(storage, path)
    while True:
        number, tag = _highest(_marks(storage, path))
        if number % 2 == 0 or watched.is_dead(number, tag):
            ours = number + 2 - (number + 1) % 2
            if _made(storage, path, ours, owner):
                return Lease(storage, path, ours, owner)
            continue
        if refusal and watched.lives:
            raise refusal
        if waiting_for:
            log.info("waiting for %s", waiting_for)
            waiting_for = ""
        time.sleep(wait * random.uniform(0.7, 1.3))
        wait = min(1.5 * wait, LOOKS_S[1])


def _made(storage: Storage, path: Path, number: int, owner: str) -> bool:
    """Make a mark of our own; whether that is ours, and the highest."""
    name, content = _mark(path, number), _about(owner, 0)

    def make() -> bool:  # a mark that was there may be ours, of an attempt whose answer was lost
        return storage.shared.create(name, content) or _owner(storage, path, number).get("owner") == owner

    _mine.add(owner)
    try:
        if storage.persistently(make, f"take {name}"):
            if _highest(_marks(storage, path))[0] == number:
                return True
            storage.persistently(lambda: storage.shared.delete(name), f"delete {name}")
    except BaseException:
        _mine.discard(owner)
        raise
    _mine.discard(owner)
    return False


class _Watched:
    """What one who waits has seen of the owner. lives: he has been seen to."""

    def __init__(self, storage: Storage, path: Path) -> None:
        self.storage, self.path = storage, path
        self.number, self.tag, self.owner = 0, "", dict[str, Any]()
        self.lives = False
        self.still_s, self.looked = 0.0, time.monotonic()

    def is_dead(self, number: int, tag: str) -> bool:
        now = time.monotonic()
        passed, self.looked = now - self.looked, now
        renewed = (number, tag) != (self.number, self.tag)
        if number != self.number or (renewed and not self.owner):  # one that was torn may be whole now
            self.owner = _owner(self.storage, self.path, number)
        lives = _lives(self.owner)
        if lives is None:
            lives = renewed and number == self.number
        self.lives = lives or (self.lives and number == self.number)
        self.still_s = 0.0 if renewed or lives else self.still_s + min(passed, 2 * LOOKS_S[1])  # longer: it was frozen
        self.number, self.tag = number, tag
        return _lives(self.owner) is False or self.still_s > DEAD_AFTER_S


# ------------------------------------------------------------------------------------------------- marks


def _mark(path: Path, number: int) -> str:
    return (path / f"{number:08}").as_posix()


def _marks(storage: Storage, path: Path) -> dict[str, FileState]:
    return storage.persistently(lambda: storage.shared.listing(path.as_posix()), f"list {path}")


def _numbers(marks: dict[str, FileState]) -> list[int]:
    return [int(Path(name).name) for name in marks if Path(name).name.isdigit()]


def _highest(marks: dict[str, FileState]) -> tuple[int, str]:
    """The number that counts, 0 where there is none yet, and what changes when it is renewed."""
    number = max(_numbers(marks), default=0)
    return number, next((state.tag for name, state in marks.items() if Path(name).name == f"{number:08}"), "")


# ------------------------------------------------------------------------------------------------- owners


def _about(owner: str, beat: int) -> bytes:
    """Who holds a lease. Of one length, whatever the beat, so that a rewritten file is never torn."""
    return json.dumps({"owner": owner, **_here(), "beat": f"{beat:012}"}).encode()


def _owner(storage: Storage, path: Path, number: int) -> dict[str, Any]:
    """What a mark says; nothing where it is gone or torn."""

    def read() -> bytes:
        with suppress(FileNotFoundError):
            name = _mark(path, number)
            if state := storage.shared.listing(path.as_posix()).get(name):
                return bytes(storage.shared.read(name, 0, min(state.bytes, OWNER_BYTES)))
        return b""

    try:
        found = json.loads(storage.persistently(read, f"give {_mark(path, number)}"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _lives(owner: dict[str, Any]) -> bool | None:
    """Whether an owner on this machine lives; None of another machine, from which only renewals come."""
    here = _here()
    if owner.get("machine") != here["machine"]:
        return None
    if owner["pid"] == here["pid"]:
        return owner["owner"] in _mine
    try:
        process = psutil.Process(owner["pid"])
        same = abs(process.create_time() - owner["born"]) < SECONDS_OF_BOOT
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _here() -> dict[str, Any]:
    return _process(os.getpid())


@functools.lru_cache(maxsize=1)
def _process(pid: int) -> dict[str, Any]:
    """This process, on a machine that is told apart by its name, its boot and, in containers, its own numbers."""
    boot, numbers = str(psutil.boot_time()), ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        numbers = os.readlink("/proc/self/ns/pid")
    machine = f"{socket.gethostname()} {boot} {numbers}"
    return {"machine": machine, "pid": pid, "born": psutil.Process(pid).create_time()}
