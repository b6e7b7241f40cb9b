"""The strings of a configuration that name a model or a text, wherever they stand: what they mean, and changing them.

A text is `pypi:<asset>`, a local file, a named text or a data set of the hub; these last two may carry a revision:
`c4@main`, `owner/name:config@<commit>`. A model's id may carry one too where a space chooses among models.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

TEXT_SUFFIXES = (".txt", ".jsonl", ".json", ".parquet")  # of local text files
MODEL = "model.id"
# The keys of a trial that name texts; heal.domains has names of its own below it.
TEXTS_AT = ("calibration.dataset", "heal.dataset", "heal.domains", "benchmark.perplexity")
FILES_AT = ("benchmark.energy.prompt_len", "benchmark.energy.decode_len")  # keys that may name another file
NAMED_AT = (MODEL, *TEXTS_AT, *FILES_AT)


def is_file(source: str) -> bool:
    """Whether a text is a local file."""
    return not source.startswith("pypi:") and Path(source).suffix in TEXT_SUFFIXES


def is_whole_text(source: str) -> bool:
    """Whether a text is a file or an asset: these have no test split apart from the rest."""
    return source.startswith("pypi:") or is_file(source)


def is_commit(revision: str | None) -> bool:
    """Whether a hub's revision is a commit's full hash, which never means anything else later."""
    return bool(re.fullmatch(r"[0-9a-f]{40}", revision or ""))


def split_revision(source: str) -> tuple[str, str | None]:
    """A hub's text or model and its revision: `'c4@main'` gives `('c4', 'main')`; files and assets have none."""
    if is_whole_text(source):
        return source, None
    name, _, revision = source.partition("@")
    return name, revision or None


def split_label(text: str) -> tuple[str, str, str]:
    """An entry of `benchmark.perplexity` as label, source and length, joined they are the entry again:
    `'ptb=data/test.txt@2048'` gives `('ptb=', 'data/test.txt', '@2048')`.
    """
    found = re.fullmatch(r"(\w+=)?(.+?)(@\d*)?", text, flags=re.DOTALL)
    return (found[1] or "", found[2], found[3] or "") if found else ("", text, "")


def named_in(data: Mapping[str, Any], change: Callable[[str, str], str]) -> dict[str, Any]:
    """A copy of an experiment's or a trial's `data` in which every string that names a model or a text is
    `change(key, string)`, key being its key in a trial; those of a search space and its conditions too.

    Of an entry of `benchmark.perplexity` only the source is given and changed. Strings at other keys are left alone.
    """
    return {key: _changed(str(key), value, change) for key, value in data.items()}


def _changed(path: str, value: Any, change: Callable[[str, str], str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _changed(f"{path}.{key}", inner, change) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_changed(path, inner, change) for inner in value]
    if not isinstance(value, str) or (key := _key_in_trial(path)) is None:
        return value
    if key != "benchmark.perplexity":
        return change(key, value)
    label, source, length = split_label(value)
    return f"{label}{change(key, source)}{length}"


def _key_in_trial(path: str) -> str | None:
    """`sweep.space.model.id.choice` and `sweep.space.prune.ratio.when.model.id` are of `model.id`; the texts of
    `heal.domains.web` and `sweep.space.heal.domains.choice.web` are of `heal.domains`."""
    path = re.sub(r"(heal\.domains)(\.choice)?\.\w+$", r"\1\2", path)
    ends = path.removesuffix(".choice") if path.startswith("sweep.space.") else path
    inside = ends.startswith("sweep.space.")
    return next((key for key in NAMED_AT if ends == key or (inside and ends.endswith(f".{key}"))), None)


def split_text(text: str) -> tuple[str, str, int]:
    """Name, source and length: `'ptb=data/test.txt@2048'` gives `('ptb', 'data/test.txt', 2048)`.

    Without a name it is the source's: `pypi:wikipedia` gives `wikipedia`, a file its stem. Length 0 where none
    is given. A source of the hub keeps its revision, which is in no name.
    """
    label, source, length = split_label(text)
    bare, revision = split_revision(source)
    tokens = length.removeprefix("@")
    if (tokens and int(tokens) < 2) or (revision and not length and not is_commit(revision)):
        raise ValueError(f"must be name@length with length an integer of at least 2, got {text!r}")
    return label[:-1] or re.sub(r"[.\s]", "_", Path(bare.removeprefix("pypi:")).stem), source, int(tokens or 0)


def perplexity_name(text: str) -> str:
    """The metric that a text gives: `pypi:wikipedia@512` gives `wikipedia_ppl@512`."""
    name, _, length = split_text(text)
    return f"{name}_ppl@{length}"
