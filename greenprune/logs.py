"""Log lines: where greenprune's own go and how often, and how a library is kept silent.

Nothing is printed unless whoever runs a trial attaches a handler.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def logging_to(handler: logging.Handler, line: str = "%(asctime)s %(message)s") -> Iterator[None]:
    """greenprune's lines, from INFO on, also go to `handler` while inside; it is closed at the end."""
    log = logging.getLogger("greenprune")
    handler.setFormatter(logging.Formatter(line))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()


@contextmanager
def only_errors_of(*names: str) -> Iterator[None]:
    """Inside, the loggers of these names say errors and nothing less."""
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


class Seldom:
    """Says when the next line of long work is due: one every so many seconds, the first after as many."""

    def __init__(self, seconds: float = 15.0) -> None:
        self.seconds, self.last = seconds, time.monotonic()

    def due(self) -> bool:
        if time.monotonic() - self.last <= self.seconds:
            return False
        self.last = time.monotonic()
        return True
