"""lm-eval asked of llama.cpp gives what HFLM gives of the same weights in Transformers."""

from __future__ import annotations

import pytest
from byte_tokenizer import LETTERS, byte_tokenizer
from cutting import lively_model
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from greenprune.benchmark.logits_lm import LogitsLM
from greenprune.engines import load_engine
from greenprune.engines.gguf_file import write_gguf
from greenprune.models import save_checkpoint

pytest.importorskip("llama_cpp")
pytestmark = pytest.mark.slow
LONGEST = 64


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """HFLM, and llama.cpp behind LogitsLM."""
    folder, model = tmp_path_factory.mktemp("checkpoint"), lively_model("llama")
    save_checkpoint(model, byte_tokenizer(), folder)
    write_gguf(folder, folder / "model.gguf")
    engine = load_engine(folder, "float32", name="llama_cpp")
    yield (
        HFLM(pretrained=model, tokenizer=byte_tokenizer(), max_length=LONGEST, batch_size=1),
        LogitsLM(engine, byte_tokenizer(), LONGEST),
    )
    engine.close()


def asked(kind: str, *arguments: object) -> list[Instance]:
    """Texts of many lengths, one longer than the model's room."""
    texts = ["".join(LETTERS[(start * 7 + i * 5) % 59] for i in range(length)) for start, length in enumerate(LENGTHS)]
    return [Instance(kind, {}, (text, *arguments), 0, metadata=("t", 0, 1)) for text in texts]


LENGTHS = (3, 20, 60, 90, 1)


def test_choices_score_the_same(both):
    stock, ours = (lm.loglikelihood(asked("loglikelihood", "AB!"), disable_tqdm=True) for lm in both)
    assert [chosen for _, chosen in ours] == [chosen for _, chosen in stock]
    assert [value for value, _ in ours] == pytest.approx([value for value, _ in stock], rel=1e-4)


@pytest.mark.parametrize("until", [["#"], []])
def test_generated_answers_are_the_same(until, both):
    settings = {"until": until, "max_gen_toks": 12, "do_sample": False}
    stock, ours = (lm.generate_until(asked("generate_until", settings), disable_tqdm=True) for lm in both)
    assert ours == stock
    assert any(ours)
