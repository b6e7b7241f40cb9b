"""Masks and perplexities that the original code computed on SmolLM2-135M (tests/reference/masks.json)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from greenprune import PruneConfig, load_model, perplexity, prune
from greenprune.data import calibration_tokens, documents, token_blocks
from greenprune.models import Decoder, remove_layers

pytestmark = pytest.mark.real
FOLDER = Path(__file__).parent / "reference"
RUNS = json.loads((FOLDER / "masks.json").read_text())["runs"]
MASKS = np.load(FOLDER / "masks.npz")
LAYERS = (0, 15, 29)
ROWS = {"self_attn.q_proj": 36, "mlp.gate_proj": 96, "mlp.down_proj": 36}  # every nth row was kept
AGREEMENT = {"magnitude": 1.0, "wanda": 0.999, "sparsegpt": 0.97}


@pytest.fixture(scope="module")
def calibration(real_model):
    return calibration_tokens("pypi:openwebtext", real_model[1], 32, 256, seed=None)


@pytest.fixture(scope="module")
def segments(real_model):
    return token_blocks(documents("pypi:wikipedia"), real_model[1], 512, 32)


def pruned(run: str, calibration: torch.Tensor, layers: int = 30):
    """The first `layers` layers pruned as the reference's; those behind don't matter to them."""
    model, _ = load_model("pypi:smollm2-135m")
    remove_layers(model, range(layers, 30))
    fields = {"structure": RUNS[run]["structure"]} | ({"ratio": 0.5} if "unstr" in run else {})
    return model, prune(model, PruneConfig(method=RUNS[run]["method"], **fields), calibration=calibration)


def sampled(model, layers: int) -> torch.Tensor:
    """The rows that the reference holds, [entries]."""
    parts = [
        Decoder(model).view(layer).linears[name].weight.detach()[::step]
        for layer in LAYERS
        if layer < layers
        for name, step in ROWS.items()
    ]
    return torch.cat([part.flatten() for part in parts])


def agreement(run: str, model, dense, layers: int) -> float:
    """Share of the entries that are zero, or not, in both; of magnitude's groups only those without a tie."""
    ours = sampled(model, layers) != 0
    theirs = torch.from_numpy(np.unpackbits(MASKS[run])).bool()[: len(ours)]
    same = ours == theirs
    if run.startswith("magnitude") and RUNS[run]["structure"] != "unstructured":
        n, _, m = RUNS[run]["structure"].partition(":")
        ranked = sampled(dense, layers).abs().view(-1, int(m)).sort(dim=1).values
        same = same.view(-1, int(m))[ranked[:, int(n) - 1] < ranked[:, int(n)]]
    return float(same.float().mean())


@pytest.mark.parametrize("run", ["magnitude_unstr_0.5", "magnitude_2of4_0.5", "wanda_unstr_0.5", "wanda_2of4_0.5"])
def test_masks_of_the_first_layer(run, real_model, calibration):
    model, _ = pruned(run, calibration, layers=1)
    assert agreement(run, model, real_model[0], layers=1) >= AGREEMENT[RUNS[run]["method"]]


def test_sparsegpt_of_the_first_layer(real_model, calibration):
    model, report = pruned("sparsegpt_unstr_0.5", calibration, layers=1)
    assert agreement("sparsegpt_unstr_0.5", model, real_model[0], layers=1) >= AGREEMENT["sparsegpt"]
    assert report.notes == ["kernel: dense; zeros save neither time nor energy until a sparse kernel runs them"]


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_all_layers_and_perplexity(run, real_model, calibration, segments):
    theirs = RUNS[run]
    model, report = pruned(run, calibration)
    ppl = perplexity(model, segments)
    same = agreement(run, model, real_model[0], layers=30)
    sums = {
        name: float(Decoder(model).view(int(name.split(".", 1)[0])).linears[name.split(".", 1)[1]].weight.abs().sum())
        for name in theirs["kept_abs_sum"]
    }
    worst = max(abs(sums[name] / value - 1) for name, value in theirs["kept_abs_sum"].items())
    print(f"{run}: same {same:.5f}, ppl {ppl:.3f} of {theirs['ppl']:.3f}, sums {worst:.1e}, {report.ratio_reached:.6f}")
    assert report.ratio_reached == pytest.approx(theirs["sparsity"], abs=1e-5)
    assert same >= AGREEMENT[theirs["method"]]
    assert ppl == pytest.approx(theirs["ppl"], rel=0.01)
