"""A relative path means the same everywhere: it is resolved once, against the file that holds it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from greenprune import load_model
from greenprune.config import known_keys
from greenprune.config.texts import TEXTS_AT, named_in
from greenprune.errors import AssetError, ConfigError
from greenprune.experiment import load_experiment, parse_experiment
from greenprune.trial import run_trial

FILE = """
model: {id: ./tiny}
calibration: {dataset: texts/train.jsonl}
prune: {method: wanda, ratio: 0.5}
heal: {method: lora, dataset: ../up.txt}
benchmark: {perplexity: ["held.txt@16", "ptb=texts/ptb.txt@16", "pypi:wikipedia@16", "c4@16"], energy: null}
sweep:
  space:
    calibration.dataset: {choice: [texts/train.jsonl, c4]}
    prune.ratio: {choice: [0.5], when: {calibration.dataset: [texts/train.jsonl]}}
  objectives: {held_ppl@16: min}
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / "x.yaml").write_text(FILE)
    for model in ("file/tiny", "work/other"):
        (tmp_path / model).mkdir(parents=True)
        (tmp_path / model / "config.json").write_text('{"num_hidden_layers": 4}')
    return tmp_path / "file"


def test_paths_of_a_file_are_relative_to_it_wherever_it_is_read(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path / "work")
    config = load_experiment("../file/x.yaml")
    assert config.model.id == f"{folder}/tiny"
    assert config.calibration.dataset == f"{folder}/texts/train.jsonl"
    assert config.heal.dataset == f"{tmp_path}/up.txt"
    texts = [f"{folder}/held.txt@16", f"ptb={folder}/texts/ptb.txt@16", "pypi:wikipedia@16", "c4@16"]
    assert config.benchmark.perplexity == texts
    space = config.sweep.space
    assert space["calibration.dataset"].choice == [f"{folder}/texts/train.jsonl", "c4"]
    assert space["prune.ratio"].when == {"calibration.dataset": [f"{folder}/texts/train.jsonl"]}
    monkeypatch.chdir(folder)
    assert load_experiment("x.yaml") == config
    (tmp_path / "elsewhere.yaml").write_text(yaml.safe_dump(config.to_dict()))
    assert load_experiment(tmp_path / "elsewhere.yaml").trial() == config.trial()


def test_paths_of_overrides_are_relative_to_the_working_directory(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path / "work")
    given = ["model.id=./other", "calibration={dataset: a.txt}", "sweep.space.calibration.dataset={choice: [b.txt]}"]
    given += ["sweep.space.prune.ratio.when={}", "heal.dataset=~/c.txt"]
    config = load_experiment(folder / "x.yaml", given)
    assert (config.model.id, config.calibration.dataset) == (f"{tmp_path}/work/other", f"{tmp_path}/work/a.txt")
    assert config.sweep.space["calibration.dataset"].choice == [f"{tmp_path}/work/b.txt"]
    assert config.heal.dataset == str(Path("~/c.txt").expanduser())


def test_a_trial_of_a_file_runs_from_another_directory_and_from_its_own_record(
    tiny_experiment, tmp_path, tiny_checkpoint, monkeypatch
):
    del tiny_experiment["sweep"]
    tiny_experiment |= {"model": {"id": "tiny"}, "heal": {"method": "none"}}  # a single name of a folder
    tiny_experiment["calibration"]["dataset"] = "train.jsonl"
    tiny_experiment["benchmark"] |= {"perplexity": ["held.jsonl@16"], "energy": None}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(tiny_experiment))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    result = run_trial(load_experiment("../x.yaml").trial(), tmp_path / "runs")
    assert result.config["model"]["id"] == str(tiny_checkpoint)
    (tmp_path / "work" / "config.yaml").write_text(yaml.safe_dump(result.config))
    again = run_trial(load_experiment("config.yaml").trial(), tmp_path / "runs")
    assert again.trial_id == result.trial_id
    assert all(made["reused"] for made in again.stages)

    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("tiny", "x.yaml", "train.jsonl", "held.jsonl"):
        shutil.move(tmp_path / name, moved / name)
    elsewhere = run_trial(load_experiment(moved / "x.yaml").trial(), tmp_path / "runs")
    assert all(made["reused"] for made in elsewhere.stages), "the same content at another path"


def test_every_key_that_names_a_text_is_known_to_do_so():
    named = {key for key in known_keys() if key.split(".")[-1] in ("dataset", "domains", "perplexity")}
    assert named == set(TEXTS_AT)
    data = {"model": {"id": "x", "revision": "y"}, "prune": {"method": "z"}, "name": "n"}
    assert named_in(data, lambda key, name: f"{key}!{name}") == data | {"model": {"id": "model.id!x", "revision": "y"}}


def test_hub_ids_assets_and_named_texts_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("owner/name", "gpt2", "pypi:smollm2-135m"):
        assert parse_experiment({"model": {"id": name}, "prune": {"method": "none"}}).model.id == name
    with pytest.raises(AssetError, match=r"model\.id must be a folder.*got 'a/b/c'"):
        parse_experiment({"model": {"id": "a/b/c"}, "prune": {"method": "none"}})
    for folder in ("a/b/c", "gpt2"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.json").write_text("{}")
        made = parse_experiment({"model": {"id": folder}, "prune": {"method": "none"}})
        assert made.model.id == f"{tmp_path}/{folder}", "no hub id has two slashes; a single name may be a folder"


@pytest.mark.parametrize("name", ["owner/name", "owner"])
def test_a_hub_id_that_is_a_folder_is_refused_as_ambiguous(name, tmp_path, monkeypatch):
    (tmp_path / "file").mkdir()
    (tmp_path / "work" / name).mkdir(parents=True)
    (tmp_path / "file" / "x.yaml").write_text(f"model: {{id: {name}}}\nprune: {{method: none}}\n")
    monkeypatch.chdir(tmp_path / "work")
    with pytest.raises(ConfigError, match=rf"x\.yaml: model\.id must be a hub id or a folder, got '{name}'.*\./{name}"):
        load_experiment(tmp_path / "file" / "x.yaml")
    if "/" in name:
        with pytest.raises(ConfigError, match="hub id or a folder"):
            load_model(name)
        with pytest.raises(ConfigError, match="hub id or a folder"):
            parse_experiment({"model": {"id": "./x"}, "prune": {"method": "none"}}, [f"model.id={name}"])
