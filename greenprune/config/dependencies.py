"""What an artifact depends on that its configuration only names: the content of text files, versions of libraries."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from greenprune.config.lengths import is_lengths_file
from greenprune.config.texts import is_file, split_label, split_text


def versions(libraries: Iterable[str]) -> dict[str, str]:
    """The versions of those libraries that are installed here, as their packages say them."""
    found = {}
    for name in libraries:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def minor_versions(libraries: Iterable[str]) -> dict[str, str]:
    """The same as far as the minor version: what comes after it mends, and leaves numbers alone."""
    return {name: ".".join(version.split("+")[0].split(".")[:2]) for name, version in versions(libraries).items()}


def contents(value: Any) -> dict[str, str]:
    """Every string in `value` that names an existing text file, and what stands for it in a key: the content's hash.

    An entry of `benchmark.perplexity` keeps its name and length, since its metric is called so.
    """
    found: dict[str, str] = {}
    for text in strings_in(value):
        label, source, length = split_label(text)
        path = Path(os.path.expanduser(source))
        if (is_file(source) or is_lengths_file(source)) and os.path.isfile(path):  # also of what no path can be
            content = f"sha256:{content_hash(path)}{path.suffix}"  # the suffix tells how it is read
            found[text] = f"{split_text(text)[0]}={content}{length}" if label or length else content
    return found


def with_contents(value: Any, by: Mapping[str, str]) -> Any:
    """A copy of `value` with each string that `by` has replaced by what stands there."""
    if isinstance(value, Mapping):
        return {key: with_contents(inner, by) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [with_contents(inner, by) for inner in value]
    return by.get(value, value) if isinstance(value, str) else value


def strings_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (Mapping, list, tuple)):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from strings_in(inner)


def content_hash(path: Path) -> str:
    """The sha256 of a file, read again only after it changed."""
    state = path.stat()
    return _hashed(path.resolve(), state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=256)
def _hashed(path: Path, modified: int, size: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
