"""Tasks, accuracy, perplexity and the workload on tiny random models; a few on the real one."""

from __future__ import annotations

import gzip
import json
import logging
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from greenprune import assets
from greenprune.benchmark import accuracy_stage, energy_stage, tasks, workload
from greenprune.benchmark.accuracy import _numbers, chance, draw, majority, mean_and_error, measure_accuracy
from greenprune.benchmark.answers import answers, unparsed, write_answers
from greenprune.benchmark.fewshot import reserve_examples
from greenprune.benchmark.own_tasks.rouge import process_results
from greenprune.benchmark.perplexity import measure_perplexities, perplexity, source_here
from greenprune.benchmark.positions import learned_positions
from greenprune.benchmark.quiet import offline
from greenprune.benchmark.tasks import TASKS, check_tasks, resolve_data
from greenprune.benchmark.workload import PhaseWindow, Workload, ci95_ratio, measure_workload, summarise
from greenprune.config import BenchmarkConfig, EnergyConfig
from greenprune.data import HUB_TEXTS
from greenprune.energy import Reading, ReplayMeter
from greenprune.errors import AssetError, ConfigError, ModelError
from greenprune.report.sections.cautions import STAND_INS

VOCABULARY = 384
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
ARCHITECTURES = {
    "llama": {"intermediate_size": 128, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "gemma2": {
        "intermediate_size": 128,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "sliding_window": 8,
        "final_logit_softcapping": 0.5,
    },
    "opt": {"ffn_dim": 128, "word_embed_proj_dim": 64},
    "gpt_neox": {"intermediate_size": 128},
    "gpt2": {"n_positions": 64, "n_embd": 64, "n_layer": 2, "n_head": 4},
}


def tiny(architecture: str = "llama", **changes: object):
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **{**SIZES, **ARCHITECTURES[architecture], **changes})
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture(scope="module")
def llama():
    return tiny(max_position_embeddings=2048)


