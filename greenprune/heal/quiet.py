"""Keep the libraries' own chatter out of a healing run's log; what matters raises or is logged by us."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

CHATTY = (
    "bitsandbytes.backends.cpu.ops",  # misses an optional inference kernel
    "transformers.trainer_utils",  # checkpoints written within a second can't be ordered by time
)


@contextmanager
def quiet() -> Iterator[None]:
    """Only errors of the chatty loggers, and no FutureWarning (peft still reads a deprecated attribute)."""
    levels = {name: logging.getLogger(name).level for name in CHATTY}
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
