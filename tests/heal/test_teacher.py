"""The teacher's record: what is in it, that it goes on where it was killed, and that it fits its blocks."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from healing import SEQ_LEN, TRAIN, VALIDATION, config, text_file, toy_tokenizer
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from greenprune.errors import GreenpruneError
from greenprune.heal import teacher as teachers
from greenprune.heal.distillation import likeliest
from greenprune.heal.teacher import Teacher, teach_stage, write_record

PARTS = {"train": TRAIN, "validation": VALIDATION}
TOP_K = 8


@pytest.fixture
def model(checkpoint):
    return AutoModelForCausalLM.from_pretrained(checkpoint).eval()


@pytest.fixture
def small_shards(monkeypatch):
    """Three blocks a shard."""
    monkeypatch.setattr(teachers, "SHARD_BYTES", 3 * (SEQ_LEN - 1) * TOP_K * 4)


def test_every_block_has_what_the_model_predicts(model, tmp_path, small_shards):
    facts = write_record(tmp_path, model, PARTS, TOP_K)
    assert len(list(tmp_path.glob("train-*.safetensors"))) == 7  # 20 blocks by threes
    rows = Teacher(tmp_path, PARTS).part("train")
    assert len(rows) == len(TRAIN)
    for block in (0, 19, 4, 3):
        with torch.no_grad():
            ids, log_probs = likeliest(model(TRAIN[block][None]).logits[0, :-1], TOP_K)
        assert torch.equal(rows[block][0], ids)
        assert torch.allclose(rows[block][1], log_probs, atol=5e-3)
    on_disk = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    tokens = len(TRAIN) * SEQ_LEN + len(VALIDATION) * SEQ_LEN
    assert facts.bytes_per_token == pytest.approx(4 * TOP_K * (SEQ_LEN - 1) / SEQ_LEN)
    assert on_disk == pytest.approx(facts.bytes_per_token * tokens, rel=0.2)  # and a header a shard


def test_a_shard_is_all_that_is_in_memory(model, tmp_path, small_shards, monkeypatch):
    most = []
    write = teachers.save_file
    monkeypatch.setattr(
        teachers, "save_file", lambda tensors, path: (most.append(len(tensors["ids"])), write(tensors, path))
    )
    write_record(tmp_path, model, PARTS, TOP_K)
    assert most == [3] * 6 + [2] + [3] * 2


def test_a_second_attempt_goes_on_behind_the_last_whole_shard(model, tmp_path, small_shards, monkeypatch):
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    whole.mkdir()
    torn.mkdir()
    write_record(whole, model, PARTS, TOP_K)
    for number in (0, 1):
        shutil.copy(whole / f"train-{number:05d}.safetensors", torn)
    (torn / "train-00002.writing").write_bytes(b"half of one")
    asked = []
    predict = teachers.next_token_logits
    monkeypatch.setattr(teachers, "next_token_logits", lambda m, ids: (asked.append(len(ids)), predict(m, ids))[1])
    write_record(torn, model, PARTS, TOP_K)
    assert sum(asked) == 20 - 6 + 6, "two shards of three blocks were there"
    one, other = (Teacher(folder, PARTS).part("train") for folder in (whole, torn))
    assert all(torch.equal(one[block][1], other[block][1]) for block in range(20))


def test_a_large_vocabulary_has_ids_of_four_bytes(model, tmp_path):
    model.config.vocab_size = 2**16 + 1  # what the writer goes by; the model's own is smaller
    facts = write_record(tmp_path, model, {"train": TRAIN[:2]}, TOP_K)
    with safe_open(tmp_path / "train-00000.safetensors", framework="pt") as shard:
        assert shard.get_tensor("ids").dtype == torch.int32
    assert facts.bytes_per_token == pytest.approx(6 * TOP_K * (SEQ_LEN - 1) / SEQ_LEN)


def test_a_record_of_other_blocks_is_refused(model, tmp_path):
    write_record(tmp_path, model, PARTS, TOP_K)
    with pytest.raises(GreenpruneError, match="record must be of the blocks that are healed on, got other train"):
        Teacher(tmp_path, {"train": TRAIN.flip(0), "validation": VALIDATION})


def test_the_stage_records_the_blocks_that_healing_trains_on(checkpoint, tmp_path):
    source, out = tmp_path / "dense", tmp_path / "out"
    shutil.copytree(checkpoint, source)
    toy_tokenizer().save_pretrained(source)
    out.mkdir()
    section = config(dataset=text_file(tmp_path, 200), loss="kd", bos="none")
    made = teach_stage(out, checkpoint=source, config=section.teaching(), dtype="float32")
    facts = json.loads((out / "teacher.json").read_text())
    assert facts["blocks"] == {"train": 32, "validation": 6}
    assert made == {"bytes_per_token": facts["bytes_per_token"], "tokens": 38 * SEQ_LEN}
    tracked = config(dataset=text_file(tmp_path, 200), track_kl=True, bos="none").teaching()
    (tmp_path / "few").mkdir()
    teach_stage(tmp_path / "few", checkpoint=source, config=tracked, dtype="float32")
    assert json.loads((tmp_path / "few" / "teacher.json").read_text())["blocks"] == {"train": 0, "validation": 6}
