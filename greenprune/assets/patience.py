"""A question to the network that may wait no longer than one is willing to."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

Told = TypeVar("Told")


def answer_within(seconds: float, ask: Callable[[], Told]) -> Told:
    """What `ask()` gives; raises what it raises, and TimeoutError where nothing came within so many seconds.

    A thread asks: no library's timeout covers the look-up of a name, which can take minutes without a network.
    """
    answers: list[Told] = []
    problems: list[Exception] = []

    def run() -> None:
        try:
            answers.append(ask())
        except Exception as problem:
            problems.append(problem)

    asking = threading.Thread(target=run, daemon=True)
    asking.start()
    asking.join(seconds)
    if answers:
        return answers[0]
    raise problems[0] if problems else TimeoutError(f"no answer within {seconds:.0f} s")
