"""What serves what: which engine runs the checkpoint that a trial's pruning leaves, known before any work begins.

README's second table is printed from it by tests/prune/test_contract.py; the slow tests of tests/engines/ run engines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from greenprune.config.engines import EngineName
from greenprune.config.methods import SequencePruning
from greenprune.config.pruning import PruneConfig
from greenprune.config.trial import TrialConfig
from greenprune.config.width_pruning import FlapPruning, MinitronWidthPruning, RatioPruning, TwoStagePruning

Layers = Literal["one width", "biased outputs", "several widths", "some without attention"]
KINDS: tuple[Layers, ...] = ("one width", "biased outputs", "several widths", "some without attention")


@dataclass(frozen=True)
class GgufForm:
    """Architectures of llama.cpp for a model_type: for layers of one width, and of several, where it has one.

    biases: whether they hold biases of projections beside those that each such model has, and layers without attention.
    pairs: whether rotary embeddings turn neighbours there, where Transformers turns halves.
    """

    uniform: str
    per_layer: str | None
    biases: bool = False
    pairs: bool = False


LLAMA = GgufForm("llama", "deci", biases=True, pairs=True)
GGUF_FORMS = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,  # `qwen2` of llama.cpp holds no heads that don't make up the hidden size
    "qwen3": GgufForm("qwen3", "openelm"),
    "gemma3_text": GgufForm("gemma3", None),
}


def layers_after(prune: PruneConfig) -> Layers:
    """What a pruning makes of layers that were alike; of several steps the farthest from that."""
    if isinstance(prune, SequencePruning):
        return max(map(layers_after, prune.steps), key=KINDS.index)
    if isinstance(prune, TwoStagePruning):
        return "some without attention"
    if isinstance(prune, MinitronWidthPruning):
        differ = any(prune.skips(100))
    else:
        differ = isinstance(prune, RatioPruning) and not prune.uniform
    if differ:
        return "several widths"
    biased = (isinstance(prune, FlapPruning) and prune.bias) or getattr(prune, "reconstruct", "none") == "bias"
    return "biased outputs" if biased else "one width"


def cannot_serve(engine: EngineName, trial: TrialConfig, facts: Mapping[str, Any] | None = None) -> str | None:
    """Why an engine can't run what the trial makes: rule, got, remedy; None where it can, or nothing is known against.

    facts: of the model's config.json, as `greenprune.assets.model_facts` gives them.
    """
    kind = layers_after(trial.prune)
    method, model_type = trial.prune.method, (facts or {}).get("model_type")
    if engine == "vllm" and kind == "some without attention":
        return f"vllm runs layers that have attention, got prune.method {method}, which leaves some none; use llama_cpp"
    if engine != "llama_cpp" or model_type is None:
        return None
    form = GGUF_FORMS.get(model_type)
    if form is None:
        return f"llama_cpp runs {', '.join(GGUF_FORMS)} here, got {model_type}; use another engine"
    if kind in ("several widths", "some without attention") and not form.biases:
        return (
            f"llama_cpp runs layers of different widths of {_named(biases=True)}, got {model_type} and prune.method "
            f"{method}; set prune.uniform: true, or use another engine"
        )
    if kind == "biased outputs" and not form.biases:
        return (
            f"llama_cpp has biases of outputs in {_named(biases=True)}, got {model_type} and prune.method {method}, "
            "which adds some; set prune.bias: false, or another prune.reconstruct"
        )
    return None


def _named(biases: bool) -> str:
    return ", ".join(name for name, form in GGUF_FORMS.items() if form.biases == biases)
