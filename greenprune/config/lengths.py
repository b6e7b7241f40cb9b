"""How long requests are: numbers, or a file with a request a line, as drawn from somebody's traffic.

prompt,decode          {"prompt": 512, "decode": 128}
512,128                {"prompt": 90, "decode": 300}
90,300
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from greenprune.errors import ConfigError

LENGTHS_SUFFIXES = (".csv", ".jsonl")


class Lengths(NamedTuple):
    """Tokens in, tokens out."""

    prompt: int
    decode: int


def is_lengths_file(value: Any) -> bool:
    return isinstance(value, str) and Path(value).suffix in LENGTHS_SUFFIXES


def request_lengths(prompt_len: int | str, decode_len: int | str) -> list[Lengths]:
    """The requests that are sent, one after the other and again from the first; one where both are numbers.

    A file stands for its own column, a number for all lines. Raises ConfigError for a file that can't be read so.
    """
    file = next((name for name in (prompt_len, decode_len) if isinstance(name, str)), None)
    lines: list[Mapping[str, Any]] = [{}] if file is None else _lines(file)
    return [
        Lengths(_tokens(line, "prompt", prompt_len, file), _tokens(line, "decode", decode_len, file)) for line in lines
    ]


def _lines(file: str) -> list[Mapping[str, Any]]:
    try:
        text = Path(file).expanduser().read_text(encoding="utf-8")
        if file.endswith(".csv"):
            found: list[Mapping[str, Any]] = list(csv.DictReader(text.splitlines()))
        else:
            found = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError, ValueError) as problem:
        raise _refused(file, str(problem)) from None
    if not found:
        raise _refused(file, "none")
    return found


def _tokens(line: Mapping[str, Any], column: str, given: int | str, file: str | None) -> int:
    if isinstance(given, int):
        return given
    assert file is not None, "a length that isn't a number is in a file"
    value = line.get(column) if isinstance(line, Mapping) else None
    if isinstance(value, bool) or not str(value).strip().isdecimal() or int(str(value)) < 1:
        raise _refused(file, f"{column}={value!r}")
    return int(str(value))


def _refused(file: str, got: str) -> ConfigError:
    return ConfigError(
        f"a file of request lengths must hold a line a request with prompt and decode, numbers of tokens of at least "
        f"1, got {got} in {file}; write it as CSV (prompt,decode) or JSON lines"
    )
