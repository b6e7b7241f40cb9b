"""CONTRIBUTING's recipes, followed to the letter on a copy of the project, with their contract suites' new rows."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

TEXT = (ROOT / ".github" / "CONTRIBUTING.md").read_text().partition("## How to add things")[2]
RECIPES = dict(re.findall(r"^### (.+?)\n(.*?)(?=^### |\Z)", TEXT, flags=re.M | re.S))
# Which tests show that what was added works.
CHECKS = {
    "A column": ["tests/test_columns.py", "tests/test_full_trial.py"],
    "A stage": ["tests/test_stages.py", "tests/project/test_house.py", "-k", "duplicate or row or house"],
    "A healer": ["tests/heal/test_contract.py", "-k", "lora_twice or row"],
    "A sensor": ["tests/energy/test_sensors.py", "tests/test_doctor.py"],
    "An architecture": ["tests/models", "-k", "smollm3 or row"],
}


def blocks(recipe: str) -> list[tuple[Path, str, str, str]]:
    """(file, verb, where, text) of every block: new, after:LINE, before:LINE, replace:LINE, entry:TABLE."""
    found = re.findall(
        r"^```\w+ (\S+) (new|(?:after|before|replace|entry):[^\n]*)\n(.*?)^```$", recipe, flags=re.M | re.S
    )
    return [(Path(file), *how.partition(":")[::2], text) for file, how, text in found]


def follow(project: Path, file: Path, verb: str, where: str, text: str) -> None:
    path = project / file
    if verb == "new":
        assert not path.exists()
        path.write_text(text)
        return
    content = path.read_text()
    if verb == "entry":  # before the line that closes the table
        start = re.search(rf"^{where}\b.*= \{{$", content, flags=re.M)
        assert start, f"{file} has no table {where}"
        end = content.index("\n}", start.end()) + 1
        path.write_text(content[:end] + text + content[end:])
        return
    line = where.replace("\\n", "\n")
    assert content.count(line) == 1, f"{file} has {content.count(line)} times {line!r}"
    place = content.index(line)
    end = content.index("\n", place + len(line)) + 1
    if verb == "before":
        path.write_text(f"{content[:place]}{text.rstrip()}\n\n\n{content[place:]}")
    else:
        path.write_text(content[: end if verb == "after" else place] + text + content[end:])


def test_every_recipe_is_followed():
    assert RECIPES.keys() - {"The rest"} == CHECKS.keys()


# Half a minute each; a sensor's takes seconds.
QUICK = {"A sensor"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in CHECKS]
)
def test_a_recipe_is_one_file_one_entry_one_row(name, tmp_path):
    for part in ("greenprune", "tests", "experiments", "README.md", "pyproject.toml", "cluster.yaml", ".github"):
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copyfile
        copy(ROOT / part, tmp_path / part)
    steps = blocks(RECIPES[name])
    assert steps
    for step in steps:
        follow(tmp_path, *step)
    sources = {file for file, *_ in steps if file.parts[0] == "greenprune"}
    assert len(sources) <= 2, "one source file, and the file with the table"
    assert len({file for file, *_ in steps if file.parts[0] == "tests"}) == 1
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", *CHECKS[name]],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
