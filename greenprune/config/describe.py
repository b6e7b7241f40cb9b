"""The table of methods in words, for `greenprune methods` and the README."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from greenprune.config.methods import METHODS, PRUNE_VARIANTS, Method

HEADER = ("method", "what goes", "options", "needs", "source")


def method_rows() -> list[tuple[str, str, str, str, str]]:
    """A row a method, as HEADER names them."""
    return [
        (name, entry.summary, _options(name), _needs(entry), entry.paper)
        for name, entry in METHODS.items()
        if name != "none"
    ]


def methods_markdown() -> str:
    """The table of methods for the README."""
    rows = [(f"`{name}`", *rest) for name, *rest in method_rows()]
    lines = [f"| {' | '.join(row).replace(chr(10), ' ')} |" for row in (HEADER, *rows)]
    return "\n".join([lines[0], "|---" * len(HEADER) + "|", *lines[1:]]) + "\n"


def _options(name: str) -> str:
    fields = PRUNE_VARIANTS[name].model_fields
    return "; ".join(_option(key, field) for key, field in fields.items() if key != "method")


def _option(key: str, field: FieldInfo) -> str:
    """`heads=within_group or kv_group`: the choices, the default first; else the default, where there is one."""
    if get_origin(field.annotation) is Literal:
        choices = [str(choice) for choice in get_args(field.annotation)]
        choices.sort(key=lambda choice: choice != str(field.default))
        return f"{key}={' or '.join(choices)}"
    if field.is_required() or field.default in (None, 0.0):
        return key
    examples = "".join(f" or {example}" for example in field.examples or ())
    return f"{key}={_short(field.default)}{examples}"


def _short(default: Any) -> str:
    return f"[{', '.join(map(str, default))}]" if isinstance(default, list) else str(default).lower()


def _needs(entry: Method) -> str:
    names = entry.statistics
    parts = ["depends on the options"] if callable(names) else sorted(names)
    return ", ".join(parts + ["tokens"] * entry.tokens) or "nothing"
