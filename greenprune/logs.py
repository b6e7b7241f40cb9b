"""Where greenprune's log lines go: libraries stay silent, whoever runs a trial attaches a handler."""

from __future__ import annotations

import logging
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
