"""Rows of instructions and chats become text by a declared template, from a file to a healed model."""

from __future__ import annotations

import json
import random

import pytest
import yaml
from tiny import WORDS

from greenprune.data import HUB_TEXTS, calibration_tokens, documents
from greenprune.errors import AssetError
from greenprune.experiment import parse_experiment
from greenprune.templates import TEMPLATES, template_of
from greenprune.trial import run_trial

TASK = {"instruction": "Name a tree.", "input": "", "output": "Oak"}
CHAT = {"messages": [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat"}]}


def test_an_instruction_is_alpacas_prompt():
    text = TEMPLATES["instruction"].text
    assert text(TASK, None).endswith("request.\n\n### Instruction:\nName a tree.\n\n### Response:\nOak")
    assert "\n\n### Instruction:\nName a tree.\n\n### Input:\nIn a park.\n\n### Response:\nOak" in text(
        TASK | {"input": "In a park."}, None
    )


def test_a_chat_is_plain_without_a_template_of_the_tokenizer(tiny_tokenizer):
    assert TEMPLATES["chat"].text(CHAT, tiny_tokenizer) == "User: the cat\n\nAssistant: sat"


def test_a_chat_has_the_tokenizers_own_template_and_no_bos_of_its_own(tiny_tokenizer, monkeypatch):
    marked = "{{ bos_token }}{% for message in messages %}[{{ message.role }}] {{ message.content }}{% endfor %}"
    monkeypatch.setattr(tiny_tokenizer, "chat_template", marked)
    assert TEMPLATES["chat"].text(CHAT, tiny_tokenizer) == "[user] the cat[assistant] sat"


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("rows", [[TASK, TASK | {"input": "Here."}], [CHAT], [{"text": "a"} | TASK]])
def test_rows_of_a_file_take_the_template_of_their_columns(tmp_path, suffix, rows, tiny_tokenizer):
    import pandas as pd

    path = tmp_path / f"rows{suffix}"
    table = pd.DataFrame([row | {"id": 1} for row in rows])
    table.to_parquet(path) if suffix == ".parquet" else table.to_json(path, orient="records", lines=True)
    template = template_of(rows[0], "rows")
    assert list(documents(str(path), tokenizer=tiny_tokenizer)) == [template.text(row, None) for row in rows]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"body": "a"}], r"rows\.jsonl: rows must have the columns text \| instruction, output \| messages, got body"),
        ([TASK, {"instruction": "a", "output": None}], r"rows\.jsonl:2: each row must have 'instruction' and 'output'"),
        ([{"messages": [{"from": "human", "value": "a"}]}], r"messages must be a list of role and content each"),
    ],
)
def test_rows_without_a_template_are_refused(tmp_path, rows, message):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(AssetError, match=message):
        list(documents(str(path)))


def test_data_sets_of_the_hub_have_theirs_by_name_or_by_their_columns(monkeypatch, tiny_tokenizer):
    served = {
        "yahma/alpaca-cleaned": TASK,
        "someone/chats": CHAT,
        "HuggingFaceH4/ultrachat_200k": CHAT | {"text": "no"},
    }
    asked = []

    def rows(path, name, split, streaming, revision):
        asked.append(split)
        return iter([served[path]])

    monkeypatch.setattr("datasets.load_dataset", rows)
    texts = [next(documents(name, tokenizer=tiny_tokenizer)) for name in served]
    assert texts[0].endswith("### Response:\nOak")
    assert texts[1] == texts[2] == "User: the cat\n\nAssistant: sat"
    assert asked == ["train", "train", "train_sft"]
    assert {entry.template for entry in HUB_TEXTS.values()} <= {*TEMPLATES}


def words(rng: random.Random, count: int) -> str:
    return " ".join(rng.choices(WORDS, k=count))


@pytest.mark.parametrize("kind", ["instruction", "chat"])
def test_a_trial_heals_on_such_rows(tiny_experiment, tmp_path, kind, tiny_tokenizer):
    rng = random.Random(0)
    path = tmp_path / "rows.jsonl"
    with path.open("w") as stream:
        for _ in range(60):
            asked, given = words(rng, 9), words(rng, 9)
            row = {"instruction": asked, "input": words(rng, 3), "output": given}
            if kind == "chat":
                row = {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": given}]}
            stream.write(json.dumps(row) + "\n")
    tiny_experiment["heal"]["dataset"] = str(path)
    tiny_experiment["calibration"]["dataset"] = str(path)
    del tiny_experiment["sweep"]
    result = run_trial(parse_experiment(tiny_experiment), tmp_path / "runs")
    assert result.status == "ok"
    assert result.metrics["heal_loss_end"] > 0
    assert calibration_tokens(str(path), tiny_tokenizer, 3, 16, 0).shape == (3, 16)


def test_the_papers_studies_name_data_sets_with_a_template():
    from pathlib import Path

    for study in ("llm_pruner_llama7b", "shortened_llama7b", "green_20_percent"):
        data = yaml.safe_load((Path("experiments") / f"{study}.yaml").read_text())
        assert HUB_TEXTS[data["heal"]["dataset"]].template == "instruction"
