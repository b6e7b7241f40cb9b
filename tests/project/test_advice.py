"""Advice costs no data: no text of the package tells anybody to delete a file, a folder or a run."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest
from paths import ROOT

TREES = sorted((ROOT / "greenprune").rglob("*.py"))
ALWAYS = r"\b(?:delete|erase|wipe|unlink|rm)\b(?! \{…\}$)"  # storage says so of what it was about to do itself
KEPT = r"(?:files?|folders?|director\w+|runs?|results?|artifacts?|checkpoints?|caches?|stor\w+|state|_stages|tune/)"
HARMFUL = re.compile(
    rf"{ALWAYS}|\b(?:remove|empty|clear|discard)\b(?: \S+){{0,3}} {KEPT}(?!\w)|\b(?:empty|clear) it\b", re.I
)


def texts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and text of every string but docstrings; an f-string as one text."""
    docstrings, parts = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            docstrings.add(node.body[0].value)  # type: ignore[attr-defined]
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts |= set(node.values)
            yield node.lineno, "".join(v.value if isinstance(v, ast.Constant) else "{…}" for v in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings | parts:
            yield node.lineno, node.value


@pytest.mark.parametrize("path", TREES, ids=lambda path: path.relative_to(ROOT / "greenprune").as_posix())
def test_no_text_advises_to_delete(path):
    found = [(line, text) for line, text in texts(ast.parse(path.read_text())) if HARMFUL.search(text)]
    assert not found, "say how to keep it instead: move it aside, --fresh, another name"


@pytest.mark.parametrize(
    ("text", "harmful"),
    [
        ("remove the folder and start again", True),
        ("delete the file", True),
        ("choose another or empty it", True),
        ("clear /tmp/x's cache", True),
        ("`rm -r runs`", True),
        ("log and step exclude each other; remove one", False),
        ("or remove whole layers too (method sequence)", False),
        ("columns of emissions.csv are empty", False),
        ("move the file aside", False),
    ],
)
def test_what_counts_as_such_advice(text, harmful):
    assert bool(HARMFUL.search(text)) == harmful
