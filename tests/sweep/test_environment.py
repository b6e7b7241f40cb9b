"""Which code a run was made with, also where there is no .git."""

from __future__ import annotations

import json
import os
import subprocess
from importlib import metadata

from greenprune.sweep import environment
from greenprune.sweep.environment import commit, differences, node_facts, source_hash

KNOWN = "c" * 40


def test_the_commit_is_gits_else_what_somebody_says(tmp_path, monkeypatch):
    monkeypatch.delenv(environment.COMMIT, raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commit(tmp_path) is None
    noted = {"url": "https://example.org/greenprune", "vcs_info": {"vcs": "git", "commit_id": "d" * 40}}

    class Installed:
        def read_text(self, name: str) -> str | None:
            return json.dumps(noted) if name == "direct_url.json" else None

    with monkeypatch.context() as patched:
        patched.setattr(metadata, "distribution", lambda name: Installed())
        assert commit(tmp_path) == "d" * 40
    monkeypatch.setenv(environment.COMMIT, KNOWN)
    assert commit(tmp_path) == KNOWN
    monkeypatch.setenv(environment.COMMIT, f"{KNOWN}@{source_hash(tmp_path)}")
    assert commit(tmp_path) == KNOWN
    monkeypatch.setenv(environment.COMMIT, f"{KNOWN}@another source")
    assert commit(tmp_path) is None
    monkeypatch.setenv(environment.COMMIT, KNOWN)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    assert commit(tmp_path) not in (None, KNOWN)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert commit(tmp_path) == os.environ[environment.COMMIT]


def test_two_codes_are_told_apart(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\n")
    before = source_hash(tmp_path)
    source_hash.cache_clear()
    (tmp_path / "a.py").write_text("x = 2\n")
    assert source_hash(tmp_path) != before


def test_what_a_node_has_otherwise_is_named():
    mine, theirs = node_facts()["decides"], node_facts()["decides"]
    assert differences(mine, theirs) == ""
    theirs["torch"] = "1.0"
    assert differences(mine, theirs) == f"torch 1.0 (here {mine['torch']})"
