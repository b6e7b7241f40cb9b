"""What an engine can't run is refused when the file is read, with the remedy."""

from __future__ import annotations

import pytest

from greenprune.config import TrialConfig
from greenprune.config.serving import cannot_serve, layers_after
from greenprune.config.trial import TrialSections
from greenprune.errors import ConfigError
from greenprune.experiment import parse_experiment

FLAP = {"method": "flap", "ratio": 0.2}
TWO_STAGE = {"method": "two_stage", "ratio": 0.2}
REASONS = [
    ("transformers", TWO_STAGE, "opt", None),
    ("vllm", FLAP, "llama", None),
    ("vllm", TWO_STAGE, "llama", "vllm runs layers that have attention, got prune.method two_stage"),
    ("llama_cpp", FLAP, "llama", None),
    ("llama_cpp", TWO_STAGE, "qwen2", None),
    (
        "llama_cpp",
        FLAP,
        "gemma3_text",
        "different widths of llama, mistral, qwen2, got gemma3_text and prune.method flap",
    ),
    (
        "llama_cpp",
        FLAP | {"uniform": True},
        "gemma3_text",
        "biases of outputs in llama, mistral, qwen2, got gemma3_text",
    ),
    ("llama_cpp", FLAP | {"uniform": True, "bias": False}, "gemma3_text", None),
    ("llama_cpp", {"method": "none"}, "opt", "llama_cpp runs llama, mistral, qwen2, qwen3, gemma3_text here, got opt"),
    ("llama_cpp", {"method": "none"}, None, None),
]


def trial(prune: dict) -> TrialConfig:
    return TrialConfig(model={"id": "pypi:smollm2-135m"}, prune=prune)


@pytest.mark.parametrize(("engine", "prune", "model_type", "reason"), REASONS)
def test_reasons(engine, prune, model_type, reason):
    found = cannot_serve(engine, trial(prune), {"model_type": model_type} if model_type else {})
    assert found is None if reason is None else reason in found


def test_the_farthest_of_several_steps_counts():
    steps = [{"method": "bi", "block_size": 1}, FLAP, {"method": "magnitude", "ratio": 0.5}]
    assert layers_after(trial({"method": "sequence", "steps": steps}).prune) == "several widths"
    assert layers_after(trial({"method": "sequence", "steps": steps[::2]}).prune) == "one width"
    uniform = {"method": "minitron_width", "targets": {"ffn": 1024}}
    assert layers_after(trial(uniform).prune) == "one width"
    assert layers_after(trial(uniform | {"skip_first": 1}).prune) == "several widths"


def test_a_sweep_refuses_its_point_before_any_work():
    data = {
        "model": {"id": "pypi:smollm2-135m"},
        "prune": {"method": "none"},
        "benchmark": {"energy": {"engine": "vllm"}},
        "sweep": {
            "search": "grid",
            "space": {"prune.method": {"choice": ["two_stage"]}, "prune.ratio": {"choice": [0.2]}},
        },
    }
    with pytest.raises(ConfigError, match=r"benchmark.energy.engine: vllm runs layers that have attention"):
        parse_experiment(data)


def test_widths_are_rounded_for_the_trials_quantisation():
    auto = FLAP | {"round_to": "auto"}
    assert trial(auto).prune == trial(FLAP | {"round_to": 64}).prune
    assert trial(FLAP).prune.round_to == 8
    steps = {"method": "sequence", "steps": [auto, {"method": "magnitude", "ratio": 0.5}]}
    for prune, wanted in ((auto, 256), (FLAP, 8), (FLAP | {"round_to": 16}, 16)):
        data = {"model": {"id": "x"}, "prune": prune, "quantize": {"method": "gguf", "type": "q4_k_m"}}
        assert TrialSections._round_for_quantisation(data)["prune"].get("round_to", 8) == wanted
    data = {"prune": steps, "quantize": {"method": "gguf", "type": "q8_0"}}
    assert TrialSections._round_for_quantisation(data) == data
    data["quantize"]["type"] = "q4_k_m"
    assert TrialSections._round_for_quantisation(data)["prune"]["steps"][0]["round_to"] == 256
