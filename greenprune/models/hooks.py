"""Functions that look on a model's forward pass, gone when the `with` ends, also by an error.

with Hooks() as hooks:
    hooks.before(layer, see)
    model(tokens)
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle


class Hooks:
    """A hook's results change the pass as PyTorch's do: what isn't None takes the place of inputs or output."""

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []

    def before(self, module: nn.Module, see: Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Any]) -> None:
        """Each call of the module begins with `see(module, args, kwargs)`."""
        self._handles.append(module.register_forward_pre_hook(see, with_kwargs=True))

    def after(self, module: nn.Module, see: Callable[[nn.Module, tuple[Any, ...], Any], Any]) -> None:
        """Each call of the module ends with `see(module, args, output)`."""
        self._handles.append(module.register_forward_hook(see))

    def __enter__(self) -> Hooks:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()
