"""The check of a GPU runs its whole path without one, and without Ray."""

from __future__ import annotations

import subprocess
import sys

import pytest
from paths import ROOT

SCRIPT = ROOT / "scripts" / "gpu_check"


@pytest.mark.slow
def test_the_small_check_prints_every_model_and_window():
    done = subprocess.run([sys.executable, str(SCRIPT), "--small"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for model in ("dense", "angular 2 of 10 layers, healed", "bi 2 of 10 layers"):
        rows = [line for line in done.stdout.splitlines() if line.startswith(f"| {model} |")]
        assert len(rows) >= 1 + 1 + 2  # in the table; idle, and a window of each phase at least
        assert "–" not in rows[0].split("|")[2:7]  # parameters, times, memory, J/token
    assert "| kind | source |" in done.stdout


def test_without_a_gpu_it_says_what_to_do():
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 1
    assert "--small runs on the CPU" in done.stderr
