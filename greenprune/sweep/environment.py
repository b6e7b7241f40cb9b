"""What a run was made with, for its environment.json."""

from __future__ import annotations

import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from greenprune.cluster import resources
from greenprune.energy import machine_identity

VERSIONED = "greenprune ray torch transformers peft bitsandbytes deepspeed datasets lm_eval codecarbon optuna".split()


def environment() -> dict[str, Any]:
    """What a run was made with: versions, commit, machine. No environment variables: they may hold secrets."""
    versions: dict[str, str | None] = {}
    for name in VERSIONED:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    commit = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True
    )
    machine, facts = machine_identity()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "git_commit": commit.stdout.strip() or None,
        "machine": machine,
        "machine_facts": facts,
        "ray_nodes": resources.nodes(),
    }
