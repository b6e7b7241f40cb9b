"""Rows of data sets as text: a template for each kind of row.

TEMPLATES is read from the top: the first whose columns a row has is its own. What a template gives is what is trained
and calibrated on, so artifacts depend on it: a change needs a new version of the stages that read text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from greenprune.errors import AssetError

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Template:
    """columns: those that a row must have; optional: those that it may have; text: the row as text, for a tokenizer."""

    columns: tuple[str, ...]
    text: Callable[[Row, Any], str]
    optional: tuple[str, ...] = ()

    def lacks(self, row: Row) -> str | None:
        """What is wrong with a row, as rule and got; None where nothing is."""
        if all(row.get(name) is not None for name in self.columns):
            return None
        return f"each row must have {' and '.join(map(repr, self.columns))}, got {', '.join(row)}"


def _plain(row: Row, tokenizer: Any) -> str:
    return str(row["text"])


def _instruction(row: Row, tokenizer: Any) -> str:
    """Alpaca's prompt (Taori et al. 2023) with its answer; the loss counts both."""
    asked = "Below is an instruction that describes a task"
    wanted = "Write a response that appropriately completes the request."
    if row.get("input"):
        opening = f"{asked}, paired with an input that provides further context. {wanted}"
        parts = [opening, f"### Instruction:\n{row['instruction']}", f"### Input:\n{row['input']}"]
    else:
        parts = [f"{asked}. {wanted}", f"### Instruction:\n{row['instruction']}"]
    return "\n\n".join([*parts, f"### Response:\n{row['output']}"])


def _chat(row: Row, tokenizer: Any) -> str:
    """As the tokenizer's own template has it, less its BOS, which bos.py places; without one: role, colon, content."""
    messages = row["messages"]
    if not all(isinstance(message, Mapping) and {"role", "content"} <= message.keys() for message in messages):
        raise AssetError(
            f"messages must be a list of role and content each, got {str(messages)[:80]}; rename what they hold"
        )
    if getattr(tokenizer, "chat_template", None):
        return tokenizer.apply_chat_template(messages, tokenize=False).removeprefix(tokenizer.bos_token or "")
    return "\n\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in messages)


TEMPLATES: dict[str, Template] = {
    "text": Template(("text",), _plain),
    "instruction": Template(("instruction", "output"), _instruction, optional=("input",)),
    "chat": Template(("messages",), _chat),
}


def template_of(columns: Iterable[str], source: str) -> Template:
    """The template of rows with these columns. Raises AssetError, which names the `source`, where there is none."""
    present = list(columns)
    for template in TEMPLATES.values():
        if set(template.columns) <= set(present):
            return template
    known = " | ".join(", ".join(template.columns) for template in TEMPLATES.values())
    raise AssetError(
        f"{source}: rows must have the columns {known}, got {', '.join(present)}; rename the column that holds the text"
    )
