"""The report of a handmade run: self-contained, honest about estimates, and safe with what trials say."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from handmade_runs import ANGULAR, results, text_of, trial

from greenprune.errors import ConfigError, GreenpruneError
from greenprune.report import write_report
from greenprune.results import write_result, write_trials


def test_report_needs_no_network_and_trusts_no_trial(run: Path):
    path = write_report(run)
    assert path == run / "report.html"
    page = path.read_text()
    printed, _, script = page.partition("<script")
    assert printed.count("<svg") == 1
    assert not re.search(r"""(src|href)\s*=\s*["'](https?:)?//|@import|<link|<iframe""", page)
    assert not re.search(r"\bfetch\(|XMLHttpRequest|\bimport\b|innerHTML|eval\(", script)
    assert "boom &lt;script&gt;" in page


def test_report_says_what_matters_first(run: Path):
    text = text_of(write_report(run).read_text())
    before_front = text.split("The front")[0]
    assert "These energies are ESTIMATES (source: cpu_model <2 cores>)" in before_front
    assert "baseline is a de-quantised 4-bit model" in before_front
    assert "sample of 50 documents" in before_front
    for fact in ("pypi:smollm2-135m", "box-1", "2026-01-02", "4 trials finished, 1 failed"):
        assert fact in before_front


def test_report_lists_front_trials_failures_and_commands(run: Path):
    page = write_report(run).read_text()
    text = text_of(page)
    front, rest = text.split("The front")[1].split("All trials")
    assert [name for name in ("dense", "angular 4 + lora", "bi 8") if name in front] == [
        "dense",
        "angular 4 + lora",
        "bi 8",
    ]
    assert not re.search(r"angular 4 (?!\+)", front)  # dominated by its healed twin
    assert "Knee: angular 4 + lora" in front
    assert "relative to the dense model" in front
    assert "0.750 ± 0.010" in rest
    assert re.search(r'class="floor"[^>]*>0.510 ± 0.010', page)  # within two standard errors of 0.5
    assert "bi-00000004 boom" in rest
    assert f"greenprune trial {run}/trials/angular-00000002/config.yaml # angular 4 + lora" in rest


def test_measured_energies_get_no_banner(tmp_path: Path):
    kept = [trial(0, 0.8, 2.0, energy_kind="measured"), trial(1, 0.7, 1.0, ANGULAR, energy_kind="measured")]
    write_trials(tmp_path / "r", kept)
    assert "ESTIMATE" not in text_of(write_report(tmp_path / "r").read_text())


def test_report_takes_the_sweeps_objectives(run: Path):
    (run / "config.yaml").write_text("sweep: {objectives: {w_ppl@512: min, energy_ratio: min}}\n")
    assert "w_ppl@512 (min), energy_ratio (min)" in text_of(write_report(run).read_text())
    assert "accuracy (max)" in text_of(write_report(run, {"accuracy": "max"}).read_text())


def test_report_shows_the_environment(run: Path):
    (run / "environment.json").write_text(json.dumps({"versions": {"torch": "2.13"}, "gpus": []}))
    assert "versions.torch 2.13 gpus []" in text_of(write_report(run).read_text())


def test_a_run_without_a_front_still_has_a_report(tmp_path: Path):
    write_trials(tmp_path / "r", [trial(0, 0.8, 2.0), trial(1, 0.7, 1.0, ANGULAR, machine="box-2")])
    page = text_of(write_report(tmp_path / "r").read_text())
    assert "No front: energy_j_per_token must come from one machine" in page
    assert "angular 4" in page
    with pytest.raises(ConfigError, match="one machine"):
        write_report(tmp_path / "r", {"accuracy": "max", "energy_j_per_token": "min"})


def test_a_run_in_which_all_failed_has_a_report(tmp_path: Path):
    write_trials(tmp_path / "r", results()[-1:])
    assert "0 trials finished, 1 failed" in text_of(write_report(tmp_path / "r").read_text())


def test_without_matplotlib_the_remedy_is_named(run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(GreenpruneError, match=r"matplotlib.*pip install 'greenprune\[report\]'"):
        write_report(run)


def test_importing_results_and_report_is_light():
    heavy = "{'torch', 'ray', 'matplotlib', 'jinja2', 'pandas', 'pyarrow', 'moocore', 'transformers'}"
    modules = "greenprune.results, greenprune.pareto, greenprune.report, greenprune.export"
    code = f"import sys, {modules}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_unreadable_answers_and_stand_ins_are_said_first(tmp_path: Path):
    one = trial(0, 0.8, 2.0, xsum_unparsed=0.25, gsm8k_unparsed=0.01)
    one.config["benchmark"] |= {"data": "assets", "perplexity": ["c4@512", "wikitext2=mine.txt@512"]}
    write_trials(tmp_path / "r", [one])
    cautions = text_of(write_report(tmp_path / "r").read_text()).split("The front")[0]
    assert "Of the answers to xsum, up to 25% in a trial can't be parsed; they count as wrong." in cautions
    assert "gsm8k" not in cautions
    assert "Perplexities of c4 are of the small samples that pinned wheels hold" in cautions


def test_the_report_says_why_and_what_the_search_cost(tmp_path):
    note = "estimated: no sensor, this machine shows no RAPL counter"
    stages = [
        {"stage": "prune", "key": "a", "seconds": 2.0, "energy_j": 3600.0, "energy_kind": "estimated"},
        {"stage": "energy", "key": "b", "seconds": 2.0, "energy_j": None, "energy_kind": None},
    ]
    trials = [
        trial(0, 0.8, 2.0, energy_note=note),
        trial(1, 0.7, 1.0, ANGULAR),
        trial(2, 0.9, 0.5, ANGULAR, energy_kind="contaminated", energy_note="contaminated: PID 7"),
    ]
    run, trials = tmp_path / "r", [dataclasses.replace(result, stages=stages) for result in trials]
    for result in trials:
        write_result(run, result)
    write_trials(run, trials)
    page = text_of(write_report(run).read_text())
    assert f"Energy: {note}." in page
    assert "1 of 3 trials' energies are CONTAMINATED" in page
    assert "1 Wh, estimated (prune 1; not metered: 1)" in page  # three trials share both artifacts
