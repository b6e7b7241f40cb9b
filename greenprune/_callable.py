"""Let a package be called like the function of the same name in it.

`greenprune.prune` is a package (methods, registry) and the verb of the public API: importing the package
binds it over any function of that name, so the package itself answers the call.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _CallableModule(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **kwargs)


def make_callable(module_name: str) -> None:
    """`package.verb(…)` calls `package.verb.verb(…)` from now on."""
    sys.modules[module_name].__class__ = _CallableModule
