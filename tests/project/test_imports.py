"""One heavy dependency, one door; and importing greenprune is free."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import greenprune

PACKAGE = Path(greenprune.__file__).parent
DOORS = {
    "ray": {"cluster", "sweep"},
    "peft": {"heal"},
    "bitsandbytes": {"heal", "quantize"},
    "llmcompressor": {"quantize"},
    "compressed_tensors": {"quantize"},
    "lm_eval": {"benchmark"},
    "rouge_score": {"benchmark"},
    "deepspeed": {"models"},
    "codecarbon": {"energy"},
    "matplotlib": {"report"},
    "optuna": {"sweep"},
    "moocore": {"pareto.py"},
    "vllm": {"engines"},
    "llama_cpp": {"engines"},
}
WITHOUT_TORCH_OR_RAY = [
    "config",
    "results",
    "pareto",
    "paired",
    "report",
    "store",
    "storage",
    "trial",
    "cli",
    "errors",
    "prune",
]


def imports_of(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", DOORS)
def test_heavy_dependency_has_one_door(package):
    rooms = {path.relative_to(PACKAGE).parts[0] for path in PACKAGE.rglob("*.py") if package in imports_of(path)}
    assert rooms <= DOORS[package]
    assert rooms, f"nothing imports {package}: remove it here and from pyproject.toml"


def loaded_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys; print(' '.join({{name.split('.')[0] for name in sys.modules}}))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_import_is_light():
    assert not loaded_after("import greenprune") & {"torch", "ray", "transformers", "pandas", "pydantic"}


@pytest.mark.parametrize("module", WITHOUT_TORCH_OR_RAY)
def test_runs_on_a_laptop_without_torch_or_ray(module):
    assert not loaded_after(f"import greenprune.{module}") & {"torch", "ray"}


def test_public_names_resolve():
    for name in greenprune.__all__:
        assert getattr(greenprune, name) is not None
    assert callable(greenprune.prune)
    assert callable(greenprune.collect)
    with pytest.raises(AttributeError, match="no attribute 'prun'"):
        greenprune.prun  # noqa: B018
