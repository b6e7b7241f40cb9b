"""What a run fixes once: commits of models and texts of the hub, and where `data: auto` reads."""

from __future__ import annotations

import logging

import pytest
from hub_double import hub_here

from greenprune.assets import fingerprint, hub_commit
from greenprune.benchmark.data_mode import HUB_WAITS_S, resolve_data
from greenprune.benchmark.texts import source_here
from greenprune.config import ModelConfig, perplexity_name, split_text
from greenprune.data import hub_text
from greenprune.decided import decided
from greenprune.errors import AssetError
from greenprune.experiment import Experiment, parse_experiment

MODEL, C4, WIKITEXT, OTHER = "a" * 40, "b" * 40, "c" * 40, "d" * 40


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with hub_here() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        hub.commits = {
            "models/owner/name": MODEL,
            "models/owner/name/revision/dev": OTHER,
            "datasets/allenai/c4": C4,
            "datasets/Salesforce/wikitext": WIKITEXT,
            "datasets/owner/texts/revision/v2": OTHER,
            "datasets/allenai/ai2_arc": OTHER,
        }
        yield hub


def experiment(**sections) -> dict:
    data = {
        "model": {"id": "owner/name"},
        "prune": {"method": "wanda", "ratio": 0.5},
        "heal": {"method": "lora", "dataset": "owner/texts:en@v2"},
        "benchmark": {"perplexity": ["wikitext2@64", "c4@64"], "data": "hub"},
    }
    return parse_experiment(data | sections).to_dict()


def test_models_and_texts_of_the_hub_are_fixed_to_commits_each_asked_for_once(hub):
    made = decided(experiment())
    assert made["model"]["revision"] == MODEL
    assert made["calibration"]["dataset"] == f"c4@{C4}"
    assert made["heal"]["dataset"] == f"owner/texts:en@{OTHER}"
    assert made["benchmark"]["perplexity"] == [f"wikitext2@{WIKITEXT}@64", f"c4@{C4}@64"]
    assert sorted(hub.asked) == sorted(set(hub.asked))
    config = parse_experiment(made)
    assert [perplexity_name(text) for text in config.benchmark.perplexity] == ["wikitext2_ppl@64", "c4_ppl@64"]
    assert decided(config.to_dict()) == config.to_dict(), "a run's own file asks nobody"
    assert decided(experiment(model={"id": "owner/name", "revision": "dev"}))["model"]["revision"] == OTHER


def test_data_sets_of_tasks_are_fixed_at_the_revision_that_each_task_reads(hub):
    hub.commits |= {"datasets/EdinburghNLP/xsum/revision/refs%2Fconvert%2Fparquet": C4}
    tasks = {"tasks": ["arc_easy", "arc_challenge", "xsum", "piqa"], "data": "hub"}
    made = decided(experiment(benchmark=tasks))
    assert made["benchmark"]["commits"] == {"allenai/ai2_arc": OTHER, "EdinburghNLP/xsum": C4}, "piqa's is unknown"
    assert hub.asked.count("datasets/allenai/ai2_arc") == 1
    hub.commits = {}
    again = decided(experiment(benchmark=tasks), made)
    assert again["benchmark"] == made["benchmark"]
    assert not decided(experiment(benchmark=tasks | {"data": "assets"}))["benchmark"]["commits"]
    pins = parse_experiment(made).benchmark
    assert pins.identity() != parse_experiment(experiment(benchmark=tasks)).benchmark.identity()


def test_a_task_reads_the_commit_of_its_data_set(monkeypatch):
    from greenprune.benchmark.tasks import load_task

    def load_dataset(path, name=None, **options):
        asked.append((path, options.get("revision")))
        raise ConnectionError("no hub here")

    asked: list = []
    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    for commits in ({"allenai/ai2_arc": OTHER}, {}):
        with pytest.raises(AssetError, match="no hub here"):
            load_task("arc_challenge", "hub", commits)
    assert asked == [("allenai/ai2_arc", OTHER), ("allenai/ai2_arc", None)]


def test_a_commit_reaches_the_data_set():
    assert hub_text(f"c4@{C4}").revision == C4
    assert hub_text(f"owner/texts:en@{C4}") == hub_text(f"owner/texts:en@{C4}")
    found = hub_text(f"owner/texts:en@{C4}")
    assert (found.path, found.name, found.revision) == ("owner/texts", "en", C4)
    assert (hub_text("c4").revision, hub_text("pypi:c4"), hub_text("x@y/z.txt")) == (None, None, None)
    assert source_here(f"c4@{C4}", "hub") == f"c4@{C4}"
    assert source_here(f"c4@{C4}", "assets") == "pypi:c4"


