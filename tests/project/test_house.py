"""The house: an import points down, one heavy dependency has one door, no name means two things.

README's tree lists the rooms from the ground up; a room may import only from rooms that stand above it in that list.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from paths import ROOT

PACKAGE = ROOT / "greenprune"
TREE = (ROOT / "README.md").read_text().split("## The tree")[1].split("```")[1]
ROOMS = [line.split()[0].removesuffix(".py").rstrip("/") for line in TREE.splitlines() if line.startswith("  ")]
FILES = sorted(PACKAGE.rglob("*.py"))
ANYWHERE = {"__init__", "_callable"}  # lazy names; functions that tables name
MOST_LINES = 350
MOST_TEST_LINES = 400


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def rooms_imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and room of every import of the package's own, wherever in the file it stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "greenprune":
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("greenprune."):
            yield node.lineno, node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, a.name.split(".")[1]) for a in node.names if a.name.startswith("greenprune."))


def floors() -> dict[str, int]:
    """For each room one more than the highest that it imports from."""
    below: dict[str, set[str]] = {room: set() for room in ROOMS}
    for path in FILES:
        room = room_of(path)
        if room not in ANYWHERE:
            below[room] |= {other for _, other in rooms_imported(path)} - ANYWHERE - {room}
    found: dict[str, int] = {}
    for room in ROOMS:  # every room below stands before it, as the test above it makes sure
        found[room] = 1 + max((found[other] for other in below[room]), default=0)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_point_down(path):
    room = room_of(path)
    if room in ANYWHERE:
        return
    for line, other in rooms_imported(path):
        if other not in ANYWHERE and other != room:
            assert ROOMS.index(other) < ROOMS.index(room), f"{path}:{line} climbs from {room} to {other}"


def test_the_house_is_low():
    assert max(floors().values()) < 11


def test_files_of_a_room_import_each_other_in_no_circle():
    imports = {path: set(_files_imported(path)) for path in FILES}
    finished: set[Path] = set()

    def visit(path: Path, trail: tuple[Path, ...]) -> None:
        assert path not in trail, f"a circle: {' -> '.join(p.name for p in trail)} -> {path.name}"
        if path not in finished:
            for other in imports.get(path, ()):
                visit(other, (*trail, path))
            finished.add(path)

    for path in FILES:
        visit(path, ())


def _files_imported(path: Path) -> Iterator[Path]:
    """Files that are loaded with this one: imports at the top of the file, without those for type checkers."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("greenprune."):
            base = PACKAGE.joinpath(*node.module.split(".")[1:])
            for alias in node.names:
                inner = base / f"{alias.name}.py"
                target = (
                    inner if inner.exists() else base.with_suffix(".py") if base.with_suffix(".py").exists() else None
                )
                if target and target != path:
                    yield target


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_file_is_long(path):
    assert len(path.read_text().splitlines()) <= MOST_LINES


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("*.py")), ids=lambda path: path.name)
def test_no_test_file_is_long(path):
    assert len(path.read_text().splitlines()) <= MOST_TEST_LINES


def public_names(path: Path) -> set[str]:
    """Functions, classes and constants that a file defines for others."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return {name for name in names if not name.startswith("_") and re.search("[a-zA-Z]", name)}


SHARED = {"log", "here", "find", "found"}  # the package's logger; what each sensor's file answers


def test_no_two_public_things_share_a_name():
    homes: dict[str, list[Path]] = {}
    for path in FILES:
        if room_of(path) == "cli":  # commands are named as the functions that they call
            continue
        for name in public_names(path) - SHARED:
            homes.setdefault(name, []).append(path)
    twice = {
        name: [p.relative_to(PACKAGE).as_posix() for p in found] for name, found in homes.items() if len(found) > 1
    }
    assert not twice


def test_locks_have_one_home():
    assert {path.name for path in FILES if "import fcntl" in path.read_text()} == {"locks.py"}


def test_hooks_are_attached_in_a_with():
    homes = {
        path.name
        for path in FILES
        if re.search(r"\.register_(full_)?(forward|backward|module)\w*hook\(", path.read_text())
    }
    assert homes <= {"hooks.py"}
