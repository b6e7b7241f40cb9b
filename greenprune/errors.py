"""What can go wrong because of a user's input or surroundings. Each message says rule, got, remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GreenpruneError(Exception):
    """Base of every error that a user can mend; the command line prints it without a traceback."""


class ConfigError(GreenpruneError, ValueError):
    """A configuration that is refused before any work begins."""


class AssetError(GreenpruneError, RuntimeError):
    """A model or data set that can't be had: no network, wrong hash, full disk, unknown name."""


class ModelError(GreenpruneError, ValueError):
    """A model that an operation doesn't support."""


class HealingDiverged(GreenpruneError, RuntimeError):
    """The healing loss became NaN or grew past its limit; the trial fails with this as its reason."""


class EnergyError(GreenpruneError, RuntimeError):
    """A meter that was asked for and can't be read."""


class EngineDied(GreenpruneError, RuntimeError):
    """The process of an engine ended while it was asked."""


class StorageError(GreenpruneError, RuntimeError):
    """A storage that doesn't give, take or lock a file."""


class DamagedArtifact(StorageError):
    """A finished artifact whose files aren't those that were written. It is set aside, so it can be made again."""


class MemoryExceeded(GreenpruneError, RuntimeError):
    """A stage that doesn't fit into a machine's memory, by what its shapes say or by what happened."""


class SweepError(GreenpruneError, RuntimeError):
    """A sweep that can't start or go on as asked."""


class WrongNode(SweepError):
    """A node whose libraries or texts aren't those of the process that asks. node: its id, where one is known."""

    node: str = ""


def nearest(name: str, known: Iterable[str]) -> str:
    """One phrase that names the closest known spelling and all choices, for an error's remedy."""
    choices = sorted(known)
    close = difflib.get_close_matches(str(name), choices, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}choices: {', '.join(choices)}"
