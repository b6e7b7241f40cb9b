"""The environment that llm-compressor has to itself, since what it pins excludes what vLLM pins.

`$GREENPRUNE_QUANTIZE_PYTHON` names its Python; else it is looked for in the cache folder, where `install` makes it:

    python -m venv DIR && DIR/bin/pip install 'torch==2.13.*' 'llmcompressor==0.14.*'
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from greenprune.config import QUANTIZERS
from greenprune.errors import ConfigError
from greenprune.storage import cache_dir

VARIABLE = "GREENPRUNE_QUANTIZE_PYTHON"
# torch first: llm-compressor alone would bring the CUDA build to machines that have no use for it
REQUIREMENTS = ("torch>=2.10,<2.14", "llmcompressor==0.14.*")


def folder() -> Path:
    """Where `install` makes the environment."""
    return cache_dir() / "environments" / "quantize"


def python() -> Path | None:
    """Its Python; None where there is none."""
    named = os.environ.get(VARIABLE)
    path = Path(named).expanduser() if named else folder() / "bin" / "python"
    return path if path.is_file() else None


def required_python() -> Path:
    """Raises ConfigError where there is none."""
    found = python()
    if found is None:
        where = os.environ.get(VARIABLE) or folder() / "bin" / "python"
        raise ConfigError(
            f"quantize.method w8a8 and w4a16 need llm-compressor in an environment of its own, got no {where}; "
            f"run `{' && '.join(' '.join(command) for command in commands())}`, or set ${VARIABLE} to the Python "
            "of one"
        )
    return found


def check_installed(method: str) -> None:
    """Raises ConfigError where what the method needs can't be imported here."""
    entry = QUANTIZERS[method]
    for package, remedy in entry.packages:
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"quantize.method {method} needs the package {package}, got none here; run `{remedy}`")
    if entry.toolchain:
        required_python()


def commands() -> list[list[str]]:
    """What makes the environment, command by command."""
    pip = str(folder() / "bin" / "pip")
    return [[sys.executable, "-m", "venv", str(folder())], *([pip, "install", wanted] for wanted in REQUIREMENTS)]


def install() -> Path:
    """Make the environment (some GB, minutes) and give its Python; raises CalledProcessError as pip does."""
    for command in commands():
        subprocess.run(command, check=True)
    return required_python()
