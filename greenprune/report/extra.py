"""The extra `report`: matplotlib and jinja2, imported where they are used, so that importing greenprune is free."""

from __future__ import annotations

import importlib
from typing import Any

from greenprune.errors import GreenpruneError


def need(module: str) -> Any:
    """Import a part of the extra. Raises GreenpruneError with the remedy where it's missing."""
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.split(".")[0]
        raise GreenpruneError(
            f"a report needs {package}, which isn't installed; run: pip install 'greenprune[report]'"
        ) from None
