"""greenprune: which ways of pruning a language model does nothing else beat on both accuracy and energy?

Names are loaded when first used, so `import greenprune` takes milliseconds and loads neither torch nor Ray.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "load_experiment": "greenprune.experiment",
    "PruneConfig": "greenprune.config",
    "TrialConfig": "greenprune.config",
    "load_model": "greenprune.models",
    "collect": "greenprune",
    "prune": "greenprune",
    "perplexity": "greenprune.engines.perplexity",
    "run_trial": "greenprune.trial",
    "run_sweep": "greenprune.sweep.driver",
    "TrialResult": "greenprune.results",
    "load_trials": "greenprune.results",
    "pareto_front": "greenprune.pareto",
    "hypervolume": "greenprune.pareto",
    "knee": "greenprune.pareto",
    "constrained_best": "greenprune.pareto",
    "compare": "greenprune.paired",
    "write_report": "greenprune.report",
    "plots": "greenprune.report",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'greenprune' has no attribute {name!r}")
    home = _PUBLIC[name]
    if home == __name__:  # a package that can be called (see _callable.py)
        return importlib.import_module(f"{home}.{name}")
    value = globals()[name] = getattr(importlib.import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
