"""What an artifact depends on is in its key: content of texts and weights, versions of libraries, how energy is had."""

from __future__ import annotations

import dataclasses
import json
import shutil
from importlib import metadata
from pathlib import Path

import pytest
from faulty_store import FaultyStore

from greenprune.assets import fingerprint
from greenprune.config import STAGES, ModelConfig
from greenprune.config.dependencies import minor_versions
from greenprune.errors import SweepError
from greenprune.experiment import parse_experiment
from greenprune.stages import Request, Source, perform
from greenprune.storage import Storage
from greenprune.store import MANIFEST, StageCall, Store
from greenprune.trial import run_trial


def key_of_benchmark(text: str) -> str:
    data = {"model": {"id": "x/y"}, "prune": {"method": "none"}, "benchmark": {"perplexity": [text], "tasks": []}}
    config = parse_experiment(data).trial()
    return Request("accuracy", config.benchmark, {"checkpoint": Source(config.model, "d" * 24)}).call().key


def test_a_text_file_counts_by_content_not_by_path(tmp_path):
    one, other = tmp_path / "one" / "held.txt", tmp_path / "other" / "held.txt"
    for path in (one, other):
        path.parent.mkdir()
        path.write_text("the cat sat on the mat")
    first = key_of_benchmark(f"{one}@16")
    assert key_of_benchmark(f"{other}@16") == first
    assert key_of_benchmark(f"held={other}@16") == first, "the metric is called so anyway"
    assert key_of_benchmark(f"ptb={one}@16") != first, "the metric is called another way"
    assert key_of_benchmark(f"{one}@32") != first
    as_lines = shutil.copy(one, one.with_suffix(".jsonl"))
    assert key_of_benchmark(f"{as_lines}@16") != first, "it is read another way"
    other.write_text("the dog sat on the mat")
    assert key_of_benchmark(f"{other}@16") != first
    assert "." not in key_of_benchmark(f"{other}@16"), "folders beside an artifact's are named by a suffix"


def test_calibration_text_counts_by_content_in_every_stage_that_reads_it(tmp_path):
    text = tmp_path / "train.jsonl"

    def keys() -> list[str]:
        data = {
            "model": {"id": "x/y"},
            "calibration": {"dataset": str(text)},
            "prune": {"method": "wanda", "ratio": 0.5},
            "heal": {"method": "lora", "dataset": str(text)},
        }
        config = parse_experiment(data).trial()
        dense = Source(config.model, "d" * 24)
        facts = {"calibration": config.calibration.identity()}
        calls = [
            Request("collect", config.calibration, {"checkpoint": dense}),
            Request("prune", config.prune, {"checkpoint": dense, "statistics": None}, facts),
            Request("heal", config.heal, {"checkpoint": dense, "teacher": None, "dense": None}),
            Request("teach", config.heal.model_copy(update={"loss": "kd"}).teaching(), {"checkpoint": dense}),
        ]
        return [request.call().key for request in calls]

    text.write_text('{"text": "a"}\n')
    before = keys()
    text.write_text('{"text": "b and more"}\n')
    assert not set(before) & set(keys())


def test_a_fingerprint_covers_every_kind_of_weights(tiny_checkpoint):
    config = ModelConfig(id=str(tiny_checkpoint))
    for name in ("pytorch_model.bin", "model.pt", "tokenizer.model", "extra.tiktoken"):
        weights = tiny_checkpoint / name
        before = fingerprint(config)
        weights.write_bytes(b"one")
        added = fingerprint(config)
        weights.write_bytes(b"another")
        assert len({before, added, fingerprint(config)}) == 3, name
    before = fingerprint(config)
    (tiny_checkpoint / "training_args.bin").write_bytes(b"how it was trained")
    (tiny_checkpoint / "README.md").write_text("a model")
    assert fingerprint(config) == before


def call_with(libraries: dict[str, str], **more: bool) -> StageCall:
    return StageCall("prune", 1, {"method": "angular"}, {"checkpoint": "abc"}, libraries, **more)


def write(out: Path) -> None:
    (out / "x").write_text("x")


def test_another_minor_version_of_a_library_is_another_artifact_unless_asked(tmp_path):
    store = Store(tmp_path)
    before, old, new = (call_with(libraries) for libraries in ({}, {"torch": "2.9"}, {"torch": "2.10"}))
    assert before.key == before.base == old.base == new.base
    assert len({before.key, old.key, new.key}) == 3
    for call in (before, old):
        store.get_or_compute(call, write)
    assert store.find(new) is None
    asked = dataclasses.replace(new, any_versions=True)
    assert asked.key == new.key
    assert store.find(asked).key == old.key, "the newest"
    store.get_or_compute(new, write)
    assert store.find(asked).key == new.key, "its own comes first"


