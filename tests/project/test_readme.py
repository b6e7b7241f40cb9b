"""The README says what the code does."""

from __future__ import annotations

import re

from paths import ROOT
from typer.testing import CliRunner

from greenprune import columns
from greenprune.cli import app
from greenprune.prune import METHODS

README = (ROOT / "README.md").read_text()


def test_columns_are_those_of_the_table():
    assert columns.markdown(columns.MAIN).strip() in README


def test_every_method_and_command_is_named():
    for method in METHODS.keys() - {"none"}:
        assert f"`{method}`" in README
    for command in re.findall(r"bin/greenprune (\w+)", README):
        assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0, command


def test_links_lead_somewhere_and_the_tree_is_the_tree():
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / link).exists(), link
    tree = README.split("## The tree")[1].split("```")[1]
    listed = {line.split()[0].rstrip("/") for line in tree.splitlines() if line.startswith("  ")}
    present = {path.name for path in (ROOT / "greenprune").iterdir() if not path.name.startswith(("_", "."))}
    assert listed == present - {"py.typed"}


def test_the_picture_says_that_energies_are_estimates():
    assert "demo_front.png" in README
    assert "these energies are estimates" in README


def test_it_stays_short():
    assert len(README.splitlines()) < 240
