"""pydantic's errors as sentences: key, rule, got, remedy."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from greenprune.config.overrides import VARIANTS, models_in
from greenprune.errors import ConfigError, nearest


def validated(model: type[Any], data: Mapping[str, Any], source: str) -> Any:
    """`data` as a `model`. Raises ConfigError, a line for each thing that is wrong, each naming `source`."""
    try:
        return model.model_validate(data)
    except ValidationError as problem:
        lines = [_explain(error, model) for error in problem.errors()]
        raise ConfigError("\n".join(f"{source}: {line}" for line in lines)) from None


def _explain(error: Mapping[str, Any], model: type[BaseModel]) -> str:
    """One of pydantic's errors as: key, rule, got, remedy."""
    loc = _without_tags(error["loc"])
    key = ".".join(map(str, loc)) or "the file"
    kind, got = error["type"], error.get("input")
    if kind == "extra_forbidden":
        parent = ".".join(map(str, loc[:-1]))
        siblings = _fields_at(error["loc"][:-1], model)
        return f"{key} is not a known key of {parent or 'an experiment'}; {nearest(str(loc[-1]), siblings)}"
    if kind == "missing":
        return f"{key} is required and missing; add it"
    if kind in ("union_tag_invalid", "literal_error"):
        choices = re.findall(r"'([^']*)'", error["ctx"].get("expected_tags") or error["ctx"].get("expected") or "")
        got = error["ctx"].get("tag", got)
        name = f"{key}.method" if kind == "union_tag_invalid" else key
        return f"{name} must be one of its choices, got {got!r}; {nearest(str(got), choices)}"
    if kind == "union_tag_not_found":
        return f"{key}.method is required and missing; add it"
    message = error["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return f"{key} {message}" if loc else message
    rule = message.replace("Input should be", "must be", 1)
    field = _field_at(error["loc"], model)
    default = (
        "" if field is None or field.is_required() else f" (default {field.get_default(call_default_factory=True)})"
    )
    purpose = f": {field.description}" if field is not None and field.description else ""
    return f"{key} {rule}, got {got!r}; set it to such a value{default}{purpose}"


def _without_tags(loc: tuple[Any, ...]) -> tuple[Any, ...]:
    """pydantic puts the chosen variant's tag into the path (prune, angular, block_size): take it out."""
    return tuple(part for part in loc if part == loc[0] or part not in VARIANTS.get(loc[0], {}))


def _models_at(loc: Sequence[Any], model: type[BaseModel]) -> list[type[BaseModel]]:
    """The models that a path may stand in; variant tags choose one, dictionary keys and indices stay put."""
    candidates = [model]
    for part in loc:
        tagged = [m for m in candidates if "method" in m.model_fields and _tag(m) == part]
        named = [field for m in candidates if (field := _field_named(m, part)) is not None]
        inner = [part_ for field in named for part_ in models_in(field.annotation)]
        candidates = tagged or inner or candidates
    return candidates


def _tag(variant: type[BaseModel]) -> Any:
    return variant.model_fields["method"].default


def _field_named(model: type[BaseModel], name: Any) -> Any:
    return next((f for key, f in model.model_fields.items() if name in (key, f.alias)), None)


def _fields_at(loc: Sequence[Any], model: type[BaseModel]) -> set[str]:
    return {field.alias or name for m in _models_at(loc, model) for name, field in m.model_fields.items()}


def _field_at(loc: Sequence[Any], model: type[BaseModel]) -> Any:
    found = (_field_named(m, loc[-1]) for m in _models_at(loc[:-1], model)) if loc else ()
    return next((field for field in found if field is not None), None)
