"""Heads and channels that the original FLAP kept on SmolLM2-135M, and the perplexities (tests/reference/flap.json).

The originals know no grouped-query attention: their model, and the one here, has each KV head three times.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from architectures import with_own_kv_heads
from paths import REFERENCE_FILES

from greenprune import PruneConfig, collect, load_model, perplexity, prune
from greenprune.models import remove_layers

pytestmark = pytest.mark.real
RUNS = json.loads((REFERENCE_FILES / "flap.json").read_text())["runs"]
MASKS = np.load(REFERENCE_FILES / "flap.npz")
LAYERS, HEADS, CHANNELS = 30, 9, 1536


@pytest.fixture(scope="module")
def statistics(real_model, calibration):
    """Of the model as it is: its output projections read the same as those of the expanded one."""
    return collect(real_model[0], calibration, {"activations"})


def expanded(layers: int = LAYERS):
    """The first `layers` layers with a KV head for each query head; the same function."""
    model, _ = load_model("pypi:smollm2-135m")
    remove_layers(model, range(layers, LAYERS))
    return with_own_kv_heads(model)


def config_of(run: str, **fields) -> PruneConfig:
    return PruneConfig(**RUNS[run]["prune"], round_to=1, **fields)


def agreements(run: str, report) -> tuple[float, float]:
    """Shares of the heads and of the channels that are kept, or not, in both."""
    shares = []
    for name, kept, size in (("heads", report.kept_heads, HEADS), ("channels", report.kept_channels, CHANNELS)):
        theirs = np.unpackbits(MASKS[f"{run}.{name}"])[: LAYERS * size].reshape(LAYERS, size)
        ours = np.stack([np.isin(range(size), kept[layer]) for layer in kept])
        shares.append(float((ours == theirs[: len(ours)]).mean()))
    return shares[0], shares[1]


def test_the_expanded_model_is_the_same_function(real_model, calibration):
    with torch.no_grad():
        torch.testing.assert_close(
            expanded()(calibration[:1, :32]).logits, real_model[0](calibration[:1, :32]).logits, atol=1e-3, rtol=0
        )


@pytest.mark.parametrize(
    ("run", "fields"),
    [("WIFV_ULUM_0.2", {}), pytest.param("wandasp_0.2", {"sequential": True}, marks=pytest.mark.slow)],
)
def test_kept_in_the_first_layers(run, fields, calibration):
    report = prune(expanded(2), config_of(run, **fields), calibration=calibration)
    assert min(agreements(run, report)) >= 0.98


@pytest.mark.slow
@pytest.mark.parametrize("run", ["WIFV_ALAM_0.2", "WIFV_ULUM_0.2"])
def test_flap(run, statistics, segments):
    theirs, model = RUNS[run], expanded()
    report = prune(model, config_of(run), statistics=statistics)
    heads, channels = agreements(run, report)
    assert min(heads, channels) >= 0.98
    if "ULUM" in run:
        assert sum(map(len, report.kept_heads.values())) == theirs["heads_kept"]
        assert sum(map(len, report.kept_channels.values())) == theirs["channels_kept"]
    else:
        assert report.ratio_reached == pytest.approx(0.2, abs=1e-3)
    assert perplexity(model, segments) <= 1.01 * theirs["ppl"]


@pytest.mark.slow
def test_flap_without_bias(statistics, segments):
    model = expanded()
    prune(model, config_of("WIFV_ULUM_0.2", bias=False), statistics=statistics)
    assert perplexity(model, segments) <= 1.01 * RUNS["WIFV_ULUM_0.2"]["ppl_without_bias"]


@pytest.mark.slow
def test_wanda_sp_layer_after_layer_is_the_original(calibration, segments):
    model = expanded()
    report = prune(model, config_of("wandasp_0.2", sequential=True), calibration=calibration)
    assert min(agreements("wandasp_0.2", report)) >= 0.999
    assert perplexity(model, segments) == pytest.approx(RUNS["wandasp_0.2"]["ppl"], rel=0.01)


@pytest.mark.slow
def test_wanda_sp_of_dense_statistics_keeps_others_and_is_no_worse(statistics, segments):
    model = expanded()
    report = prune(model, config_of("wandasp_0.2"), statistics=statistics)
    heads, channels = agreements("wandasp_0.2", report)
    assert 0.9 < min(heads, channels) < 0.98
    assert perplexity(model, segments) <= 1.01 * RUNS["wandasp_0.2"]["ppl"]
