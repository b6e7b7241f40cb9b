"""Locks between processes. Two handles on one file exclude each other within a process too, so threads will do."""

from __future__ import annotations

import ast
import logging
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

import greenprune
from greenprune.storage.locks import fair_lock, locked, must_wait


class Visitor(threading.Thread):
    """Somebody else who enters a lock, notes it, and leaves at once."""

    def __init__(self, name: str, lock, order: list[str]) -> None:
        super().__init__(daemon=True)
        self.label, self.lock, self.order = name, lock, order
        self.start()

    def run(self) -> None:
        with self.lock:
            self.order.append(self.label)

    def left(self) -> bool:
        self.join(20)
        return not self.is_alive()


def until(condition) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_second_one_waits_and_says_for_what(tmp_path, caplog):
    path, order = tmp_path / "not" / "there" / "yet.lock", []
    with caplog.at_level(logging.INFO, logger="greenprune"), locked(path, "another trial"):
        assert caplog.text == ""
        second = Visitor("second", locked(path, "the first at 100%"), order)
        until(lambda: "waiting for the first at 100%" in caplog.text)
        assert order == []
    assert second.left()
    assert order == ["second"]


def test_an_error_inside_lets_go(tmp_path):
    for lock in (locked, lambda path: fair_lock(path, True)):
        with pytest.raises(ZeroDivisionError), lock(tmp_path / "a"):
            _ = 1 / 0
        with lock(tmp_path / "a"):
            pass


def test_many_are_together_inside_and_one_alone(tmp_path):
    path, order = tmp_path / "node", []
    with ExitStack() as together:
        for _ in range(3):
            together.enter_context(fair_lock(path, alone=False))
        assert not must_wait(path)
        alone = Visitor("alone", fair_lock(path, alone=True), order)
        until(lambda: must_wait(path))  # for the one who waits to be alone
        assert order == []
    assert alone.left()
    assert order == ["alone"]
    with fair_lock(path, alone=True):
        assert must_wait(path)
    assert not must_wait(path)


def test_who_waits_to_be_alone_is_not_overtaken(tmp_path):
    path, order = tmp_path / "node", []
    with fair_lock(path, alone=False):
        alone = Visitor("alone", fair_lock(path, alone=True), order)
        until(lambda: must_wait(path))
        later = Visitor("later", fair_lock(path, alone=False), order)
        time.sleep(0.1)
        assert order == []  # the later one would fit in, and still waits
    assert alone.left()
    assert later.left()
    assert order == ["alone", "later"]


def test_flocks_have_one_home():
    package = Path(greenprune.__file__).parent
    homes = {
        path.name
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import) and "fcntl" in {alias.name for alias in node.names}
    }
    assert homes == {"locks.py"}
