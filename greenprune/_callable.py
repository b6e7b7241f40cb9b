"""Functions that tables name, and packages that are called like the function of the same name in them.

Tables of methods, statistics and stages must import without torch, so they name functions and don't hold them.
`greenprune.prune` is a package (methods, registry) and the verb of the public API: importing the package
binds it over any function of that name, so the package itself answers the call.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any


def function_named(path: str) -> Any:
    """What `package.module:name` names."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


class _CallableModule(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **kwargs)


def make_callable(module_name: str) -> None:
    """`package.verb(…)` calls `package.verb.verb(…)` from now on."""
    sys.modules[module_name].__class__ = _CallableModule
