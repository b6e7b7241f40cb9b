"""What the two stages write."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys

import pytest
from workload_windows import QUICK

from greenprune.benchmark import accuracy_stage, energy_stage
from greenprune.config import BenchmarkConfig

READING = {
    "name", "energy_j", "seconds", "kind", "source", "scope", "cpu_j", "gpu_j", "ram_j", "co2e_g", "parts", "sharing",
    "contamination", "notes", "began", "gpus",
}  # fmt: skip
PROVENANCE = {"machine", "machine_class", "machine_facts", "hostname", "readings"}
ACCURACY = PROVENANCE | {
    "data", "accuracy", "tasks", "perplexity", "parameters", "checkpoint_bytes", "layers", "energy_wh_tasks",
    "energy_kind", "energy_note", "work",
}  # fmt: skip
TASK = {"metric", "value", "stderr", "floor", "unparsed", "documents", "metrics", "seconds", "joules"}
CHOSEN = {"doc_id", "document", "target", "prediction", "score", "parsed", "log_likelihoods"}
ENERGY = PROVENANCE | {
    "prefill_latency_s", "decode_latency_s", "prefill_tokens_per_s", "decode_tokens_per_s", "energy_j_per_token",
    "energy_j_per_token_net", "energy_j_per_prefill_token", "energy_j_per_decode_token", "energy_wh_per_1k_requests",
    "energy_delay_product_js", "energy_ci95_ratio", "average_power_w", "co2e_g_per_1k_requests", "idle_power_w",
    "tokens_per_s", "ttft_p50_s", "ttft_p90_s", "ttft_p99_s", "tpot_p50_s", "tpot_p90_s", "tpot_p99_s",
    "energy_j_per_request", "energy_engine", "energy_concurrency",
    "energy_window_s", "energy_repeats", "energy_kind", "energy_source", "energy_scope", "energy_sharing",
    "energy_note", "gpu_sm_clock_mhz", "gpu_power_cap_w", "gpu_temperature_c", "gpu_throttling", "idle",
    "peak_memory_bytes", "energy_windows_discarded", "discarded",
}  # fmt: skip
EMISSIONS_END = "pue,wue,task_name,energy_j,energy_kind,energy_source,energy_scope,contamination"


def test_the_keys_of_every_file_are_those_of_artifacts_in_a_store(checkpoint, wheel, tmp_path):
    """Metrics are read from these files, and stores are full of them: a key that goes or comes breaks a reader."""
    config = BenchmarkConfig(tasks=["openbookqa", "xsum"], data="assets", limit=1, energy=None)
    accuracy_stage(tmp_path, checkpoint=checkpoint, config=config, dtype="float32")
    energy_stage(tmp_path / "energy", checkpoint=checkpoint, config=QUICK, dtype="float32")
    accuracy = json.loads((tmp_path / "accuracy.json").read_text())
    energy = json.loads((tmp_path / "energy/energy.json").read_text())
    assert accuracy.keys() == ACCURACY
    assert {frozenset(task) for task in accuracy["tasks"].values()} == {frozenset(TASK)}
    assert energy.keys() == ENERGY
    for reading in (*accuracy["readings"], *energy["readings"], energy["idle"], *energy["discarded"]):
        assert reading.keys() == READING
    assert first_answer(tmp_path, "openbookqa").keys() == CHOSEN
    assert first_answer(tmp_path, "xsum").keys() == CHOSEN - {"log_likelihoods"}
    for folder in (tmp_path, tmp_path / "energy"):
        header = (folder / "emissions.csv").read_text().splitlines()[0]
        assert header.endswith(EMISSIONS_END)
        assert header.count(",") == 43


def first_answer(folder, task: str) -> dict:
    return json.loads(gzip.decompress((folder / f"answers/{task}.jsonl.gz").read_bytes()).splitlines()[0])


def test_the_accuracy_stage_writes_everything(checkpoint, wheel, tmp_path, llama):
    text = tmp_path / "mine.txt"
    text.write_text("It is raining. " * 20)
    config = BenchmarkConfig(tasks=["openbookqa"], data="assets", perplexity=[f"{text}@16"], energy=None)
    out = tmp_path / "out"
    accuracy_stage(out, checkpoint=checkpoint, config=config, dtype="float32")
    found = json.loads((out / "accuracy.json").read_text())
    tied = llama.get_input_embeddings().weight.numel()
    assert found["parameters"] == sum(p.numel() for p in llama.parameters())
    assert found["parameters"] == sum(p.numel() for p in llama.state_dict().values()) - tied
    assert found["checkpoint_bytes"] == (checkpoint / "model.safetensors").stat().st_size
    assert (found["layers"], found["data"]) == (2, "assets")
    assert set(found["perplexity"]) == {"mine_ppl@16"}
    assert found["machine"]
    assert found["readings"][0]["name"] == "openbookqa"
    lines = gzip.decompress((out / "answers/openbookqa.jsonl.gz").read_bytes()).splitlines()
    assert [json.loads(line)["doc_id"] for line in lines] == list(range(8))
    joules = found["tasks"]["openbookqa"]["joules"]
    assert found["energy_wh_tasks"] == (None if joules is None else pytest.approx(joules / 3600))
    header, line = (out / "emissions.csv").read_text().splitlines()
    assert header.startswith("timestamp,project_name,run_id")
    assert ",openbookqa," in line


def test_the_energy_stage_writes_everything(checkpoint, tmp_path):
    out = tmp_path / "out"
    config = QUICK.model_copy(update={"min_seconds": 0.2, "country": "FRA"})
    energy_stage(out, checkpoint=checkpoint, config=config, dtype="float32")
    found = json.loads((out / "energy.json").read_text())
    assert found["energy_kind"] in ("measured", "estimated")
    assert found["energy_j_per_token"] > 0
    assert found["co2e_g_per_1k_requests"] > 0
    assert found["average_power_w"] == pytest.approx(
        sum(reading["energy_j"] for reading in found["readings"])
        / sum(reading["seconds"] for reading in found["readings"])
    )
    assert {"machine", "machine_facts", "hostname", "peak_memory_bytes", "energy_source"} <= set(found)
    assert len((out / "emissions.csv").read_text().splitlines()) == 1 + 2 * QUICK.repeats


def test_importing_benchmark_is_light():
    code = (
        "import sys, greenprune.benchmark, greenprune.benchmark.tasks; "
        "print(sorted({'torch', 'lm_eval', 'codecarbon', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == "[]"
