"""What stages need of memory: predicted from shapes, measured, and what happens where there isn't enough."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import yaml
from ray.exceptions import WorkerCrashedError
from transformers import LlamaConfig
from typer.testing import CliRunner

from greenprune import plan
from greenprune.cli import app
from greenprune.config import STAGES, BenchmarkConfig, CalibrationConfig, EnergyConfig, LoraHealing, PruneConfig
from greenprune.errors import MemoryExceeded, ModelError, SweepError
from greenprune.experiment import parse_experiment
from greenprune.memory import halving, prediction
from greenprune.memory.prediction import Devices, devices_here, predicted
from greenprune.models.sizes import measured_sizes, sizes_of
from greenprune.plan import plan_stages, refuse_too_large, stages_of
from greenprune.stages import Request
from greenprune.store import Artifact, Store
from greenprune.sweep.stage_tasks import RayTasks
from greenprune.trial import run_trial

GIB = 2**30
LLAMA_70B = {"vocab_size": 128256, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80}
LLAMA_70B |= {"num_attention_heads": 64, "num_key_value_heads": 8, "dtype": "bfloat16"}
TEXT = CalibrationConfig(num_samples=128, seq_len=2048)


@pytest.fixture(scope="module")
def sizes_of_70b(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama-70b")
    LlamaConfig(**LLAMA_70B).save_pretrained(folder)
    return sizes_of(folder, "bfloat16")


def test_sizes_are_those_of_the_weights(tiny_checkpoint, tiny_model):
    sizes = sizes_of(tiny_checkpoint, "float32")
    assert sizes == measured_sizes(tiny_model)
    assert sizes.weight_bytes == 4 * sum(parameter.numel() for parameter in tiny_model.parameters())
    assert sizes.parameters == sizes.layers * sizes.layer + sizes.outside
    assert (sizes.hidden, sizes.attention, sizes.channels, sizes.cached, sizes.layers) == (32, 32, 48, 32, 4)
    assert sizes_of(tiny_checkpoint, "bfloat16").weight_bytes * 2 == sizes.weight_bytes


def test_a_model_that_is_in_no_table_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(ModelError, match="must be one of"):
        sizes_of(tmp_path, "auto")


def test_a_70b_has_its_size_and_streams(sizes_of_70b):
    assert sizes_of_70b.parameters == 70_553_706_496
    angular = PruneConfig(method="angular", block_size=8)
    assert predicted("prune", sizes_of_70b, angular).total < 12 * GIB
    assert predicted("prune", sizes_of_70b, angular, devices=Devices(1, 200 * GIB)).total > 131 * GIB
    assert predicted("prune", sizes_of_70b, angular, devices=Devices(0, 200 * GIB)).total < 12 * GIB
    flap = {"want": ["activations"]}
    assert predicted("collect", sizes_of_70b, TEXT, flap).total < 16 * GIB
    taylor = predicted("collect", sizes_of_70b, TEXT, {"want": ["gradient"]})
    assert taylor.gradients - 12 * sizes_of_70b.layer > 2 * GIB  # the states that are kept
    two = predicted("collect", sizes_of_70b, TEXT.model_copy(update={"num_workers": 2}), flap)
    assert 131 * GIB / 2 < two.weights < 131 * GIB
    for stage, section in (("accuracy", BenchmarkConfig(tasks=["piqa"])), ("energy", EnergyConfig())):
        assert 131 * GIB < predicted(stage, sizes_of_70b, section).total < 150 * GIB
    assert predicted("heal", sizes_of_70b, LoraHealing()).total > 140 * GIB


def test_what_more_work_needs_is_more(sizes_of_70b):
    def need(method: str, **fields):
        facts = {"calibration": TEXT.identity()}
        return predicted("prune", sizes_of_70b, PruneConfig(method=method, **fields), facts).total

    assert need("magnitude", ratio=0.5) < need("wanda", ratio=0.5) < need("sparsegpt", ratio=0.5)
    steps = [{"method": "bi", "block_size": 1}, {"method": "sparsegpt", "ratio": 0.5}]
    assert need("sequence", steps=steps) == need("sparsegpt", ratio=0.5)
    smaller, larger = (LoraHealing(batch_size=size) for size in (1, 2))
    assert predicted("heal", sizes_of_70b, smaller).total < predicted("heal", sizes_of_70b, larger).total


def test_every_stage_records_both(tiny_experiment, tmp_path):
    tiny_experiment["heal"]["loss"] = "kd"
    tiny_experiment["quantize"] = {"method": "int8"}
    result = run_trial(parse_experiment(tiny_experiment).trial(), tmp_path / "runs")
    for stage in STAGES:
        assert result.metrics[f"{stage}_peak_memory_bytes"] > 100 << 20
        assert result.metrics[f"{stage}_predicted_memory_bytes"] > prediction.PROCESS_BYTES


class Scarce:
    """A stage's function that runs out of memory with more than so many samples in a batch."""

    def __init__(self, monkeypatch, most: int) -> None:
        self.real, self.most, self.seen = halving.function_named, most, []
        monkeypatch.setattr(halving, "function_named", self.named)

    def named(self, path: str):
        function = self.real(path)
        if not path.endswith("collect_stage"):
            return function

        def work(out, *, config, **more):
            self.seen.append(config.batch_size)
            if config.batch_size > self.most:
                (out / "half-done").touch()
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            assert not (out / "half-done").exists()
            return function(out, config=config, **more)

        return work


