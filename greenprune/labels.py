"""Short names of trials for people: `dense`, `angular 4`, `bi 2 + qlora`, `flap 20 % + lora`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from greenprune.columns import those_of
from greenprune.results import CHANGING, row_config

if TYPE_CHECKING:
    from pandas import DataFrame, Series

MOST_DIFFERENCES = 2


def label(row: Mapping[str, Any] | Series) -> str:
    """One trial's short name: method, how much is removed, and what else was done to the model."""
    sections = {key: row_config(row, key) for key in CHANGING}
    name = _pruning(sections.pop("prune"))
    return " + ".join([name, *filter(None, map(_done, sections.values()))])


def _done(section: Mapping[str, Any]) -> str | None:
    """The method of a section, None where it does nothing; LoRA on a 4-bit base and a GGUF by names of their own."""
    method = section.get("method", "none")
    if method == "lora" and section.get("quantize") == "nf4":
        return "qlora"
    if method == "gguf" and "type" in section:
        return str(section["type"])
    return None if method == "none" else str(method)


def _pruning(prune: Mapping[str, Any]) -> str:
    method = prune.get("method", "none")
    parts = ["dense" if method == "none" else str(method)]
    if "block_size" in prune:
        parts.append(_amount(prune["block_size"], 1, "{:.0f}"))
    if "ratio" in prune:
        parts.append(_amount(prune["ratio"], 100, "{:.3g} %"))
    if ":" in str(prune.get("structure", "")):
        parts.append(str(prune["structure"]))
    return " ".join(parts)


def _amount(value: Any, factor: float, shown: str) -> str:
    """How much was removed; a field of another type than today's methods have it, as it stands."""
    try:
        return shown.format(factor * float(value))
    except (TypeError, ValueError):
        return str(value)


def labels(trials: DataFrame) -> list[str]:
    """Names of all rows; equal ones get what differs too, e.g. `angular 4 + lora, rank 8`."""
    names = [label(row) for _, row in trials.iterrows()]
    result = list(names)
    for name in {name for name in names if names.count(name) > 1}:
        twins = [i for i, other in enumerate(names) if other == name]
        rows = trials.iloc[twins]
        config = those_of("<section>.<key>", rows.columns)
        varying = [key for key in config if rows[key].nunique(dropna=False) > 1][:MOST_DIFFERENCES]
        for i in twins:
            result[i] = ", ".join([name, *(_difference(trials.iloc[i], key) for key in varying)])
    return result


def _difference(row: Series, key: str) -> str:
    """A field and its value: `rank 8` of `heal.rank`."""
    return f"{key.rpartition('.')[-1]} {row[key]}"
