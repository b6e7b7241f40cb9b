"""All rows of a run come from the same texts, model and libraries, and from what the run fixed once."""

from __future__ import annotations

import json
import logging
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from hub_double import hub_here

from greenprune.errors import SweepError
from greenprune.experiment import Experiment, parse_experiment
from greenprune.results import TrialResult, write_result
from greenprune.storage import Storage
from greenprune.sweep.driver import run_sweep
from greenprune.sweep.provenance import FILE, RECORD, settled
from greenprune.sweep.run_folder import RunFolder

COMMIT, LATER = "a" * 40, "b" * 40


@pytest.fixture
def run(tiny_experiment) -> RunFolder:
    return RunFolder(Storage(tiny_experiment["sweep"]["storage"]), "tiny")


def gone_on(run: RunFolder, data: dict, *overrides: str, any_versions: bool = False) -> Experiment:
    """What a sweep's command does before its first trial, and a row if there is none."""
    asked = parse_experiment(data, overrides)
    experiment, record = settled(asked, run, run.results(), fresh=False, any_versions=any_versions)
    run.write("config.yaml", yaml.safe_dump(experiment.to_dict(), sort_keys=False))
    run.write(FILE, json.dumps({RECORD: record}))
    config = experiment.trial().dense()
    write_result(run.path, TrialResult(config.trial_id(), 0, "ok", config.model_dump(mode="json")))
    return experiment


def refusal(run: RunFolder, data: dict, *overrides: str) -> str:
    before = {path: path.read_bytes() for path in sorted(run.path.rglob("*")) if path.is_file()}
    with pytest.raises(SweepError) as problem:
        run_sweep(parse_experiment(data, overrides), quiet=True)
    after = {path: path.read_bytes() for path in sorted(run.path.rglob("*")) if path.is_file()}
    assert before == after, "nothing is touched"
    return str(problem.value)


def test_a_run_is_not_gone_on_with_once_a_text_or_the_model_changed(run, tiny_experiment):
    gone_on(run, tiny_experiment)
    text = Path(tiny_experiment["benchmark"]["perplexity"][0].removesuffix("@16"))
    content = text.read_text()
    text.write_text(content + '{"text": "the cat"}\n')
    said = refusal(run, tiny_experiment)
    assert "must share one text to be compared" in said
    assert all(part in said for part in ("held.jsonl@16", "--fresh", "name=…"))
    assert "--any-versions" not in said
    text.write_text(content)
    weights = Path(tiny_experiment["model"]["id"]) / "extra.bin"
    weights.write_bytes(b"another weight")
    assert f"must share one model to be compared, got {weights.parent}" in refusal(run, tiny_experiment)
    weights.unlink()
    gone_on(run, tiny_experiment)


def test_a_run_is_not_gone_on_with_under_another_minor_version_unless_asked(run, tiny_experiment, monkeypatch, caplog):
    gone_on(run, tiny_experiment)
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: {"torch": "99.1.3"}.get(name) or real(name))
    said = refusal(run, tiny_experiment)
    assert "must share one library to be compared, got torch 99.1, and torch 2." in said
    assert "or let them share it with --any-versions" in said
    gone_on(run, tiny_experiment, any_versions=True)
    monkeypatch.undo()

    (run.path / FILE).write_text('{"versions": {}}')  # as a run of before has it
    with caplog.at_level(logging.WARNING, logger="greenprune"):
        gone_on(run, tiny_experiment)
    assert "doesn't say what its rows depend on" in caplog.text
    assert json.loads((run.path / FILE).read_text())[RECORD]["library"]["torch"].startswith("2.")


def test_a_run_keeps_its_commits_and_its_data(run, tiny_experiment, monkeypatch):
    """Texts and tasks are of the hub, then the hub moves on, then it is gone."""
    data = tiny_experiment | {"calibration": {"dataset": "owner/texts@dev"}}
    data["benchmark"] |= {"tasks": ["piqa"], "data": "auto"}
    with hub_here() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        hub.commits = {"datasets/allenai/ai2_arc": LATER, "datasets/owner/texts/revision/dev": COMMIT}
        first = gone_on(run, data)
        assert first.calibration.dataset == f"owner/texts@{COMMIT}"
        assert first.benchmark.data == "hub"
        assert run.results()[0].to_row()["benchmark.data"] == "hub", "a column of the table"
        hub.commits["datasets/owner/texts/revision/dev"] = LATER
        assert gone_on(run, data) == first
        assert "must share one revision to be compared" in refusal(run, data, "calibration.dataset=owner/texts@other")
    assert gone_on(run, data) == first, "no hub any more"
    assert gone_on(run, yaml.safe_load((run.path / "config.yaml").read_text())) == first
    assert "another configuration" in refusal(run, data, "benchmark.data=assets")
