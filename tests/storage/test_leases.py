"""Leases between nodes. Other processes are real ones; what is another machine's is a mark that says so."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from faulty_store import FaultyStore

from greenprune.errors import StorageError, SweepError
from greenprune.storage import Storage, leases, place
from greenprune.storage.leases import is_leased, leased, leased_or_refused

PATH = Path("_stages/prune/abc.lease")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(leases, "RENEWED_EVERY_S", 0.05)
    monkeypatch.setattr(leases, "DEAD_AFTER_S", 1.0)
    monkeypatch.setattr(leases, "LOOKS_S", (0.01, 0.02))
    monkeypatch.setattr(place, "WAITS_S", (0.0, 0.0, 0.0))


@pytest.fixture(params=["folder", "object store"])
def storage_of(request, tmp_path) -> Callable[[str], Storage]:
    """A node's view of the storage; each has its own mirror of an object store."""

    def storage(node: str) -> Storage:
        made = Storage(tmp_path / ("shared" if request.param == "folder" else node))
        if request.param == "object store":
            made.remote = FaultyStore(tmp_path / "bucket")
        return made

    return storage


def _enter(storage: Storage, marks: Path, entered: Path, hold_s: float) -> None:
    with leased(storage, PATH):
        entered.touch()
        with marks.open("a") as stream:
            stream.write("in ")
            stream.flush()
            time.sleep(hold_s)
            stream.write("out ")


def other_process(*arguments) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=_enter, args=arguments)
    process.start()
    return process


def until(condition, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def on_another_machine(storage: Storage, number: int) -> Callable[[int], None]:
    """A mark of an owner elsewhere; gives how he renews it."""

    def content(beat: int) -> bytes:
        return json.dumps({"owner": "x", "machine": "elsewhere", "pid": 1, "born": 0.0, "beat": f"{beat:012}"}).encode()

    assert storage.shared.create(f"{PATH}/{number:08}", content(0))
    return lambda beat: storage.shared.write(f"{PATH}/{number:08}", content(beat))


def test_one_process_at_a_time_is_inside(storage_of, tmp_path):
    marks = tmp_path / "marks"
    processes = [other_process(storage_of(str(i)), marks, tmp_path / "entered", 0.02) for i in range(6)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 6
    assert marks.read_text() == "in out " * 6
    assert [Path(name).name for name in storage_of("0").shared.listing(PATH.as_posix())] == ["00000012"]


def test_a_killed_owner_of_this_machine_is_known_at_once(storage_of, tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "DEAD_AFTER_S", 1000.0)
    process = other_process(storage_of("a"), tmp_path / "marks", tmp_path / "entered", 60)
    until((tmp_path / "entered").exists)
    assert is_leased(storage_of("b"), PATH)
    os.kill(process.pid, signal.SIGKILL)
    process.join(10)
    assert not is_leased(storage_of("b"), PATH)
    with leased(storage_of("b"), PATH):
        assert is_leased(storage_of("c"), PATH)
    assert not is_leased(storage_of("c"), PATH)


def test_who_waits_says_for_what(storage_of, caplog):
    entered = threading.Event()

    def second() -> None:
        with leased(storage_of("b"), PATH, "the first at 100%"):
            entered.set()

    with caplog.at_level(logging.INFO, logger="greenprune"), leased(storage_of("a"), PATH):
        thread = threading.Thread(target=second)
        thread.start()
        until(lambda: "waiting for the first at 100%" in caplog.text)
        assert not entered.is_set()
    thread.join(20)
    assert entered.is_set()


def test_a_second_one_is_refused_and_not_for_ever(storage_of):
    refusal = SweepError("one at a time, got a second")
    with leased(storage_of("a"), PATH), pytest.raises(SweepError, match="got a second"):
        leased_or_refused(storage_of("b"), PATH, refusal).__enter__()
    with leased_or_refused(storage_of("b"), PATH, refusal):
        pass


def test_one_who_renews_elsewhere_refuses_and_is_waited_for(storage_of):
    renew, ended = on_another_machine(storage_of("there"), 1), threading.Event()

    def renews() -> None:
        for beat in range(1, 1 << 30):
            if ended.wait(0.05):
                return
            renew(beat)

    thread = threading.Thread(target=renews)
    thread.start()
    with pytest.raises(SweepError, match="taken"):
        leased_or_refused(storage_of("here"), PATH, SweepError("taken")).__enter__()
    entered = threading.Event()

    def waits() -> None:
        with leased(storage_of("here"), PATH):
            entered.set()

    waiting = threading.Thread(target=waits)
    waiting.start()
    assert not entered.wait(2.0), "twice DEAD_AFTER_S"
    ended.set()
    thread.join(10)
    assert entered.wait(20)
    waiting.join(10)


def test_one_who_renews_no_more_is_taken_over_by_one_and_learns_of_it(storage_of, monkeypatch):
    begun = time.monotonic()
    on_another_machine(storage_of("there"), 7)
    with leased(storage_of("here"), PATH) as lease:
        assert time.monotonic() - begun >= 1.0
        assert lease.number == 9
        lease.check()
        assert not lease.lost
        on_another_machine(storage_of("there"), 11)  # which took us for dead in turn
        with pytest.raises(StorageError, match="another process took over"):
            lease.check()
        until(lambda: lease.lost)


def test_one_who_slept_between_look_and_mark_has_nothing(storage_of, monkeypatch):
    """He saw number 4; since then others came and went, and number 5 is gone."""
    storage = storage_of("a")
    with leased(storage, PATH):
        pass
    with leased(storage, PATH):
        pass
    assert not leases._made(storage, PATH, 3, "the sleeper")
    assert [Path(name).name for name in storage.shared.listing(PATH.as_posix())] == ["00000004"]


def test_a_storage_that_is_frozen_for_all_costs_nobody_his_lease(tmp_path, monkeypatch):
    """While nothing is answered, nothing is renewed either: the seconds of such a look don't count."""
    storage = Storage(tmp_path / "shared")
    on_another_machine(storage, 1)
    watched = leases._Watched(storage, PATH)
    clock = iter([0.0, 0.01, 100.0, 100.01])
    monkeypatch.setattr(leases.time, "monotonic", lambda: next(clock))
    assert not any(watched.is_dead(1, "as it was") for _ in range(3))


def test_a_storage_that_fails_one_call_in_three_lets_one_in_at_a_time(tmp_path):
    inside, most, done = [], [], []

    def visit(seed: int) -> None:
        storage = Storage(tmp_path / str(seed))
        storage.remote = FaultyStore(tmp_path / "bucket", seed=seed)
        for _ in range(5):
            try:
                with leased(storage, PATH):
                    inside.append(seed)
                    most.append(len(inside))
                    time.sleep(0.005)
                    inside.remove(seed)
                    done.append(seed)
            except StorageError:
                continue

    threads = [threading.Thread(target=visit, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert set(most) == {1}
    assert len(done) > 10
