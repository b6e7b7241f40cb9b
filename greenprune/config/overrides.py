"""Dotted keys: the command line's overrides and the points of a search space are the same thing."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel

from greenprune.config.section import Section
from greenprune.config.stages import STAGES
from greenprune.config.trial import TrialConfig
from greenprune.errors import ConfigError

VARIANTS: dict[str, Mapping[str, type[Section]]] = {
    stage.key: stage.variants for stage in STAGES.values() if stage.variants
}
SPACE = "sweep.space."


def split_override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"an override must be key=value, got {text!r}; e.g. prune.block_size=4")
    return key, parse_yaml(value, f"the value of override {key}")


def parse_yaml(text: str, what: str) -> Any:
    """The plain value that a YAML text stands for. Raises ConfigError that begins with `what`."""
    try:
        value = yaml.safe_load(text)
    except Exception as problem:  # PyYAML lets through what Python says of `2001-13-45`, `!!int x` or deep nesting
        if isinstance(problem, yaml.YAMLError):
            got = str(problem)
        else:
            got = f"{_beginning(text)!r} ({type(problem).__name__}: {problem})"
        raise ConfigError(f"{what} must be readable YAML, got {got}; quote it if it is text") from None
    if _holds_itself(value):
        raise ConfigError(f"{what} must end somewhere, got {_beginning(text)!r}, which holds itself; write it out")
    return value


def _holds_itself(value: Any, above: tuple[int, ...] = ()) -> bool:
    """Whether an alias (`&a [*a]`) leads back into the mapping or list that it stands in."""
    if not isinstance(value, dict | list):
        return False
    inside = value.values() if isinstance(value, dict) else value
    return id(value) in above or any(_holds_itself(part, (*above, id(value))) for part in inside)


def _beginning(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}…"


def apply_overrides(data: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `data` with dotted keys set, `method` keys first (see the module's docstring)."""
    merged = copy.deepcopy(dict(data))
    for key, value in sorted(overrides.items(), key=lambda item: not item[0].endswith(".method")):
        *parents, leaf = _steps(key)
        section = merged
        for parent in parents:
            child = section.get(parent)
            if child is None:
                child = section[parent] = {}
            if not isinstance(child, dict):
                raise ConfigError(f"override {key} needs {parent} to be a section, got {child!r}; check the key")
            section = child
        if leaf == "method" and section.get("method") != value:
            kept = _fields_of_variant(parents, value)
            for name in [name for name in section if kept is not None and name not in kept]:
                del section[name]
        section[leaf] = value
    return merged


def _steps(key: str) -> list[str]:
    """A dotted key's steps; the keys of a search space are dotted themselves and stay whole."""
    if not key.startswith(SPACE):
        return key.split(".")
    rest = key.removeprefix(SPACE)
    names = [name for name in known_keys() if rest == name or rest.startswith(f"{name}.")]
    name = max(names, key=len, default=rest)
    inside = rest.removeprefix(name).removeprefix(".")
    return ["sweep", "space", name, *(inside.split(".", 1) if inside else [])]


def _fields_of_variant(section: Sequence[str], method: Any) -> set[str] | None:
    variant = VARIANTS.get(".".join(section), {}).get(method) if isinstance(method, str) else None
    return set(variant.model_fields) if variant else None


def known_keys(model: type[BaseModel] = TrialConfig, prefix: str = "") -> set[str]:
    """Every dotted key of a trial, over all variants of each section."""
    keys: set[str] = set()
    for name, field in model.model_fields.items():
        keys.add(prefix + name)
        inside = [] if get_origin(field.annotation) is list else models_in(field.annotation)
        for part in inside:
            keys |= known_keys(part, f"{prefix}{name}.")
    return keys


def models_in(annotation: Any) -> list[type[BaseModel]]:
    parts = [annotation, *_flatten(annotation)]
    return [part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)]


def _flatten(annotation: Any) -> Iterator[Any]:
    for part in get_args(annotation):
        yield part
        yield from _flatten(part)


def flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping with dotted keys."""
    result: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[prefix + key] = value
    return result
