"""What a run was made with, for its environment.json, and how a node that joins differs from the sweep's command."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import socket
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from greenprune.config import STAGES
from greenprune.config.dependencies import minor_versions, versions
from greenprune.energy import machine_identity

VERSIONED = "greenprune ray torch transformers peft bitsandbytes deepspeed datasets lm_eval codecarbon optuna".split()
PACKAGE = Path(__file__).parent.parent
# Set by whoever brings the code to a machine without its history: COMMIT, or COMMIT@SOURCE, that of code of this hash.
COMMIT = "GREENPRUNE_COMMIT"
SOURCES = ("*.py", "*.j2", "*.yaml")


def environment() -> dict[str, Any]:
    """What a run was made with: versions, commit, machine. No environment variables: they may hold secrets."""
    machine, facts = machine_identity()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": dict.fromkeys(VERSIONED) | versions(VERSIONED),
        "git_commit": commit(),
        "source": source_hash(),
        "machine": machine,
        "machine_facts": facts,
    }


def commit(package: Path = PACKAGE) -> str | None:
    """The commit of this code: git's, else what $GREENPRUNE_COMMIT says, else that of a `pip install git+…`."""
    asked = ["git", "-C", str(package), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(asked, capture_output=True, text=True).stdout.strip()
    except OSError:  # no git here
        found = ""
    said, _, source = os.environ.get(COMMIT, "").partition("@")
    return found or (said if source in ("", source_hash(package)) else "") or _installed_commit()


def said_commit() -> str:
    """For $GREENPRUNE_COMMIT on a machine that may have this code: it holds where it has. Empty where nobody knows."""
    known = commit()
    return f"{known}@{source_hash()}" if known else ""


def _installed_commit() -> str | None:
    """What pip notes of an installation from a repository (PEP 610)."""
    try:
        noted = metadata.distribution("greenprune").read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return None
    return (json.loads(noted or "{}").get("vcs_info") or {}).get("commit_id")


@functools.cache
def source_hash(package: Path = PACKAGE) -> str:
    """A short hash of the package's files: it tells two codes apart where neither knows its commit."""
    hashed = hashlib.sha256()
    for path in sorted(path for pattern in SOURCES for path in package.rglob(pattern)):
        hashed.update(f"{path.relative_to(package).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return hashed.hexdigest()[:12]


def node_facts() -> dict[str, Any]:
    """What is compared of a node: its name, code, and versions; `decides` are the parts that decide numbers."""
    libraries = sorted({name for stage in STAGES.values() for name in stage.libraries})
    return {
        "host": socket.gethostname(),
        "versions": {"python": platform.python_version(), **versions(VERSIONED)},
        "decides": {"greenprune's source": source_hash(), **minor_versions(libraries)},
    }


def differences(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """In words, where two mappings differ; empty where they don't."""
    names = [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]
    return ", ".join(f"{name} {theirs.get(name)} (here {mine.get(name)})" for name in names)
