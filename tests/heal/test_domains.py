"""Several texts to train on, read as the losses of each ask for."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from healing import Interrupt, config, logits, toy_tokenizer, without_times
from pydantic import ValidationError

from greenprune.config.texts import named_in
from greenprune.experiment import parse_experiment
from greenprune.heal import heal_stage
from greenprune.heal.blocks import healing_blocks
from greenprune.heal.domains import DomainOrder, new_shares
from greenprune.heal.lora import heal_with_lora
from greenprune.heal.teacher import Teacher, teach_stage, write_record
from greenprune.models import load_checkpoint, save_checkpoint
from greenprune.models.loss import mean_loss


def test_a_share_grows_with_what_its_loss_exceeds_the_dense_one_by():
    shares = new_shares({"web": 0.5, "wiki": 0.5}, {"web": 3.0, "wiki": 2.0}, {"web": 2.0, "wiki": 2.5})
    raised = math.e / (math.e + 1)  # wiki is better than the dense model: its share isn't lowered for that
    assert shares["web"] == pytest.approx((1 - 1e-4) * raised + 5e-5, rel=1e-12)
    assert sum(shares.values()) == pytest.approx(1, rel=1e-12)


@pytest.fixture
def two(tmp_path):
    """A section that reads two texts, and what it reads them as."""
    texts = {name: lines(tmp_path / f"{name}.jsonl", form) for name, form in FORMS.items()}
    return config(domains=texts, steps=9, gradient_accumulation=8)


FORMS = {"letters": "{} and so on, a line of letters. ", "digits": "{}0 11 22 33 44 55 66 77 88 99 "}


def lines(path: Path, form: str) -> str:
    texts = (form.format(chr(65 + i % 26)) * (3 + i % 5) for i in range(400))
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return str(path)


def order_with(log: list, section) -> DomainOrder:
    order = DomainOrder(section.blocks, {"letters": 0.0, "digits": 0.0}, section)
    order.on_train_begin(None, SimpleNamespace(log_history=log), None)
    return order


def test_shares_count_from_the_step_behind_a_validation(two):
    of_step = two.blocks // two.num_steps
    only = {"letters": 1.0, "digits": 0.0}
    order = order_with([{"step": 3, "shares": only}], two)
    before, after = list(order)[: 4 * of_step], list(order)[4 * of_step :]  # a step's first batch is read one ahead
    assert any(block >= two.blocks for block in before)
    assert all(block < two.blocks for block in after)
    assert len(set(order)) == len(order) == two.blocks


def test_blocks_of_a_domain_stand_together_and_a_short_text_is_repeated(two, tmp_path):
    train, validation = healing_blocks(two, toy_tokenizer())
    assert train.shape == (2 * two.blocks, two.seq_len)
    assert validation.shape == (2 * two.validation_samples, two.seq_len)
    digits = torch.tensor([48 <= token < 58 for token in range(128)])
    for blocks in (train, validation):
        letters, numbers = (digits[part].float().mean() for part in blocks.chunk(2))
        assert letters == 0
        assert numbers > 0.5
    short = lines(tmp_path / "short.jsonl", FORMS["letters"])
    Path(short).write_text("\n".join(Path(short).read_text().splitlines()[:40]))
    train, _ = healing_blocks(two.model_copy(update={"domains": {**two.domains, "letters": short}}), toy_tokenizer())
    assert train.shape == (2 * two.blocks, two.seq_len)
    assert len(train.chunk(2)[0].unique(dim=0)) < two.blocks


@pytest.fixture
def blocks(two):
    return healing_blocks(two, toy_tokenizer())


def record(folder: Path, parts: dict, losses: dict[str, float]) -> Teacher:
    """Of a dense model with these losses on the domains."""
    folder.mkdir()
    write_record(folder, Uniform(), {**parts, "train": parts["train"][:0]}, 4, losses=losses)
    return Teacher(folder, parts)


class Uniform(torch.nn.Module):
    """Knows nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(model_type="", get_text_config=lambda: SimpleNamespace(vocab_size=128))
        self.device = torch.device("cpu")

    def get_output_embeddings(self) -> None:
        """None, so that all logits come from one forward."""

    def forward(self, input_ids, use_cache=False):
        return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 128))


