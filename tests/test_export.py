"""An export holds the right checkpoint, only the model's files, and a card that says what it is."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from byte_tokenizer import byte_tokenizer
from cutting import lively_model
from huggingface_hub import ModelCard

from greenprune.errors import ConfigError
from greenprune.export import export, model_card
from greenprune.results import TrialResult, find_trial, write_result

METRICS: dict[str, Any] = {
    "accuracy": 0.6, "piqa_acc": 0.6, "piqa_stderr": 0.02, "wikitext2_ppl@512": 30.5,
    "layers_removed": "[3, 4]",
    "parameters_removed_ratio": 0.25, "energy_j_per_token": 1.5, "energy_wh_per_1k_requests": 200.0,
    "co2e_g_per_1k_requests": 10.0, "heal_energy_wh": 4.0, "heal_loss_start": 4.0, "heal_loss_end": 3.5,
    "energy_kind": "estimated", "energy_source": "cpu_model", "machine": "box", "energy_wh_tasks": None,
}  # fmt: skip


def result(trial_id: str, *stages: str, status: Any = "ok", **parts: Any) -> TrialResult:
    config = {
        "model": {"id": "some/model", "revision": None, "dtype": "float32"},
        "prune": {"method": "bi", "block_size": 2},
        "heal": {"method": "lora", "dataset": "c4"},
        "benchmark": {"limit": 50, "energy": {"country": "FRA"}},
    } | parts
    keys = [{"stage": stage, "key": f"{trial_id}-{stage}", "seconds": 1.0, "reused": False} for stage in stages]
    return TrialResult(trial_id, 1, status, config, METRICS, error="boom" if status != "ok" else None, stages=keys)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """runs/demo with three trials, and the artifacts of their stages."""
    runs = tmp_path / "runs"
    for trial in (
        result("bi-aaa1", "collect", "prune", "heal", "accuracy"),
        result("bi-aab2", "collect", "prune", "accuracy"),
        result("bi-ccc3", status="failed"),
    ):
        write_result(runs / "demo", trial)
        for stage in trial.stages:
            folder = runs / "_stages" / stage["stage"] / stage["key"]
            (folder / "checkpoint" / "global_step1").mkdir(parents=True)
            (folder / "manifest.json").write_text("{}")
            for name in (
                "config.json",
                "model.safetensors",
                "tokenizer.json",
                "optimizer.pt",
                "training_args.bin",
            ):
                (folder / "checkpoint" / name).write_text(f"{stage['key']} {name}")
            (folder / "checkpoint" / "global_step1" / "state.safetensors").write_text("optimizer")
    return runs


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_last_of_prune_and_heal_is_exported(runs: Path, tmp_path: Path):
    for trial_id, stage in (("bi-aaa1", "heal"), ("bi-aab2", "prune")):
        out = export(runs / "demo", trial_id, tmp_path / "out" / trial_id)
        assert names(out) == ["README.md", "config.json", "model.safetensors", "tokenizer.json"]
        assert (out / "model.safetensors").read_text() == f"{trial_id}-{stage} model.safetensors"
        assert names(out.parent) == sorted({*names(out.parent), trial_id})


def test_nothing_else_is_left_beside_it(runs: Path, tmp_path: Path):
    export(runs / "demo", "bi-aaa1", tmp_path / "new" / "out")
    assert names(tmp_path / "new") == ["out"]


def test_a_crash_leaves_nothing(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space"):
        export(runs / "demo", "bi-aaa1", tmp_path / "new" / "out")
    assert names(tmp_path / "new") == []


def test_an_empty_folder_may_be_filled_and_a_full_one_not(runs: Path, tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir()
    export(runs / "demo", "bi-aaa1", out)
    with pytest.raises(ConfigError, match="new or empty"):
        export(runs / "demo", "bi-aab2", out)
    assert "bi-aaa1" in (out / "model.safetensors").read_text()
    with pytest.raises(ConfigError, match="new or empty"):
        export(runs / "demo", "bi-aab2", out / "config.json")


def test_trials_are_found_by_unique_prefix(runs: Path, tmp_path: Path):
    export(runs / "demo", "bi-aab", tmp_path / "out")
    for trial_id, message in {
        "bi-aa": "fits bi-aaa1, bi-aab2",
        "bi-ccd3": "did you mean 'bi-ccc3'",
        "": "choices: bi-aaa1",
        "bi-c": "failed: boom",
    }.items():
        with pytest.raises(ConfigError, match=message):
            export(runs / "demo", trial_id, tmp_path / "other")
    with pytest.raises(ConfigError, match="a run without trials"):
        export(runs / "nothing", "bi-aab", tmp_path / "other")


def test_a_whole_id_wins_over_a_longer_one():
    trials = [result("bi-1"), result("bi-12")]
    assert find_trial(trials, "bi-1").trial_id == "bi-1"


def test_a_lost_checkpoint_says_how_to_make_it_again(runs: Path, tmp_path: Path):
    shutil.rmtree(runs / "_stages" / "heal")
    with pytest.raises(ConfigError, match=r"greenprune trial .*demo/trials/bi-aaa1/config\.yaml"):
        export(runs / "demo", "bi-aaa1", tmp_path / "out")
    (runs / "_stages" / "prune" / "bi-aab2-prune" / "checkpoint" / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="weights"):
        export(runs / "demo", "bi-aab2", tmp_path / "out")


def test_the_dense_trial_exports_the_model_itself(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    dense = tmp_path / "dense"
    dense.mkdir()
    for name in ("config.json", "pytorch_model.bin", "tokenizer.model", "model.gguf", ".gitattributes"):
        (dense / name).write_text(name)
    asked = []
    monkeypatch.setattr("greenprune.export.materialize", lambda config: asked.append(config.id) or dense)
    unpruned = {"prune": {"method": "none"}, "heal": {"method": "none"}}
    write_result(runs / "demo", result("none-0", "accuracy", "energy", **unpruned))
    out = export(runs / "demo", "none-0", tmp_path / "out")
    assert asked == ["some/model"]
    assert names(out) == ["README.md", "config.json", "pytorch_model.bin", "tokenizer.model"]


def test_card(tmp_path: Path):
    card = ModelCard(model_card(result("bi-aaa1", "heal")))
    data = card.data.to_dict()
    assert data["base_model"] == "some/model"
    assert {"greenprune", "bi"} <= set(data["tags"])
    scores = {entry.metric_name: (entry.dataset_name, entry.metric_value) for entry in card.data.eval_results or []}
    assert scores == {"piqa_acc": ("piqa", 0.6), "wikitext2_ppl@512": ("wikitext2", 30.5)}
    emissions = data["co2_eq_emissions"]
    assert emissions["emissions"] == pytest.approx(4.0 * 10.0 / 200.0)
    assert emissions["source"] == "CodeCarbon; energy estimated"
    assert emissions["geographical_location"] == "FRA"
    for words in (
        "pruned by `bi`",
        "25.0%",
        "[3, 4]",
        "healed by `lora` on c4",
        "**ESTIMATES**",
        "from_pretrained",
    ):
        assert words in card.text
    assert "energy_wh_tasks" not in card.text


def test_code_of_a_pruned_class_is_exported_and_the_card_says_so(runs: Path, tmp_path: Path):
    plain = ModelCard(model_card(result("bi-aab2", "prune"))).text
    assert "trust_remote_code" not in plain
    folder = runs / "_stages" / "prune" / "bi-aab2-prune" / "checkpoint"
    (folder / "modeling_pruned.py").write_text("class PrunedLlamaForCausalLM: ...")
    out = export(runs / "demo", "bi-aab2", tmp_path / "out")
    assert "modeling_pruned.py" in names(out)
    card = (out / "README.md").read_text()
    assert "AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)" in card
    assert "layers differ in width" in card


def test_a_gguf_stands_in_place_of_the_checkpoint(runs: Path, tmp_path: Path):
    folder = runs / "_stages" / "prune" / "bi-aab2-prune" / "checkpoint"
    shutil.rmtree(folder)
    lively_model("llama").save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    out = export(runs / "demo", "bi-aab2", tmp_path / "out", "gguf")
    assert names(out) == ["README.md", "model-f16.gguf"]
    card = ModelCard((out / "README.md").read_text())
    assert 'model = Llama("model-f16.gguf")' in card.text
    assert card.data.library_name == "gguf"
    with pytest.raises(ConfigError, match="a type is GGUF's, got type f32 with format transformers; add --format gguf"):
        export(runs / "demo", "bi-aab2", tmp_path / "other", type="f32")


def test_card_claims_nothing_that_was_not_measured():
    plain = result("bi-1", heal={"method": "none"}, model={"id": "pypi:smollm2-135m"})
    metrics = {**METRICS, "heal_energy_wh": None, "energy_kind": "measured", "energy_source": "nvml_counter"}
    plain = TrialResult(**{**plain.__dict__, "metrics": metrics})
    card = ModelCard(model_card(plain))
    data = card.data.to_dict()
    assert "co2_eq_emissions" not in data
    assert "base_model" not in data  # no hub id
    assert "ESTIMATES" not in card.text
    assert "**measured** (nvml_counter)" in card.text
    assert "not healed" in card.text
    assert "de-quantised 4-bit" in card.text
    unmeasured = TrialResult(**{**plain.__dict__, "metrics": {}})
    assert "Energy was not measured" in ModelCard(model_card(unmeasured)).text