def test_a_stage_without_memory_takes_half_the_batch(tiny_experiment, tmp_path, monkeypatch, caplog):
    tiny_experiment["calibration"]["batch_size"] = 4
    config = parse_experiment(tiny_experiment).trial()
    scarce = Scarce(monkeypatch, most=2)
    with caplog.at_level("WARNING", logger="greenprune"):
        result = run_trial(config, tmp_path / "runs")
    assert scarce.seen == [4, 2]
    assert "collect ran out of memory" in caplog.text
    made = result.stages[0]
    folder = tmp_path / "runs" / "_stages" / "collect" / made["key"]
    assert json.loads((folder / "manifest.json").read_text())["halved"] is True
    again = run_trial(config, tmp_path / "runs")  # it is the artifact of the batch that was asked for
    assert again.stages[0]["key"] == made["key"]
    assert again.stages[0]["reused"]


def test_then_it_fails_with_the_numbers(tiny_experiment, tmp_path, monkeypatch):
    tiny_experiment["calibration"]["batch_size"] = 4
    scarce = Scarce(monkeypatch, most=1)
    with pytest.raises(MemoryExceeded) as failed:
        run_trial(parse_experiment(tiny_experiment).trial(), tmp_path / "runs")
    assert scarce.seen == [4, 2]
    said = str(failed.value)
    for part in (
        "the collect stage must fit into",
        "Tried to allocate 2.00 GiB",
        "with half the batch",
        "predicted: 0.",
    ):
        assert part in said
    assert Store(tmp_path / "runs").events()[-1]["event"] != "computed"


def test_what_can_be_halved():
    assert CalibrationConfig(batch_size=3).halved().batch_size == 1
    assert CalibrationConfig().halved() is None
    assert BenchmarkConfig(batch_size=16).halved().batch_size == 8
    healed = LoraHealing(batch_size=4, gradient_accumulation=2).halved()
    assert (healed.batch_size, healed.gradient_accumulation) == (2, 4)
    assert EnergyConfig(batch_size=4).halved() is None  # it is what is measured


