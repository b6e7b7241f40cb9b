"""Weights that are only in pytorch_model.bin: tensors are read, code in them never runs."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from tiny_causal import tiny

from greenprune.assets import materialize
from greenprune.config import ModelConfig
from greenprune.errors import AssetError
from greenprune.models import load_checkpoint


@pytest.fixture
def pickled(tmp_path) -> Path:
    """A tiny OPT as facebook/opt-1.3b is on the hub: config.json and pytorch_model.bin."""
    model = tiny("opt")
    model.config.architectures = ["OPTForCausalLM"]
    model.config.save_pretrained(tmp_path / "opt")
    torch.save(model.state_dict(), tmp_path / "opt/pytorch_model.bin")
    return tmp_path / "opt"


def test_pickled_weights_load(pickled):
    ids = torch.arange(12).view(1, 12)
    with torch.no_grad():
        assert torch.equal(load_checkpoint(pickled)(ids).logits, tiny("opt")(ids).logits)


class Code:
    """A pickle that would make a file when it is read."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_pickled_weights_is_refused_and_never_runs(pickled, tmp_path, zipped):
    trace, file = tmp_path / "trace", pickled / "pytorch_model.bin"
    weights = torch.load(file, weights_only=True)
    torch.save(weights | {"extra": Code(trace)}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(AssetError, match=r"weights must be tensors alone.*it wasn't run.*safetensors"):
        load_checkpoint(pickled)
    assert not trace.exists()
    if not zipped:
        file.write_bytes(pickle.dumps({"extra": Code(trace)}, protocol=2))
        with pytest.raises(AssetError):
            load_checkpoint(pickled)
        assert not trace.exists()


@pytest.mark.parametrize("files", [["model.safetensors", "pytorch_model.bin"], ["pytorch_model.bin"]])
def test_pickled_weights_are_fetched_only_where_there_are_no_others(monkeypatch, tmp_path, files):
    import fnmatch

    import huggingface_hub

    def snapshot_download(model, revision, allow_patterns):
        for name in ["config.json", *files, "tf_model.h5"]:
            if any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns):
                (tmp_path / name).touch()
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    materialize(ModelConfig(id="facebook/opt-1.3b"), weights=False)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    materialize(ModelConfig(id="facebook/opt-1.3b"))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["config.json", files[0]])
