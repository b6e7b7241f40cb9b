"""What every quantizer of the table promises, a row each, on a random Llama and on its pruned kin."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from tiny import tiny_config, write_text
from transformers import LlamaForCausalLM

from greenprune.config import QUANTIZERS, PruneConfig, QuantizeConfig
from greenprune.config.section import chosen_by_method
from greenprune.errors import ConfigError, GreenpruneError, ModelError
from greenprune.experiment import parse_experiment
from greenprune.models import load_checkpoint, save_checkpoint
from greenprune.prune import prune
from greenprune.quantize import compressed, quantize_stage, toolchain
from greenprune.quantize.fits import layer_linears
from greenprune.trial import run_trial

slow = pytest.mark.slow
ANY = TypeAdapter(chosen_by_method({name: entry.fields for name, entry in QUANTIZERS.items()}))


@dataclass(frozen=True)
class Row:
    """closeness: the least cosine between its logits and those before."""

    fields: dict[str, Any]
    closeness: float
    slow: bool = False


ROWS = {
    "nf4": Row({"method": "nf4"}, 0.97),
    "int8": Row({"method": "int8"}, 0.999),
    "w8a8": Row({"method": "w8a8"}, 0.999, slow=True),
    "w4a16": Row({"method": "w4a16"}, 0.95, slow=True),
}


EACH = [pytest.param(row, id=name, marks=[slow] if row.slow else []) for name, row in ROWS.items()]


def section(row: Row) -> QuantizeConfig:
    return ANY.validate_python(row.fields)


def skip_unless_here(config: QuantizeConfig) -> None:
    entry = QUANTIZERS[config.method]
    for package, _ in entry.packages:
        pytest.importorskip(package)
    if entry.toolchain and toolchain.python() is None:
        pytest.skip("llm-compressor's environment isn't here")


@pytest.fixture
def model() -> LlamaForCausalLM:
    """Of widths in multiples of 64."""
    torch.manual_seed(0)
    return LlamaForCausalLM(tiny_config(hidden_size=128, intermediate_size=192)).eval()


@pytest.fixture
def text(tmp_path) -> dict[str, Any]:
    path = write_text(tmp_path / "train.jsonl", 60, 0)
    return {"dataset": str(path), "num_samples": 8, "seq_len": 32, "batch_size": 1, "seed": 0, "num_workers": 1}


def quantised(model, tokenizer, folder, row, text):
    """The model as the stage leaves it, and its folder."""
    config = section(row)
    skip_unless_here(config)
    save_checkpoint(model, tokenizer, folder / "before")
    (folder / "out").mkdir()
    calibration = text if config.needs_tokens() else None
    quantize_stage(
        folder / "out", checkpoint=folder / "before", config=config, calibration=calibration, dtype="float32"
    )
    return load_checkpoint(folder / "out" / "checkpoint", "float32"), folder / "out" / "checkpoint"


def closeness(one, other) -> float:
    tokens = torch.randint(4, 30, (2, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = [of(tokens).logits.float().flatten() for of in (one, other)]
    return torch.cosine_similarity(*logits, dim=0).item()


def test_every_quantizer_has_a_row():
    assert ROWS.keys() | {"none", "gguf"} == QUANTIZERS.keys()


PRUNED = {
    "dense": PruneConfig(method="none"),
    "depth": PruneConfig(method="bi", block_size=1),
    "width": PruneConfig(method="wanda_sp", ratio=0.3, skip_first=1, skip_last=0, round_to=64, heads="kv_group"),
}


@pytest.mark.parametrize("row", EACH)
@pytest.mark.parametrize("pruned", PRUNED)
def test_it_is_smaller_and_says_nearly_the_same(row, pruned, model, tiny_tokenizer, text, tmp_path):
    prune(model, PRUNED[pruned], torch.randint(4, 30, (2, 24), generator=torch.Generator().manual_seed(0)))
    made, folder = quantised(model, tiny_tokenizer, tmp_path, row, text)
    assert closeness(model, made) > row.closeness
    before = (tmp_path / "before" / "model.safetensors").stat().st_size
    assert (folder / "model.safetensors").stat().st_size < before / 2
    assert load_checkpoint(folder, "float32").base_model(torch.tensor([[1]]))[0].isfinite().all()  # as scoring asks it
    ids = torch.tensor([[1, 5, 6]])
    assert made.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0).shape == (1, 6)


@pytest.mark.parametrize("row", EACH)
def test_the_zeros_of_a_mask_stay(row, model, tiny_tokenizer, text, tmp_path):
    assert section(row).keeps_zeros()
    prune(model, PruneConfig(method="magnitude", structure="2:4"))
    zeros = {name: linear.weight == 0 for name, linear in layer_linears(model).items()}
    made, _ = quantised(model, tiny_tokenizer, tmp_path, row, text)
    for name, was in zeros.items():
        linear = made.get_submodule(name)
        left = linear(torch.eye(linear.in_features)).T
        left = left - (0 if linear.bias is None else linear.bias[:, None])
        assert left[was].abs().max() == 0, name
        assert left[~was].abs().max() > 0


def test_widths_that_a_format_cannot_hold_are_refused(tiny_checkpoint, tmp_path):
    with pytest.raises(ModelError, match=r"multiples of 64 .*q_proj with 32 and 32; prune with round_to"):
        quantize_stage(tmp_path / "out", checkpoint=tiny_checkpoint, config=section(ROWS["nf4"]), dtype="float32")


def test_what_is_not_installed_is_refused_before_any_work(monkeypatch, tmp_path):
    monkeypatch.setitem(QUANTIZERS, "w8a8", dataclasses.replace(QUANTIZERS["w8a8"], packages=()))
    monkeypatch.setenv(toolchain.VARIABLE, str(tmp_path / "python"))
    with pytest.raises(ConfigError, match=r"llm-compressor in an environment of its own, got no .*/python; run `.*pip"):
        toolchain.check_installed("w8a8")
    absent = dataclasses.replace(QUANTIZERS["int8"], packages=(("no_such_package", "pip install it"),))
    monkeypatch.setitem(QUANTIZERS, "int8", absent)
    with pytest.raises(ConfigError, match="needs the package no_such_package, got none here; run `pip install it`"):
        toolchain.check_installed("int8")


def test_what_llm_compressor_says_is_carried_over(monkeypatch, tmp_path):
    """A Python that has no llm-compressor: this one."""
    monkeypatch.setenv(toolchain.VARIABLE, sys.executable)
    job = tmp_path / "job.json"
    job.write_text("{}")
    with pytest.raises(GreenpruneError, match=r"exit status 1: (ModuleNotFoundError|KeyError)"):
        compressed._run(job, tmp_path)


def test_a_trial_says_what_its_weights_take(tiny_experiment, tmp_path):
    plain = run_trial(parse_experiment(tiny_experiment).trial(), tmp_path / "runs").metrics
    tiny_experiment["quantize"] = {"method": "int8"}
    metrics = run_trial(parse_experiment(tiny_experiment).trial(), tmp_path / "runs").metrics
    assert (plain["quantization"], metrics["quantization"]) == ("none", "int8")
    assert plain["parameters"] == metrics["parameters"]
    assert plain["macs_per_token"] == metrics["macs_per_token"]
    assert metrics["bits_per_weight"] == 8 * metrics["checkpoint_bytes"] / metrics["parameters"]
    assert metrics["checkpoint_bytes"] < plain["checkpoint_bytes"]
    assert metrics["energy_j_per_token"] > 0
