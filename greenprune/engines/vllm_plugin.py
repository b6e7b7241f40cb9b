"""vLLM loads checkpoints whose layers differ in width, without their own code, where greenprune is installed.

vLLM calls `register` in each of its processes (entry point `vllm.general_plugins` of pyproject.toml). It then builds
the base model of greenprune/models/modeling_pruned.py, and its own linears and attention in place of that model's.
"""

from __future__ import annotations

from typing import Any

MODEL_CLASS = "PrunedForCausalLM"


def register() -> None:
    """Tell vLLM's registry what runs each architecture's Pruned… class; can be called again."""
    from vllm import ModelRegistry

    from greenprune.models.architectures import ARCHITECTURES
    from greenprune.models.modeling_pruned import PREFIX

    for entry in ARCHITECTURES.values():
        ModelRegistry.register_model(PREFIX + entry.stock.__name__, f"{__name__}:{MODEL_CLASS}")


def __getattr__(name: str) -> Any:
    """The model's class, made when vLLM asks for it: this module is imported where there is no vLLM too."""
    if name != MODEL_CLASS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[MODEL_CLASS] = _model_class()
    return globals()[MODEL_CLASS]


def _model_class() -> type:
    from vllm.model_executor.models.transformers import TransformersForCausalLM

    class PrunedForCausalLM(TransformersForCausalLM):
        def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
            use_our_base_model(vllm_config.model_config.hf_config)
            super().__init__(vllm_config=vllm_config, prefix=prefix)

    PrunedForCausalLM.__module__ = __name__
    PrunedForCausalLM.__qualname__ = MODEL_CLASS
    return PrunedForCausalLM


def use_our_base_model(config: Any) -> None:
    """AutoModel builds our base model from this configuration, and still the stock one from others of its class."""
    from transformers import MODEL_MAPPING, AutoModel

    from greenprune.models.modeling_pruned import pruned_class

    stock = type(config)
    narrow = type(stock.__name__, (stock,), {"__module__": __name__})
    # The class has the name of the one that it is made of, for the models say which they take by name
    AutoModel.register(narrow, pruned_class(MODEL_MAPPING[stock]), exist_ok=True)
    config.__class__ = narrow