def test_entries_of_perplexity_may_hold_a_commit():
    assert split_text(f"c4@{C4}") == ("c4", f"c4@{C4}", 0)
    assert split_text(f"mine=owner/texts:en@{C4}@64") == ("mine", f"owner/texts:en@{C4}", 64)
    assert split_text("c4@main@64") == ("c4", "c4@main", 64)
    assert split_text("/data@home/held.txt@64") == ("held", "/data@home/held.txt", 64)
    for wrong in ("c4@main", "c4@1", "c4@0"):
        with pytest.raises(ValueError, match="name@length"):
            split_text(wrong)


def test_what_no_trial_reads_is_not_asked_for(hub):
    nothing = {"method": "none"}
    made = decided(experiment(prune=nothing, heal=nothing, benchmark={"perplexity": ["c4@64"], "data": "assets"}))
    assert hub.asked == ["models/owner/name"]
    assert (made["calibration"]["dataset"], made["benchmark"]["perplexity"]) == ("c4", ["c4@64"])


def test_going_on_keeps_commits_and_data_whatever_the_hub_says_now(hub):
    asked = experiment(benchmark={"perplexity": ["wikitext2@64"], "data": "auto"})
    former = decided(asked, choose_data=lambda: "hub")
    hub.commits = dict.fromkeys(hub.commits, "e" * 40)
    hub.asked.clear()
    assert decided(asked, former, choose_data=lambda: "assets") == former
    assert not hub.asked
    assert decided(asked, choose_data=lambda: "hub")["model"]["revision"] == "e" * 40


def test_what_could_not_be_told_is_said_and_stays_open(hub, caplog):
    hub.commits = {}
    asked = experiment()
    with caplog.at_level(logging.WARNING, logger="greenprune"):
        made = decided(asked)
    assert made == asked
    assert "the model owner/name can't be pinned to a commit (HfHubHTTPError" in caplog.text
    assert "the dataset allenai/c4 can't be pinned" in caplog.text
    hub.commits = {"models/owner/name": MODEL}
    assert decided(asked, made) == made, "a run's rows share what the first of them had"


def test_without_the_hub_the_cache_tells(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for folder, commit in (("models--owner--name", MODEL), ("datasets--allenai--c4", C4)):
        (tmp_path / "hub" / folder / "refs").mkdir(parents=True)
        (tmp_path / "hub" / folder / "refs" / "main").write_text(commit)
    assert (hub_commit("model", "owner/name"), hub_commit("dataset", "allenai/c4")) == (MODEL, C4)
    assert hub_commit("model", "owner/name", "dev") is None


def test_a_commit_is_a_fingerprint_without_a_download(hub):
    one, other = (fingerprint(ModelConfig(id="owner/name", revision=commit)) for commit in (MODEL, OTHER))
    assert one != other
    assert not hub.asked


def test_models_and_texts_of_a_space_are_fixed_too(hub):
    hub.commits["models/other/name"] = OTHER
    space = {
        "model.id": {"choice": ["owner/name", "other/name", "pypi:smollm2-135m"]},
        "calibration.dataset": {"choice": ["c4", "wikitext2"]},
        "prune.ratio": {"choice": [0.5], "when": {"calibration.dataset": ["wikitext2"], "model.id": ["owner/name"]}},
    }
    sweep = {"space": space, "objectives": {"energy_j_per_token": "min"}}
    made = decided(experiment(sweep=sweep))
    fixed = made["sweep"]["space"]
    assert fixed["model.id"]["choice"] == [f"owner/name@{MODEL}", f"other/name@{OTHER}", "pypi:smollm2-135m"]
    assert fixed["calibration.dataset"]["choice"] == [f"c4@{C4}", f"wikitext2@{WIKITEXT}"]
    assert fixed["prune.ratio"]["when"]["model.id"] == [f"owner/name@{MODEL}"]
    config: Experiment = parse_experiment(made)
    trial = config.trial({"model.id": f"other/name@{OTHER}"})
    assert (trial.model.id, trial.model.revision) == ("other/name", OTHER)
    assert config.trial({"model.id": f"owner/name@{MODEL}"}) == config.trial()
    assert decided(config.to_dict(), made) == made


def test_the_hub_is_asked_three_times_before_stand_ins_are_taken(monkeypatch, caplog):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    waited: list[float] = []
    answers = iter([False, False, True])
    assert resolve_data("auto", lambda: next(answers), waited.append) == "hub"
    assert waited == list(HUB_WAITS_S) == sorted(HUB_WAITS_S)
    with caplog.at_level(logging.WARNING, logger="greenprune"):
        assert resolve_data("auto", lambda: False, waited.append) == "assets"
    assert "benchmark.data auto is assets from now on (the hub did not answer, asked 3 times)" in caplog.text