def test_what_exceeds_the_dense_loss_is_read_more_and_the_history_says_so(two, blocks, checkpoint, tmp_path):
    train, validation = blocks
    parts = {"train": train, "validation": validation}
    teacher = record(tmp_path / "record", parts, {"letters": 0.0, "digits": 100.0})
    _, history = heal_with_lora(checkpoint, train, validation, two, tmp_path / "work", "float32", teacher=teacher)
    first, *later = history.validation
    assert first.shares == {"letters": 0.5, "digits": 0.5}
    dense = load_checkpoint(checkpoint)
    for name, part in zip(two.domains, validation.chunk(2), strict=True):
        assert first.losses[name] == pytest.approx(mean_loss(dense, part), abs=1e-5)
    for point in history.validation:
        assert point.loss == pytest.approx(sum(point.losses.values()) / 2, abs=1e-5)
    assert [point.shares["letters"] > 0.9 for point in later] == [True] * 3


def test_a_run_that_was_killed_reads_on_as_if_undisturbed(two, blocks, checkpoint, tmp_path):
    train, validation = blocks
    dense = {"letters": 2.0, "digits": 4.0}
    teacher = record(tmp_path / "record", {"train": train, "validation": validation}, dense)
    given = (checkpoint, train, validation, two)
    whole, history = heal_with_lora(*given, tmp_path / "whole", "float32", teacher=teacher)
    with pytest.raises(KeyboardInterrupt):
        heal_with_lora(*given, tmp_path / "killed", "float32", callbacks=(Interrupt(5),), teacher=teacher)
    resumed, again = heal_with_lora(*given, tmp_path / "killed", "float32", teacher=teacher)
    assert without_times(again) == without_times(history)
    assert torch.equal(logits(resumed), logits(whole))
    shares = [point.shares["letters"] for point in history.validation]
    assert len(set(shares)) > 2


def test_the_stages_give_the_dense_losses_and_distil_on_all_texts(two, checkpoint, tmp_path):
    source = tmp_path / "dense"
    save_checkpoint(load_checkpoint(checkpoint), toy_tokenizer(), source)
    section = two.model_copy(update={"loss": {"ce": 0.5, "kd": 0.5}})
    (tmp_path / "record").mkdir()
    teach_stage(tmp_path / "record", checkpoint=source, config=section.teaching(), dtype="float32")
    out, more = tmp_path / "out", {"dtype": "float32", "teacher": tmp_path / "record"}
    out.mkdir()
    heal_stage(out, checkpoint=source, config=section, **more)
    first = json.loads((out / "history.json").read_text())["validation"][0]
    facts = json.loads((tmp_path / "record" / "teacher.json").read_text())
    assert facts["losses"] == pytest.approx(first["losses"], abs=1e-5)  # it heals the dense model itself here
    assert first["kl"] == pytest.approx(0, abs=1e-4)


def test_one_text_alone_and_strange_names_are_refused():
    for domains in ({"web": "c4"}, {"web": "c4", "the wiki": "wikitext2"}):
        with pytest.raises(ValidationError, match="must be two texts or more"):
            config(domains=domains)


def test_what_is_trained_on_is_not_measured_on(tiny_experiment):
    data = tiny_experiment
    text = data["heal"].pop("dataset")
    data["heal"]["domains"] = {"one": text, "other": data["benchmark"]["perplexity"][0].partition("@")[0]}
    with pytest.raises(Exception, match="calibration and healing don't see"):
        parse_experiment(data)


def test_keys_hold_the_domains_and_not_the_default_text(two):
    plain = config()
    assert "domains" not in plain.identity()
    assert "dataset" not in two.identity()
    assert two.identity()["domains"] == two.domains
    assert two.teaching().blocks == 0
    assert plain.teaching() is None


def test_each_text_is_found_where_texts_are_named():
    named = []
    data = {
        "heal": {"domains": {"web": "a.jsonl", "wiki": "b.jsonl"}},
        "sweep": {"space": {"heal.domains": {"choice": [{"web": "c.jsonl", "wiki": "d.jsonl"}]}}},
    }
    named_in(data, lambda key, text: named.append((key, text)) or text)
    assert named == [("heal.domains", f"{name}.jsonl") for name in "abcd"]