def test_artifacts_of_other_versions_are_found_in_an_object_store(tmp_path):
    def storage_with(mirror: str) -> Storage:
        storage = Storage(tmp_path / mirror)
        storage.remote = FaultyStore(tmp_path / "bucket")
        return storage

    asked = call_with({"torch": "2.10"}, any_versions=True)
    assert Store(storage_with("empty")).find(asked) is None
    old = call_with({"torch": "2.9"})
    Store(storage_with("one")).get_or_compute(old, write)
    assert Store(storage_with("two")).find(asked).key == old.key


@pytest.fixture
def small(tiny_experiment):
    tiny_experiment["heal"] = {"method": "none"}
    tiny_experiment["benchmark"]["energy"] = None
    del tiny_experiment["sweep"]
    return parse_experiment(tiny_experiment).trial()


def install(monkeypatch, **others: str) -> None:
    """Other versions of some libraries, as their packages would say."""
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: others.get(name) or real(name))


def test_a_trial_with_another_torch_computes_anew_unless_asked(small, tmp_path, monkeypatch):
    first = run_trial(small, tmp_path / "runs")
    manifest = tmp_path / "runs" / "_stages" / "prune" / first.stages[1]["key"] / MANIFEST
    made_with = json.loads(manifest.read_text())["versions"]
    assert made_with == {name: metadata.version(name) for name in ("torch", "transformers")}
    install(monkeypatch, torch="99.1.3")
    asked = run_trial(small, tmp_path / "runs", any_versions=True)
    assert [made["key"] for made in asked.stages] == [made["key"] for made in first.stages]
    again = run_trial(small, tmp_path / "runs")
    assert not any(made["reused"] for made in again.stages)
    install(monkeypatch, torch="99.1.4+cpu")
    assert all(made["reused"] for made in run_trial(small, tmp_path / "runs").stages), "a patch changes no numbers"


def test_every_stage_names_installed_libraries():
    for stage in STAGES.values():
        assert {"torch", "transformers"} <= set(minor_versions(stage.libraries)) <= set(stage.libraries)
    assert "peft" in STAGES["heal"].libraries
    assert "lm_eval" in STAGES["accuracy"].libraries
    assert all(version.count(".") == 1 for version in minor_versions(["torch", "transformers"]).values())


def test_a_node_with_other_libraries_or_texts_than_the_head_is_refused(small, tmp_path, monkeypatch):
    request = Request("accuracy", small.benchmark, {"checkpoint": Source(small.model, fingerprint(small.model))})
    install(monkeypatch, torch="99.1.3")
    with pytest.raises(SweepError, match=r"head's versions .*torch \d+\.\d+, got torch 99\.1 on .*; install"):
        perform(request, str(tmp_path / "runs"))
    monkeypatch.undo()
    Path(small.benchmark.perplexity[0].removesuffix("@16")).write_text('{"text": "changed"}\n')
    with pytest.raises(SweepError, match=r"held\.jsonl@16 must be the same on every node.*got another file on"):
        perform(request, str(tmp_path / "runs"))
    assert not (tmp_path / "runs" / "_stages").exists()


def test_energy_is_told_apart_by_how_it_was_had(tiny_experiment, tmp_path):
    import torch

    config = parse_experiment(tiny_experiment).trial()
    dense = Source(config.model, fingerprint(config.model))
    options = {"dtype": "float32", "trust_remote_code": False}
    request = Request("energy", config.benchmark.energy, {"checkpoint": dense}, options=options, exclusive="device")

    def made(request: Request) -> dict:
        artifact = perform(request, str(tmp_path / "runs"))
        return json.loads((tmp_path / "runs" / artifact.folder / MANIFEST).read_text())

    first = made(request)["section"]
    assert first["engine"] == "transformers"
    assert (first["gpus"], first["threads"]) == (torch.cuda.device_count(), torch.get_num_threads())
    shared = made(dataclasses.replace(request, exclusive="none"))["section"]
    assert (first["exclusive"], shared["exclusive"]) == ("device" if first["gpus"] else "node", "none")
    torch.set_num_threads(2)
    made(request)
    assert len(list((tmp_path / "runs" / "_stages" / "energy").glob("*/energy.json"))) == 3
