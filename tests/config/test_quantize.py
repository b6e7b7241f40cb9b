"""What `quantize` refuses when the file is read, and that it changes no key where it does nothing."""

from __future__ import annotations

import pytest

from greenprune.config import QUANTIZERS, TrialConfig
from greenprune.errors import ConfigError
from greenprune.experiment import parse_experiment

FLAP = {"method": "flap", "ratio": 0.2}
WANDA = {"method": "wanda", "structure": "2:4"}


def trial(quantize, prune=None, model="pypi:smollm2-135m", engine="transformers") -> TrialConfig:
    data = {"model": {"id": model}, "prune": prune or {"method": "none"}, "quantize": quantize}
    data["benchmark"] = {"energy": {"engine": engine}}
    return parse_experiment(data).trial()


REFUSED = {
    "zeros": (
        {"method": "gguf", "type": "q4_k_m"},
        WANDA,
        "quantize must keep the zeros of prune.method wanda, got q4",
    ),
    "zeros in a sequence": (
        {"method": "gguf", "type": "q4_k_m"},
        {"method": "sequence", "steps": [{"method": "bi", "block_size": 2}, WANDA]},
        "keep the zeros of prune.method sequence",
    ),
    "widths": ({"method": "nf4"}, FLAP, "round_to must be a multiple of 64 for quantize.method nf4, got 8"),
    "a step's widths": (
        {"method": "w4a16"},
        {"method": "sequence", "steps": [FLAP | {"round_to": 16}]},
        "multiple of 32 for quantize.method w4a16, got 16",
    ),
    "no type": ({"method": "gguf"}, None, "quantize.type is required"),
    "a type": ({"method": "gguf", "type": "q4_km"}, None, "did you mean 'q4_k_m'"),
    "a method": ({"method": "nf5"}, None, "did you mean 'nf4'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_when_the_file_is_read(case):
    quantize, prune, words = REFUSED[case]
    with pytest.raises(ConfigError, match=words):
        trial(quantize, prune, engine="llama_cpp" if quantize["method"] == "gguf" else "transformers")


def test_a_model_of_odd_widths_is_refused(tiny_checkpoint):
    with pytest.raises(ConfigError, match=r"the model's hidden_size must be a multiple of 64 .* got 32"):
        trial({"method": "nf4"}, model=str(tiny_checkpoint))
    assert trial({"method": "int8"}, model=str(tiny_checkpoint)).quantize.method == "int8"


def test_allowed():
    trial({"method": "nf4"}, FLAP | {"round_to": 64})
    trial({"method": "nf4"}, WANDA)
    trial({"method": "gguf", "type": "q8_0"}, WANDA, engine="llama_cpp")


def test_an_engine_that_cannot_load_it_is_refused():
    with pytest.raises(ConfigError, match=r"must load what .* gguf writes, got transformers; use llama_cpp"):
        trial({"method": "gguf", "type": "q8_0"})
    with pytest.raises(ConfigError, match=r"must load what quantize.method nf4 writes, got vllm; use transformers"):
        trial({"method": "nf4"}, engine="vllm")
    with pytest.raises(ConfigError, match=r"model.dtype must be bfloat16 or float16 where vllm runs .* w4a16"):
        trial({"method": "w4a16"}, engine="vllm")
    assert trial({"method": "w8a8"}, engine="vllm").quantize.method == "w8a8"


def test_an_axis_as_any_other():
    space = {
        "quantize.method": {"choice": ["none", "nf4", "gguf"]},
        "quantize.type": {"choice": ["q8_0", "q4_k_m"], "when": {"quantize.method": ["gguf"]}},
        "prune.method": {"choice": ["none", "wanda"]},
        "prune.structure": {"choice": ["2:4"], "when": {"prune.method": ["wanda"]}},
    }
    data = {
        "model": {"id": "pypi:smollm2-135m"},
        "prune": {"method": "none"},
    }
    data["benchmark"] = {"tasks": ["piqa"], "data": "assets", "energy": None}
    with pytest.raises(
        ConfigError, match=r"sweep.space allows .*q4_k_m.* which is refused: quantize must keep the zeros"
    ):
        parse_experiment(
            data | {"sweep": {"space": space, "objectives": {"accuracy": "max", "bits_per_weight": "min"}}}
        )
    del space["prune.structure"], space["prune.method"]
    experiment = parse_experiment(
        data | {"sweep": {"space": space, "objectives": {"accuracy": "max", "bits_per_weight": "min"}}}
    )
    assert experiment.trial({"quantize.method": "gguf", "quantize.type": "q8_0"}).quantize.stored_as == "q8_0"


def test_none_changes_no_id_and_dense_is_unquantised():
    plain = parse_experiment({"model": {"id": "pypi:smollm2-135m"}, "prune": FLAP}).trial()
    assert plain.trial_id() == trial({"method": "none"}, FLAP).trial_id()
    quantised = trial({"method": "int8"}, FLAP)
    assert quantised.trial_id() != plain.trial_id()
    assert quantised.dense().trial_id() == plain.dense().trial_id()


def test_every_entry_says_what_it_is():
    for name, entry in QUANTIZERS.items():
        assert entry.fields.model_fields["method"].default == name
        assert (entry.function is None) == (name == "none")
        assert entry.toolchain <= entry.tokens