def test_what_would_not_fit_where_is_said(tiny_experiment, monkeypatch):
    experiment = parse_experiment(tiny_experiment)
    rows = plan_stages(experiment)
    assert [row.stage for row in rows] == ["collect", "prune", "accuracy", "energy"]  # no point heals
    assert all(row.fits and row.there_is == devices_here().bytes for row in rows)
    small = Devices(cpu_bytes=prediction.PROCESS_BYTES)
    row = plan_stages(experiment, small)[0]
    assert not row.fits
    assert row.refusal().startswith("collect must fit into 0.7 GiB (CPU), got a prediction of 0.7 GiB (weights")
    assert "sweep.resources.collect.memory_gb" in row.refusal()
    tiny_experiment["sweep"]["resources"] = {"collect": {"memory_gb": 2}}
    assert [row.fits for row in plan_stages(parse_experiment(tiny_experiment), small)] == [True, False, False, False]
    monkeypatch.setattr(plan, "devices_here", lambda: small)
    with pytest.raises(MemoryExceeded, match="collect must fit"):
        refuse_too_large(experiment.trial())


def test_the_stages_of_a_sweep(tiny_experiment):
    without = {"collect", "prune", "accuracy", "energy"}
    assert stages_of(parse_experiment(tiny_experiment)) == without
    del tiny_experiment["heal"], tiny_experiment["sweep"]["space"]["heal.method"]
    assert stages_of(parse_experiment(tiny_experiment)) == without
    tiny_experiment["heal"] = {"method": "lora"}
    assert stages_of(parse_experiment(tiny_experiment)) == {*without, "heal"}
    tiny_experiment["sweep"]["space"]["heal.loss"] = {"choice": ["ce", "kd"]}
    assert stages_of(parse_experiment(tiny_experiment)) == {*without, "heal", "teach"}


def test_a_70b_passes_the_planner(tmp_path, tiny_experiment):
    LlamaConfig(**LLAMA_70B).save_pretrained(tmp_path / "70b")
    tiny_experiment["model"] = {"id": str(tmp_path / "70b"), "dtype": "bfloat16"}
    node = Devices(2, 80 * GIB, 64 * GIB)
    rows = {row.stage: row for row in plan_stages(parse_experiment(tiny_experiment, ["heal.quantize=nf4"]), node)}
    assert (rows["prune"].on, rows["collect"].on, rows["accuracy"].on) == ("CPU", "CPU", "2 GPU")
    assert all(row.fits for row in rows.values())
    one = {row.stage: row for row in plan_stages(parse_experiment(tiny_experiment), Devices(1, 80 * GIB, 64 * GIB))}
    assert [stage for stage, row in one.items() if not row.fits] == ["accuracy", "energy"]
    shown = CliRunner().invoke(app, ["plan", _written(tmp_path, tiny_experiment), "--gpus", "1", "--gpu-gb", "80"])
    assert shown.exit_code == 1
    assert "accuracy must fit into 80.0 GiB (1 GPU), got a prediction of 1" in shown.output


def _written(folder, experiment) -> str:
    (folder / "planned.yaml").write_text(yaml.safe_dump(experiment))
    return str(folder / "planned.yaml")


class Killed(RayTasks):
    """Its workers are killed as long as the batch is larger than this."""

    most = 2

    def _run_once(self, requests, storage_uri):
        self.done.append([request.parts()[0].batch_size for request in requests])
        if any(request.parts()[0].batch_size > self.most for request in requests):
            raise WorkerCrashedError
        return [Artifact(request.stage, request.call().key) for request in requests]


def test_a_killed_worker_is_tried_with_half_the_batch(monkeypatch):
    request = Request("collect", CalibrationConfig(batch_size=4), {"checkpoint": None}, {"want": ["bi"]})
    tasks = Killed({}, retries=1, log_path="log.txt")
    assert [made.key for made in tasks._run([request], "runs")] == [request.call().key]
    assert tasks.done == [[4], [2]]
    larger = replace(request, section=CalibrationConfig(batch_size=8))
    with pytest.raises(SweepError, match=r"got 2 deaths .*, and as many with half the batch; see log.txt"):
        tasks._run([larger], "runs")
    single = replace(request, section=CalibrationConfig())
    monkeypatch.setattr(Killed, "most", 0)
    with pytest.raises(SweepError, match=r"got 2 deaths \(killed, or out of memory\); see"):
        tasks._run([single], "runs")
