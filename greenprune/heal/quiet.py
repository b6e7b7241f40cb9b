"""Keep the libraries' own chatter out of a healing run's log; what matters raises or is logged by us."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from greenprune.logs import only_errors_of

CHATTY = (
    "bitsandbytes.backends.cpu.ops",  # misses an optional inference kernel
    "transformers.trainer_utils",  # checkpoints written within a second can't be ordered by time
)


@contextmanager
def quiet_training() -> Iterator[None]:
    """Only errors of the chatty loggers, and no FutureWarning (peft still reads a deprecated attribute)."""
    with only_errors_of(*CHATTY), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield
