"""The energy workload's section: engine, requests in flight, their lengths."""

from __future__ import annotations

import dataclasses
import re

import pytest

from greenprune.config import ENGINES, EnergyConfig, absolute
from greenprune.config.dependencies import contents
from greenprune.config.lengths import request_lengths
from greenprune.config.refusals import validated
from greenprune.errors import ConfigError
from greenprune.experiment import parse_experiment
from greenprune.trial import check_benchmark


def test_what_came_later_is_no_part_of_a_key_where_it_is_as_before():
    assert not {"engine", "concurrency", "paired"} & EnergyConfig().identity().keys()
    served = EnergyConfig(engine="vllm", concurrency=[1, 8], paired="auto").identity()
    assert {name: served[name] for name in ("engine", "concurrency", "paired")} == {
        "engine": "vllm",
        "concurrency": [1, 8],
        "paired": "auto",
    }
    assert EnergyConfig().libraries() == ()
    assert "vllm" in EnergyConfig(engine="vllm").libraries()


REFUSED = {
    "unknown engine": ({"engine": "vlm"}, ["engine must be one of its choices", "'vlm'", "did you mean 'vllm'"]),
    "none in flight": ({"concurrency": [0]}, ["concurrency.0", "greater than or equal to 1", "got 0"]),
    "no number": ({"concurrency": []}, ["concurrency", "at least 1 item"]),
    "twice": ({"concurrency": [4, 4]}, ["concurrency must give each number of requests once, got [4, 4]"]),
    "batch and concurrency": (
        {"batch_size": 4, "concurrency": [2]},
        ["batch_size must be 1", "got 4", "[2]", "use concurrency alone"],
    ),
    "batch on a server": ({"batch_size": 4, "engine": "vllm"}, ["batch_size must be 1", "engine vllm"]),
    "half a token": ({"prompt_len": 1.5}, ["prompt_len must be a number of tokens", "got 1.5"]),
    "no token": ({"decode_len": 0}, ["decode_len must be a number of tokens", "got 0"]),
    "another file": ({"prompt_len": "x.txt"}, ["prompt_len", "'x.txt'", ".csv or .jsonl"]),
    "a file for a batch": ({"prompt_len": "x.csv"}, ["must be numbers", "x.csv", "another engine"]),
    "two files": (
        {"prompt_len": "x.csv", "decode_len": "y.csv", "engine": "vllm"},
        ["must name one file", "x.csv, y.csv"],
    ),
    "pairs": ({"paired": "perhaps"}, ["paired must be", "'perhaps'"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case):
    data, words = REFUSED[case]
    with pytest.raises(ConfigError) as refusal:
        validated(EnergyConfig, data, "a file")
    assert all(word in str(refusal.value) for word in words), refusal.value


@pytest.mark.parametrize(
    "text", ["prompt,decode\n5,2\n7,3\n", '{"prompt": 5, "decode": 2}\n{"prompt": 7, "decode": 3}\n']
)
def test_lengths_are_read_from_a_file(tmp_path, text):
    file = tmp_path / ("x.jsonl" if text.startswith("{") else "x.csv")
    file.write_text(text)
    both = EnergyConfig(engine="vllm", prompt_len=str(file), decode_len=str(file))
    assert both.lengths == [(5, 2), (7, 3)]
    assert EnergyConfig(engine="vllm", prompt_len=str(file), decode_len=9).lengths == [(5, 9), (7, 9)]
    assert (both.longest, both.request) == ((7, 3), (5, 2))
    assert EnergyConfig(prompt_len=5, decode_len=2).lengths == [(5, 2)]


@pytest.mark.parametrize(
    ("text", "got"), [("", "none"), ("prompt\n5\n", "decode=None"), ("prompt,decode\n5,0\n", "decode='0'")]
)
def test_a_file_that_is_none_is_refused(tmp_path, text, got):
    file = tmp_path / "x.csv"
    file.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(f"got {got} in {file}")):
        request_lengths(str(file), str(file))
    with pytest.raises(ConfigError, match="No such file"):
        request_lengths(str(tmp_path / "nowhere.csv"), 5)


def test_a_file_of_lengths_is_found_from_anywhere_and_its_content_is_in_the_key(tmp_path):
    (tmp_path / "x.csv").write_text("prompt,decode\n5,2\n")
    found = absolute({"benchmark": {"energy": {"prompt_len": "x.csv", "decode_len": 3}}}, tmp_path)
    assert found["benchmark"]["energy"] == {"prompt_len": str(tmp_path / "x.csv"), "decode_len": 3}
    assert contents(found).keys() == {str(tmp_path / "x.csv")}


def test_a_missing_engine_and_a_missing_file_are_told_before_any_work(tiny_experiment, monkeypatch, tmp_path):
    trial = parse_experiment(tiny_experiment, ["benchmark.energy.engine=vllm"]).trial()
    monkeypatch.setitem(ENGINES, "vllm", dataclasses.replace(ENGINES["vllm"], module="nothing_of_this_name"))
    with pytest.raises(ConfigError, match=r"engine must be installed, got vllm.*scripts/engines.*greenprune\[vllm\]"):
        check_benchmark(trial)
    monkeypatch.setitem(ENGINES, "vllm", dataclasses.replace(ENGINES["vllm"], module="json"))
    check_benchmark(trial)
    served = ["benchmark.energy.engine=vllm", f"benchmark.energy.prompt_len={tmp_path}/x.csv"]
    with pytest.raises(ConfigError, match="No such file"):
        check_benchmark(parse_experiment(tiny_experiment, served).trial())


def test_an_engine_that_is_installed_says_its_version():
    assert re.fullmatch(r"\d+\.\d+", ENGINES["transformers"].version())
    assert dataclasses.replace(ENGINES["vllm"], packages=("nothing-of-this-name",)).version() == "unknown"
