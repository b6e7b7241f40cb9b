"""Agreement with the values that the original implementations computed on SmolLM2-135M (tests/reference)."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from paths import REFERENCE_FILES

from greenprune import PruneConfig, collect, load_model, perplexity, prune
from greenprune.prune.depth import angular_block, least_influential

pytestmark = pytest.mark.real
REFERENCE = json.loads((REFERENCE_FILES / "depth.json").read_text())


@pytest.fixture(scope="module")
def statistics(real_model, calibration):
    return collect(real_model[0], calibration, {"angular", "bi"})


def test_same_weights(real_model):
    parameters = dict(real_model[0].named_parameters())
    for name, digest in REFERENCE["weights_sha256"].items():
        assert hashlib.sha256(parameters[name].detach().numpy().tobytes()).hexdigest() == digest


def test_same_tokens(calibration, segments):
    assert int(calibration.sum()) == REFERENCE["calib_sum"]
    assert int(segments.sum()) == REFERENCE["eval_sum"]


def test_angular_distances(statistics):
    theirs = np.array(REFERENCE["angular_distance"], dtype=float)
    ours = statistics.angular_distance.numpy()[: len(theirs)]
    assert np.array_equal(np.isnan(ours), np.isnan(theirs))
    assert np.nanmax(np.abs(ours - theirs)) < 1e-4


def test_best_starts(statistics):
    for n, start in REFERENCE["best_start_by_n"].items():
        assert angular_block(statistics.angular_distance, int(n))[0] == start


def test_block_influence(statistics):
    theirs = np.array(REFERENCE["bi"]["influence"])
    assert np.abs(statistics.block_influence.numpy() - theirs).max() < 1e-4
    order = REFERENCE["bi"]["order_lowest_first"]
    for count in (1, 3, 5, 8, 12):
        assert least_influential(statistics.block_influence, count) == sorted(order[:count])


@pytest.mark.slow
def test_dense_perplexity(real_model, segments):
    assert perplexity(real_model[0], segments) == pytest.approx(REFERENCE["ppl_dense"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["angular", "bi"])
@pytest.mark.parametrize("block_size", [3, 5, 8])
def test_layers_and_perplexity_after_removal(method, block_size, statistics, segments):
    theirs = REFERENCE[method][f"remove_{block_size}"]
    model, _ = load_model("pypi:smollm2-135m")
    report = prune(model, PruneConfig(method=method, block_size=block_size), statistics=statistics)
    assert report.layers_removed == theirs["removed"]
    assert perplexity(model, segments) == pytest.approx(theirs["ppl"], rel=5e-3)


@pytest.fixture(scope="module")
def short_calibration(calibration):
    return calibration[:10, :128]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "statistic"), [("taylor_depth", "gradient"), ("ppl_depth", "layer_perplexity")])
def test_shortened_llama(method, statistic, real_model, short_calibration, segments):
    theirs = REFERENCE[method]
    gathered = collect(real_model[0], short_calibration, {statistic}, batch_size=5)
    score = gathered["layer.taylor" if method == "taylor_depth" else "layer_perplexity"]
    assert score.tolist() == pytest.approx(theirs["score"], rel=1e-3)
    assert score.argsort().tolist() == theirs["order_lowest_first"]
    for count in range(1, 25):  # layers 0-3 and the last two are protected
        assert least_influential(score, count, 4, 2) == sorted(theirs["order_unprotected"][:count])

    model, _ = load_model("pypi:smollm2-135m")
    report = prune(model, PruneConfig(method=method, block_size=6), statistics=gathered)
    assert report.layers_removed == theirs["remove_6"]["removed"]
    assert perplexity(model, segments) == pytest.approx(theirs["remove_6"]["ppl"], rel=5e-3)