@pytest.fixture(scope="module")
def tokenizer():
    """Byte-level, without merges: a token a byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<end>", *alphabet])}
    bytes_only = Tokenizer(models.BPE(vocabulary, []))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bytes_only, eos_token="<end>", bos_token="<end>")


@pytest.fixture
def checkpoint(llama, tokenizer, tmp_path):
    folder = tmp_path / "checkpoint"
    llama.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# --------------------------------------------------------------------------------------------------- tasks


def write_arrow(path: Path, rows: list[dict]) -> None:
    import pyarrow as pa

    table = pa.Table.from_pylist(rows)
    path.parent.mkdir(parents=True)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A stand-in for the wheels with a few documents of BoolQ (Arrow), OpenBookQA (requests), IMDB (CSV) and XSum
    (JSON lines), all made up."""
    monkeypatch.setenv("GREENPRUNE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "wheel"
    passages = [
        {
            "passage": f"Stone {n} is {'' if n % 4 else 'not '}grey.",
            "question": f"is stone {n} grey",
            "answer": n % 4 > 0,
        }
        for n in range(20)
    ]
    write_arrow(folder / TASKS["boolq"].member, passages)
    lines = []
    for number in range(8):
        query = f"Question: The number after {number} is\nAnswer:"
        choices = [str(number - 1), str(number + 1), "no number"]
        doc = {"id": f"n{number}", "query": query, "choices": choices, "gold": 1}
        for doc_id in (number, number + 1_000_000):  # with the question, and without it
            lines += [json.dumps({"doc_id": doc_id, "idx": choice, "doc": doc}) for choice in range(3)]
    requests = folder / TASKS["openbookqa"].member
    requests.parent.mkdir(parents=True)
    requests.write_bytes(gzip.compress("\n".join(lines).encode()))
    reviews = folder / TASKS["imdb"].member
    reviews.parent.mkdir(parents=True)
    reviews.write_text('text,label\n"Long, dull.<br /><br />Avoid!",0\n"A ""gem"".",1\nLovely.,1\n')
    articles = folder / TASKS["xsum"].member
    articles.parent.mkdir(parents=True)
    rows = [{"id": str(n), "document": f"Stone {n} fell.", "summary": f"A stone fell, number {n}."} for n in range(4)]
    articles.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    monkeypatch.setattr(tasks, "wheel_folder", lambda wheel: folder)
    return folder


@pytest.mark.parametrize("name", TASKS)
def test_the_table_fits_lm_eval_and_the_wheel(name):
    from lm_eval.tasks._yaml_loader import load_yaml

    task = TASKS[name]
    stock = load_yaml(tasks.base_yaml(name))
    assert stock["task"] == name
    assert task.metric in [metric["metric"] for metric in stock["metric_list"]]
    assert task.member.startswith(task.wheel.members)


def test_the_asset_task_is_the_stock_task_on_other_data(wheel):
    from lm_eval.tasks._yaml_loader import load_yaml

    made = load_yaml(tasks.asset_yaml("boolq"))
    stock = load_yaml(tasks.base_yaml("boolq"))
    data = {"dataset_path", "dataset_name", "dataset_kwargs", "fewshot_split"}
    data |= {"training_split", "validation_split", "test_split"}
    changed = {key for key in made if made[key] != stock.get(key)}
    assert changed - data == {"doc_to_target"}
    assert tasks.asset_yaml("boolq") == tasks.asset_yaml("boolq")


def test_request_files_become_the_stock_tasks_rows(wheel):
    task = tasks.load_task("openbookqa", "assets")
    assert len(task.task_docs) == 8, "a document once, though the file has six lines of it"
    doc = task.task_docs[3]
    assert doc["question_stem"] == "The number after 3 is"
    assert task.doc_to_choice(doc) == ["2", "4", "no number"]
    assert task.doc_to_target(doc) == 1
    arc = tasks.arc_row({"id": "a", "query": "Question: Why?\nAnswer:", "choices": ["x", "y"], "gold": 0})
    assert arc == {
        "id": "a",
        "question": "Why?",
        "choices": {"text": ["x", "y"], "label": ["A", "B"]},
        "answerKey": "A",
    }


def test_boolq_answers_are_labels(wheel):
    task = tasks.load_task("boolq", "assets")
    assert [task.doc_to_target(task.task_docs[n]) for n in (0, 1, 4)] == [0, 1, 0]


def test_imdb_asks_for_one_of_two_words(wheel):
    task = tasks.load_task("imdb", "assets")
    doc = task.task_docs[0]
    assert task.doc_to_text(doc) == ("Long, dull.  Avoid!\nQuestion: Is this review positive or negative?\nAnswer:")
    assert task.doc_to_choice(doc) == ["negative", "positive"]
    assert [task.doc_to_target(doc) for doc in task.task_docs] == [0, 1, 1]
    assert task.task_docs[1]["text"] == 'A "gem".'


def test_xsum_asks_for_one_short_line(wheel):
    task = tasks.load_task("xsum", "assets")
    doc = task.task_docs[2]
    assert task.doc_to_text(doc) == "Article: Stone 2 fell.\nSummary in one sentence:"
    assert task.doc_to_target(doc) == "A stone fell, number 2."
    assert task.config.generation_kwargs == {"until": ["\n"], "max_gen_toks": 64, "do_sample": False}


def test_rouge_by_hand():
    """Words: the cat sat (on the mat) against the cat lay: 2 of 3, 1 of 2 pairs, subsequence of 2."""
    found = process_results({"summary": "The cat sat."}, ["the cats lay"])
    assert found == {"rouge1": pytest.approx(2 / 3), "rouge2": 0.5, "rougeL": pytest.approx(2 / 3)}
    assert process_results({"summary": "The cat sat."}, [""]) == {"rouge1": 0, "rouge2": 0, "rougeL": 0}
    assert process_results({"summary": "a b c"}, ["c b a"])["rougeL"] == pytest.approx(1 / 3)


# -------------------------------------------------------------------------------------- few-shot examples


def examples_of(task, doc, shots: int) -> list[str]:
    return task.fewshot_context(doc, num_fewshot=shots).split("\n\n")[:-1]


def test_examples_come_from_documents_that_are_not_scored(wheel):
    task = tasks.load_task("openbookqa", "assets")
    reserve_examples(task, [0, 1, 2], num_fewshot=3, seed=0)
    for index in (0, 1, 2):
        examples = examples_of(task, task.task_docs[index], 3)
        assert len(set(examples)) == 3
        assert not any(f"after {scored} is" in example for scored in (0, 1, 2) for example in examples)


@pytest.mark.parametrize("fewshot_split", ["test", "validation"])
def test_examples_leave_the_document_out_where_all_are_scored(wheel, fewshot_split):
    """Stock lm-eval does so only where both splits have one name."""
    task = tasks.load_task("openbookqa", "assets")
    task.fewshot_cfg.split = fewshot_split
    reserve_examples(task, range(8), num_fewshot=7, seed=0)
    for doc in task.task_docs:
        examples = examples_of(task, doc, 7)
        assert len(set(examples)) == 7
        assert not any(doc["question_stem"] in example for example in examples)


def test_examples_are_seeded(wheel):
    def drawn(seed: int) -> str:
        task = tasks.load_task("openbookqa", "assets")
        reserve_examples(task, [0, 1], num_fewshot=2, seed=seed)
        return task.fewshot_context(task.task_docs[0], num_fewshot=2)

    assert drawn(0) == drawn(0)
    assert len({drawn(seed) for seed in range(5)}) > 1


def test_more_examples_than_documents_are_refused(wheel):
    task = tasks.load_task("openbookqa", "assets")
    with pytest.raises(ConfigError, match=r"num_fewshot must be below.*openbookqa.*\(8\), got 8; lower it"):
        reserve_examples(task, range(8), num_fewshot=8, seed=0)


def test_known_tasks_need_no_index(monkeypatch):
    monkeypatch.setattr(tasks, "stock_tasks", lambda: pytest.fail("the index takes ten seconds"))
    check_tasks(TASKS)


class Index:
    all_subtasks = ("copa", "wikitext", "piqa")
    all_groups = ("mmlu",)
    all_tags = ("glue",)


def test_unknown_tasks_and_groups_are_refused(monkeypatch):
    monkeypatch.setattr(tasks, "stock_tasks", Index)
    check_tasks(["copa"])
    with pytest.raises(ConfigError, match=r"got 'pica'; did you mean 'piqa'\?"):
        check_tasks(["pica"])
    with pytest.raises(ConfigError, match=r"single tasks, got 'mmlu'"):
        check_tasks(["mmlu"])
    with pytest.raises(AssetError, match=r"got 'copa', whose data is only on the Hugging Face hub; leave it out"):
        check_tasks(["copa"], "assets")


def test_resolve_data_takes_the_hub_only_where_it_answers(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(tasks, "_hub_answers", lambda: True)
    assert (resolve_data("auto"), resolve_data("assets"), resolve_data("hub")) == ("hub", "assets", "hub")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert resolve_data("auto") == "assets"


def test_a_silent_hub_is_given_three_seconds(monkeypatch):
    import socket

    monkeypatch.setattr(tasks, "HUB_PATIENCE_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.perf_counter()
        assert tasks._hub_answers() is False
        assert time.perf_counter() - started < 2


def test_offline_restores_everything():
    import datasets.config
    import huggingface_hub.constants as hub

    def state():
        return (datasets.config.HF_HUB_OFFLINE, hub.HF_HUB_OFFLINE, os.environ.get("HF_HUB_OFFLINE"))

    before = state()
    inside = []
    with pytest.raises(ZeroDivisionError), offline():
        inside.append(state()) or 1 / 0
    assert inside == [(True, True, "1")]
    assert state() == before


# ------------------------------------------------------------------------------------------------ accuracy


def test_draw_is_seeded_and_sorted():
    assert draw(10, None, 0) is None
    assert draw(10, 10, 0) is None
    drawn = draw(1000, 20, 0)
    assert drawn == sorted(set(drawn)) == draw(1000, 20, 0)
    assert drawn != list(range(20))
    assert drawn != draw(1000, 20, 1)


def test_floors():
    assert majority([0, 1, 1, 1]) == 0.75
    assert chance([2, 4]) == pytest.approx(0.375)


# ------------------------------------------------------------------------------------------------- answers


class Asked:
    """What `answers` reads of an lm-eval task."""

    def __init__(self, kind: str, choices: list[str] = (), filters: list[dict] | None = None) -> None:
        self.OUTPUT_TYPE, self.choices, self.multiple_input = kind, choices, False
        self.config = SimpleNamespace(filter_list=filters)

    def doc_to_choice(self, doc):
        return self.choices


def logged(responses, filtered="none", **metrics):
    return {
        "doc_id": 7, "doc": {}, "doc_hash": "0123456789abcdefgh", "target": 1, "filter": filtered,
        "filtered_resps": responses, **metrics,
    }  # fmt: skip


def test_a_chosen_answer_is_that_of_the_metric():
    task = Asked("multiple_choice", ["a", "four"])
    sample = logged([(-2.0, False), (-4.0, False)], acc=0.0, acc_norm=1.0)
    (plain,), (normed,) = answers(task, [sample], "acc"), answers(task, [sample], "acc_norm")
    assert plain == {
        "doc_id": 7, "document": "0123456789abcdef", "target": 1, "prediction": 0, "score": 0.0, "parsed": None,
        "log_likelihoods": [-2.0, -4.0],
    }  # fmt: skip
    assert (normed["prediction"], normed["score"]) == (1, 1.0)
    assert unparsed([plain, normed]) is None


def test_answers_that_cannot_be_parsed_are_wrong_and_counted():
    filters = [{"name": "strict", "filter": [{"function": "regex", "fallback": "[none]"}, {"function": "take_first"}]}]
    task = Asked("generate_until", filters=filters)
    samples = [
        logged(["42"], "strict", exact_match=1.0),
        logged(["[none]"], "strict", exact_match=0.0),
        logged([" "], "strict", exact_match=0.0),
        logged(["7"], "strict"),  # lm-eval left it out
        logged(["x"], "other", exact_match=1.0),
    ]
    rows = answers(task, samples, "exact_match/strict")
    assert [row["score"] for row in rows] == [1.0, 0.0, 0.0, 0.0]
    assert [row["parsed"] for row in rows] == [True, False, False, False]
    assert unparsed(rows) == 0.75
    assert mean_and_error([row["score"] for row in rows]) == (0.25, 0.25)


def test_answers_are_kept_as_the_same_bytes(tmp_path):
    rows = [{"doc_id": 0, "prediction": "häh", "score": torch.tensor(1.0)}]
    path = write_answers(tmp_path, "a/b", rows)
    assert path.name == "a%2Fb.jsonl.gz"
    assert json.loads(gzip.decompress(path.read_bytes())) == {"doc_id": 0, "prediction": "häh", "score": 1.0}
    first = path.read_bytes()
    assert write_answers(tmp_path, "a/b", rows).read_bytes() == first


def test_metrics_lose_the_default_filter_and_what_is_no_number():
    found = _numbers({"alias": "x", "acc,none": 0.5, "acc_stderr,none": "N/A", "em,strict": 1, "f1,none": math.nan})
    assert found == {"acc": 0.5, "em/strict": 1.0}


def test_accuracy_of_each_task_with_its_floor_time_and_energy(llama, tokenizer, wheel, caplog, capfd):
    config = BenchmarkConfig(tasks=["boolq", "openbookqa"], data="assets", limit=12, energy=None)
    meter = ReplayMeter([10.0, None])
    with caplog.at_level(logging.INFO, logger="greenprune"):
        result = measure_accuracy(llama, tokenizer, config, meter)
    boolq, openbookqa = result["tasks"]["boolq"], result["tasks"]["openbookqa"]
    chosen = draw(20, 12, 0)
    assert boolq["floor"] == pytest.approx(max(sum(n % 4 > 0 for n in chosen), sum(n % 4 == 0 for n in chosen)) / 12)
    assert openbookqa["floor"] == pytest.approx(1 / 3)
    assert (boolq["documents"], openbookqa["documents"]) == (12, 8)
    assert (boolq["joules"], openbookqa["joules"]) == (10.0, None)
    assert openbookqa["value"] == openbookqa["metrics"]["acc_norm"]
    assert openbookqa["stderr"] == openbookqa["metrics"]["acc_norm_stderr"]
    assert result["accuracy"] == pytest.approx((boolq["value"] + openbookqa["value"]) / 2)
    assert [reading.name for reading in result["readings"]] == ["boolq", "openbookqa"]
    assert "accuracy: boolq acc 0." in caplog.text
    assert capfd.readouterr() == ("", ""), "lm-eval is silent"


def test_accuracy_is_deterministic_and_depends_on_the_seed(llama, tokenizer, wheel):
    def run(**changes):
        config = BenchmarkConfig(tasks=["boolq"], data="assets", limit=6, num_fewshot=1, energy=None, **changes)
        task = measure_accuracy(llama, tokenizer, config, ReplayMeter([1.0]))["tasks"]["boolq"]
        return {key: value for key, value in task.items() if key != "seconds"}

    assert run() == run()
    assert run(seed=1)["floor"] != run(seed=3)["floor"]


def test_accuracy_is_that_of_the_log_likelihoods(llama, tokenizer, wheel):
    config = BenchmarkConfig(tasks=["openbookqa"], data="assets", energy=None)
    result = measure_accuracy(llama, tokenizer, config, ReplayMeter([1.0]))["tasks"]["openbookqa"]
    right = 0
    for number in range(8):
        scores = [
            log_likelihood(llama, tokenizer, f"The number after {number} is", f" {choice}")
            for choice in (str(number - 1), str(number + 1), "no number")
        ]
        right += max(range(3), key=lambda choice: scores[choice]) == 1
    assert result["metrics"]["acc"] == right / 8


def test_answers_say_what_the_scores_say(llama, tokenizer, wheel):
    config = BenchmarkConfig(tasks=["boolq", "openbookqa"], data="assets", limit=6, energy=None)
    result = measure_accuracy(llama, tokenizer, config, ReplayMeter([1.0, 1.0]))
    for name, total in (("boolq", 20), ("openbookqa", 8)):
        rows, task = result["answers"][name], result["tasks"][name]
        assert [row["doc_id"] for row in rows] == draw(total, 6, 0)
        assert [row["score"] for row in rows] == [float(row["prediction"] == row["target"]) for row in rows]
        assert task["value"] == pytest.approx(sum(row["score"] for row in rows) / 6)
        assert mean_and_error([row["score"] for row in rows])[1] == pytest.approx(task["stderr"])


def test_summaries_are_scored_and_unreadable_ones_reported(llama, tokenizer, wheel, monkeypatch):
    generated = iter(["A stone fell", "", " \t", "number"])
    monkeypatch.setattr(
        "lm_eval.models.huggingface.HFLM.generate_until", lambda self, requests: [next(generated) for _ in requests]
    )
    config = BenchmarkConfig(tasks=["xsum"], data="assets", energy=None)
    result = measure_accuracy(llama, tokenizer, config, ReplayMeter([1.0]))
    task, rows = result["tasks"]["xsum"], result["answers"]["xsum"]
    assert (task["metric"], task["unparsed"], task["floor"]) == ("rougeL", 0.5, None)
    expected = [2 * 3 / (3 + 5), 0, 0, 2 * 1 / (1 + 5)]  # words in common / words of both
    assert [row["score"] for row in rows] == pytest.approx(expected)
    assert task["value"] == pytest.approx(sum(expected) / 4)
    assert [row["parsed"] for row in rows] == [True, False, False, True]


def test_a_task_without_accuracy_is_refused_before_it_runs(llama, tokenizer, wheel, monkeypatch):
    task = tasks.load_task("openbookqa", "assets")
    monkeypatch.setattr(task, "_aggregation_list", {"word_perplexity": None})
    monkeypatch.setattr("greenprune.benchmark.accuracy.load_task", lambda name, data: task)
    config = BenchmarkConfig(tasks=["wikitext"], data="assets", energy=None)
    with pytest.raises(ConfigError, match=r"wikitext gives word_perplexity; leave it out"):
        measure_accuracy(llama, tokenizer, config, ReplayMeter([]))


def log_likelihood(model, tokenizer, context: str, continuation: str) -> float:
    ids = torch.tensor([tokenizer(context + continuation)["input_ids"]])
    length = len(tokenizer(continuation)["input_ids"])
    with torch.no_grad():
        scores = model(ids).logits[0, :-1].log_softmax(-1)
    return scores.gather(1, ids[0, 1:, None])[-length:].sum().item()


def test_no_tasks_is_no_accuracy(llama, tokenizer):
    result = measure_accuracy(llama, tokenizer, BenchmarkConfig(), ReplayMeter([]))
    assert (result["accuracy"], result["tasks"], result["answers"]) == (None, {}, {})


# ---------------------------------------------------------------------------------------------- perplexity


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("positions_at_once", [5, 1000])
def test_perplexity_is_that_of_the_whole_logits(architecture, positions_at_once, monkeypatch):
    monkeypatch.setattr("greenprune.benchmark.perplexity.LOGITS_AT_ONCE", positions_at_once * VOCABULARY)
    model, segments = tiny(architecture), torch.randint(VOCABULARY, (3, 32))
    with torch.no_grad():
        logits = model(segments).logits[:, :-1]
    expected = nn.functional.cross_entropy(logits.flatten(0, 1), segments[:, 1:].flatten()).exp().item()
    assert perplexity(model, segments) == pytest.approx(expected, rel=1e-5)
    assert perplexity(model, segments, batch_size=2) == pytest.approx(expected, rel=1e-5)


def test_perplexity_is_taken_in_evaluation_mode_and_restores_the_mode():
    model = tiny("opt", dropout=0.5)
    segments = torch.randint(VOCABULARY, (1, 16))
    expected = perplexity(model, segments)
    model.train()
    assert perplexity(model, segments) == expected
    assert model.training


@pytest.mark.parametrize("shape", [(4,), (0, 8), (2, 1)])
def test_perplexity_refuses_other_shapes(llama, shape):
    with pytest.raises(ConfigError, match="segments must be"):
        perplexity(llama, torch.zeros(shape, dtype=torch.long))


def test_lengths_beyond_learned_positions_are_refused():
    assert (learned_positions(tiny("opt")), learned_positions(tiny("gpt2"))) == (64, 64)
    assert learned_positions(tiny("llama")) is None
    with pytest.raises(ModelError, match=r"at most 64 tokens, the positions opt has learned, got 65"):
        perplexity(tiny("opt"), torch.zeros(1, 65, dtype=torch.long))
    with pytest.raises(ModelError, match=r"prompt_len \+ decode_len must be at most 64 tokens.*got 80"):
        measure_workload(tiny("opt"), EnergyConfig(prompt_len=64, decode_len=16), ReplayMeter([]))


def test_perplexities_are_named_by_text_and_length(llama, tokenizer, tmp_path):
    text = tmp_path / "mine.txt"
    text.write_text("It is raining. " * 20)
    config = BenchmarkConfig(perplexity=[f"{text}@16", f"{text}@32"], perplexity_segments=2, energy=None)
    found = measure_perplexities(llama, tokenizer, config)
    assert list(found) == ["mine_ppl@16", "mine_ppl@32"]
    ids = torch.tensor(tokenizer(text.read_text())["input_ids"][:32]).view(2, 16)
    assert found["mine_ppl@16"] == perplexity(llama, ids)


def test_blank_lines_of_a_text_count_as_in_the_papers(llama, tokenizer, monkeypatch):
    rows = ["", " = Title = \n", "", " It is raining . \n"]
    monkeypatch.setattr("greenprune.benchmark.perplexity.documents", lambda source, held_out: iter(rows))
    found = measure_perplexities(llama, tokenizer, BenchmarkConfig(perplexity=["wikitext2@8"], data="hub", energy=None))
    ids = tokenizer("\n\n".join(rows))["input_ids"]
    whole = torch.tensor(ids[: len(ids) // 8 * 8]).view(-1, 8)
    assert found == {"wikitext2_ppl@8": perplexity(llama, whole)}


def test_texts_of_the_hub_have_stand_ins_among_the_assets(monkeypatch):
    assert source_here("c4", "hub") == "c4"
    assert (source_here("c4", "assets"), source_here("wikitext2", "assets")) == ("pypi:c4", "pypi:wikitext2")
    assert (source_here("mine.txt", "assets"), source_here("a/b", "assets")) == ("mine.txt", "a/b")
    assert set(STAND_INS) == HUB_TEXTS.keys() & assets.TEXTS.keys(), "the report says so of these"


# ------------------------------------------------------------------------------------------------ workload

QUICK = EnergyConfig(prompt_len=12, decode_len=4, min_seconds=0.02, repeats=2, batch_size=2, max_foreign_load=1.0)


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "opt", "gpt_neox"])
def test_decoding_is_greedy_generation_each_time(architecture):
    """With gemma2's window of 8 the prompt has slid out of it before decoding begins."""
    model = tiny(architecture)
    run = Workload(model, EnergyConfig(prompt_len=12, decode_len=5, batch_size=2))
    expected = model.generate(
        run.prompt, attention_mask=torch.ones_like(run.prompt), max_new_tokens=6, min_new_tokens=6, do_sample=False
    )[:, 12:]
    tokens: list[torch.Tensor] = []
    forward = run._forward

    def spy(ids, cache):
        tokens.append(ids)
        return forward(ids, cache)

    run._forward = spy
    with torch.no_grad():
        run.fill_cache()
        for _ in range(2):
            tokens.clear()
            run.decode()
            assert torch.equal(torch.cat(tokens, dim=1), expected[:, :5])
            assert run._cache.get_seq_length() == 12, "the prompt alone"


def test_the_prompt_is_seeded_and_the_same_for_every_model():
    config = EnergyConfig(prompt_len=12, decode_len=4, seed=3)
    assert torch.equal(Workload(tiny("llama"), config).prompt, Workload(tiny("opt"), config).prompt)
    other = EnergyConfig(prompt_len=12, decode_len=4, seed=4)
    assert not torch.equal(Workload(tiny(), config).prompt, Workload(tiny(), other).prompt)


def test_windows_alternate_and_last_long_enough(llama, caplog):
    meter = ReplayMeter([0.1, 3.0, 5.0, 3.0, 5.0])
    with caplog.at_level(logging.INFO, logger="greenprune"):
        result = measure_workload(llama, QUICK, meter)
    assert [reading.name for reading in result["readings"]] == ["prefill 1", "decode 1", "prefill 2", "decode 2"]
    assert all(reading.seconds >= QUICK.min_seconds for reading in result["readings"])
    assert result["energy_window_s"] >= QUICK.min_seconds
    assert (result["energy_kind"], result["energy_repeats"]) == ("measured", 2)
    assert result["energy_j_per_token"] > 0
    assert "energy: decode 2 of 2" in caplog.text
    assert result["idle"].name == "idle"
    assert result["idle_power_w"] == pytest.approx(0.1 / result["idle"].seconds)
    assert result["energy_j_per_token_net"] < result["energy_j_per_token"]


def replayed(joules: float, **more: object) -> Reading:
    """A window of two seconds."""
    return Reading("w", joules, 2.0, "measured", "s", "device", **more)


def test_repeats_end_when_the_mean_is_known(llama, monkeypatch):
    monkeypatch.setattr(workload.PhaseWindow, "joules_a_pass", property(lambda window: window.reading.energy_j))
    config = QUICK.model_copy(update={"repeats": 9, "target_half_width": 0.02})
    steady = ReplayMeter([1.0] + [100.0, 50.0] * 3)
    assert measure_workload(llama, config, steady)["energy_repeats"] == workload.FEWEST_REPEATS
    settling = ReplayMeter([1.0, *[100.0, 100.0], *[120.0, 120.0], *[110.0, 110.0] * 30])
    result = measure_workload(llama, config.model_copy(update={"repeats": 30, "target_half_width": 0.04}), settling)
    assert (result["energy_repeats"], result["energy_ci95_ratio"]) == (9, pytest.approx(0.035, abs=0.001))
    wild = ReplayMeter([1.0] + [100.0, 50.0, 200.0, 90.0] * 5)
    assert measure_workload(llama, config, wild)["energy_repeats"] == 9


def test_a_disturbed_window_is_measured_again(llama, caplog):
    disturbed = replayed(900.0, contamination="other processes kept 60% of the node's cores busy")
    meter = ReplayMeter([replayed(1.0), disturbed, replayed(10.0), replayed(20.0), replayed(10.0), replayed(20.0)])
    with caplog.at_level(logging.INFO, logger="greenprune"):
        result = measure_workload(llama, QUICK, meter)
    assert (result["energy_kind"], result["energy_windows_discarded"]) == ("measured", 1)
    assert [reading.energy_j for reading in result["readings"]] == [10.0, 20.0, 10.0, 20.0]
    assert result["energy_note"] is None
    assert "prefill 1 of 2 is measured again: other processes kept 60%" in caplog.text


def test_what_stays_disturbed_is_kept_and_marked(llama):
    disturbed = replayed(10.0, contamination="PID 7 on GPU 0")
    windows = 1 + 4 + workload.MEASURED_AGAIN
    meter = ReplayMeter([disturbed] * windows)
    result = measure_workload(llama, QUICK, meter)
    assert result["energy_kind"] == "contaminated"
    assert result["energy_note"] == "contaminated in 4 of 4 windows: PID 7 on GPU 0"
    assert result["energy_windows_discarded"] == workload.MEASURED_AGAIN
    assert result["energy_j_per_token"] > 0
    assert result["energy_j_per_token_net"] is None  # rest was disturbed too
    assert len(meter.readings) == windows


def window(joules: float | None, *passes: float, co2e_g: float | None = None) -> PhaseWindow:
    kind = "absent" if joules is None else "measured"
    return PhaseWindow(Reading("w", joules, sum(passes), kind, "s", "device", co2e_g=co2e_g), passes)


def test_figures_by_hand():
    config = EnergyConfig(batch_size=2, prompt_len=10, decode_len=5, repeats=2)
    prefills = [window(40.0, 1.0, 1.0, co2e_g=4.0), window(80.0, 1.0, 2.0, co2e_g=8.0)]  # 20, 40 J a pass
    decodes = [window(60.0, 5.0, co2e_g=6.0), window(160.0, 5.0, 5.0, co2e_g=16.0)]  # 60, 80 J a pass
    found = summarise(prefills, decodes, config)
    assert (found["prefill_latency_s"], found["decode_latency_s"]) == (1.0, 1.0)
    assert (found["prefill_tokens_per_s"], found["decode_tokens_per_s"]) == (20.0, 2.0)
    assert found["energy_j_per_prefill_token"] == pytest.approx(30 / 20)
    assert found["energy_j_per_decode_token"] == pytest.approx(70 / 10)
    assert found["energy_j_per_token"] == pytest.approx(100 / 30)
    assert found["energy_wh_per_1k_requests"] == pytest.approx(1000 * 50 / 3600)
    assert found["average_power_w"] == pytest.approx(340 / 20)
    assert found["co2e_g_per_1k_requests"] == pytest.approx(1000 * 50 * 34 / 340)
    assert found["energy_ci95_ratio"] == pytest.approx(12.706 * 20 / 100, rel=1e-3)  # batches of 80 and 120 J
    assert found["energy_window_s"] == 2.0
    assert found["energy_delay_product_js"] == pytest.approx(50 * (1.0 + 5.0))
    assert (found["idle_power_w"], found["energy_j_per_token_net"]) == (None, None)
    idle = Reading("idle", 30.0, 10.0, "measured", "s", "device")
    found = summarise(prefills, decodes, config, idle)  # 3 W at rest; passes of 1.25 and 5 s
    assert found["idle_power_w"] == pytest.approx(3.0)
    assert found["energy_j_per_token_net"] == pytest.approx((100 - 3 * 6.25) / 30)
    by_another = Reading("idle", 30.0, 10.0, "estimated", "a model", "process")
    assert summarise(prefills, decodes, config, by_another)["idle_power_w"] is None


def test_the_state_of_gpus_is_summed_up():
    def state(clock, temperature, *reasons):
        return {"sm_clock_mhz": clock, "power_cap_w": 700.0, "temperature_c": temperature, "throttling": reasons}

    readings = [replayed(1.0, gpus=(state(1000.0, 60.0), state(None, 70.0, "power cap"))), replayed(1.0)]
    windows = [PhaseWindow(reading, (1.0,)) for reading in readings]
    found = summarise(windows, windows, EnergyConfig(prompt_len=10, decode_len=5))
    assert (found["gpu_sm_clock_mhz"], found["gpu_temperature_c"]) == (1000.0, 70.0)
    assert (found["gpu_power_cap_w"], found["gpu_throttling"]) == (700.0, "power cap")
    alone = [PhaseWindow(replayed(1.0), (1.0,))]
    assert summarise(alone, alone, EnergyConfig(prompt_len=10, decode_len=5))["gpu_throttling"] is None


def test_one_absent_window_leaves_no_energy_but_all_times():
    config = EnergyConfig(prompt_len=10, decode_len=5, repeats=2)
    found = summarise([window(40.0, 1.0), window(None, 1.0)], [window(60.0, 5.0), window(60.0, 5.0)], config)
    assert found["energy_kind"] == "absent"
    assert all(found[name] is None for name in workload.ENERGIES)
    assert found["prefill_latency_s"] == 1.0


def test_an_interval_needs_two_windows():
    assert ci95_ratio([5.0]) is None
    assert ci95_ratio([5.0, 5.0, 5.0]) == 0.0
    assert ci95_ratio([9.0, 10.0, 11.0]) == pytest.approx(2.484 * 0.1, rel=1e-3)  # 2.48 · CV at n = 3


@pytest.mark.skipif(sys.platform != "linux", reason="VmHWM is Linux's")
def test_peak_memory_is_of_the_window_only():
    peak = workload.PeakMemory(torch.device("cpu"))
    before = peak.bytes()
    if before is None:
        pytest.skip("/proc/self/clear_refs can't be written here")
    held = torch.ones(64 << 18)  # 64 MiB
    after = peak.bytes()
    del held
    assert 60 << 20 < after - before < 100 << 20
    assert workload.PeakMemory(torch.device("cpu")).bytes() < after - (30 << 20)


# -------------------------------------------------------------------------------------------------- stages


def test_the_accuracy_stage_writes_everything(checkpoint, wheel, tmp_path, llama):
    text = tmp_path / "mine.txt"
    text.write_text("It is raining. " * 20)
    config = BenchmarkConfig(tasks=["openbookqa"], data="assets", perplexity=[f"{text}@16"], energy=None)
    out = tmp_path / "out"
    accuracy_stage(out, checkpoint=checkpoint, config=config, dtype="float32")
    found = json.loads((out / "accuracy.json").read_text())
    tied = llama.get_input_embeddings().weight.numel()
    assert found["parameters"] == sum(p.numel() for p in llama.parameters())
    assert found["parameters"] == sum(p.numel() for p in llama.state_dict().values()) - tied
    assert found["checkpoint_bytes"] == (checkpoint / "model.safetensors").stat().st_size
    assert (found["layers"], found["data"]) == (2, "assets")
    assert set(found["perplexity"]) == {"mine_ppl@16"}
    assert found["machine"]
    assert found["readings"][0]["name"] == "openbookqa"
    lines = gzip.decompress((out / "answers/openbookqa.jsonl.gz").read_bytes()).splitlines()
    assert [json.loads(line)["doc_id"] for line in lines] == list(range(8))
    joules = found["tasks"]["openbookqa"]["joules"]
    assert found["energy_wh_tasks"] == (None if joules is None else pytest.approx(joules / 3600))
    header, line = (out / "emissions.csv").read_text().splitlines()
    assert header.startswith("timestamp,project_name,run_id")
    assert ",openbookqa," in line


def test_the_energy_stage_writes_everything(checkpoint, tmp_path):
    out = tmp_path / "out"
    config = QUICK.model_copy(update={"min_seconds": 0.2, "country": "FRA"})
    energy_stage(out, checkpoint=checkpoint, config=config, dtype="float32")
    found = json.loads((out / "energy.json").read_text())
    assert found["energy_kind"] in ("measured", "estimated")
    assert found["energy_j_per_token"] > 0
    assert found["co2e_g_per_1k_requests"] > 0
    assert found["average_power_w"] == pytest.approx(
        sum(reading["energy_j"] for reading in found["readings"])
        / sum(reading["seconds"] for reading in found["readings"])
    )
    assert {"machine", "machine_facts", "hostname", "peak_memory_bytes", "energy_source"} <= set(found)
    assert len((out / "emissions.csv").read_text().splitlines()) == 1 + 2 * QUICK.repeats


def test_importing_benchmark_is_light():
    code = (
        "import sys, greenprune.benchmark, greenprune.benchmark.tasks; "
        "print(sorted({'torch', 'lm_eval', 'codecarbon', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == "[]"


# ---------------------------------------------------------------------------------------------- real model


@pytest.fixture(scope="module")
def smollm2():
    from greenprune.models import load_model

    return load_model("pypi:smollm2-135m")


@pytest.mark.real
@pytest.mark.parametrize("name", TASKS)
def test_every_task_loads_from_assets(name):
    task = tasks.load_task(name, "assets")
    sizes = {"arc_easy": 2376, "arc_challenge": 1172, "openbookqa": 500, "boolq": 3270, "hellaswag": 10042}
    sizes |= {"imdb": 200, "xsum": 1000, "sciq": 1000, "piqa": 1838, "rte": 277, "winogrande": 1267}
    assert len(task.task_docs) == sizes[name]
    for doc in (task.task_docs[0], task.task_docs[len(task.task_docs) - 1]):
        if task.OUTPUT_TYPE == "generate_until":
            assert len(task.doc_to_target(doc)) > 10
            continue
        target, choices = task.doc_to_target(doc), task.doc_to_choice(doc)
        assert isinstance(target, str) if task.multiple_input else 0 <= target < len(choices)
        assert all(isinstance(choice, str) for choice in choices)


@pytest.mark.real
def test_the_real_model_beats_the_floor_and_repeats(smollm2):
    config = BenchmarkConfig(tasks=["openbookqa", "piqa"], data="assets", limit=10, energy=None)
    runs = [measure_accuracy(*smollm2, config, ReplayMeter([1.0, 1.0]))["tasks"] for _ in range(2)]
    assert runs[0]["piqa"]["metrics"] == runs[1]["piqa"]["metrics"]
    assert runs[0]["openbookqa"]["metrics"] == runs[1]["openbookqa"]["metrics"]
    assert runs[0]["piqa"]["value"] > runs[0]["piqa"]["floor"]


@pytest.mark.real
@pytest.mark.slow
def test_every_task_and_text_runs_from_assets_and_repeats(smollm2, tmp_path):
    ptb = tmp_path / "ptb.test.txt"
    ptb.write_text(" no it was n't black monday \n but while the new york stock exchange did n't fall apart \n" * 20)
    texts = ["wikitext2@128", "c4@128", f"ptb={ptb}@128"]

    def run(limit, num_fewshot):
        config = BenchmarkConfig(
            tasks=list(TASKS), data="assets", limit=limit, num_fewshot=num_fewshot, max_length=512, perplexity=texts,
            perplexity_segments=2, energy=None,
        )  # fmt: skip
        measured = measure_accuracy(*smollm2, config, ReplayMeter([1.0] * len(TASKS)))
        scores = {name: {**task, "seconds": None} for name, task in measured["tasks"].items()}
        return scores, measured["answers"], measure_perplexities(*smollm2, config)

    scores, rows, perplexities = run(2, 0)
    assert (scores, rows, perplexities) == run(2, 0)
    assert scores.keys() == rows.keys() == TASKS.keys()
    for name, task in scores.items():
        assert task["documents"] == len(rows[name]) == 2
        assert task["value"] == pytest.approx(sum(row["score"] for row in rows[name]) / 2)
    assert {name for name, task in scores.items() if task["floor"] is None} == {"xsum"}
    assert perplexities.keys() == {"wikitext2_ppl@128", "c4_ppl@128", "ptb_ppl@128"}
    assert all(1 < value < 2000 for value in perplexities.values())
    assert run(1, 1)[0].keys() == TASKS.keys()


@pytest.mark.real
def test_the_real_perplexity_is_that_of_text(smollm2):
    config = BenchmarkConfig(perplexity=["pypi:wikipedia@128"], perplexity_segments=4, energy=None)
    found = measure_perplexities(*smollm2, config)
    assert 10 < found["wikipedia_ppl@128"] < 80
