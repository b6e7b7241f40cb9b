"""The report of a handmade run: self-contained, honest about estimates, and safe with what trials say."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from html import unescape
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from greenprune.errors import ConfigError, GreenpruneError
from greenprune.labels import label, labels
from greenprune.report import save_front, write_report
from greenprune.report.drawing import svg
from greenprune.report.front_figure import front_figure
from greenprune.report.sections.front import break_even
from greenprune.report.uncertainty import floor_of, stderr_of
from greenprune.results import TrialResult, load_trials, to_frame, write_result, write_trials


def trial(
    number: int, accuracy: float, energy: float, prune: Any = None, heal: Any = None, **metrics: Any
) -> TrialResult:
    prune = prune or {"method": "none"}
    config = {
        "model": {"id": "pypi:smollm2-135m"},
        "prune": prune,
        "heal": heal or {"method": "none"},
        "benchmark": {"limit": 50},
    }
    measured = {
        "accuracy": accuracy, "piqa_acc": accuracy, "piqa_stderr": 0.01, "piqa_floor": 0.5, "w_ppl@512": 20.0,
        "energy_j_per_token": energy, "energy_ratio": energy / 2.0, "energy_ci95_ratio": 0.02,
        "energy_kind": "estimated", "energy_source": "cpu_model <2 cores>", "machine": "box-1",
    }  # fmt: skip
    name = f"{prune['method']}-{number:08x}"
    return TrialResult(name, number, "ok", config, measured | metrics, started="2026-01-02T03:04:05+00:00")


LORA = {"method": "lora", "rank": 8, "quantize": "none"}
QLORA = {"heal.method": "lora", "heal.quantize": "nf4"}
ANGULAR = {"method": "angular", "block_size": 4}


def results() -> list[TrialResult]:
    return [
        trial(0, 0.8, 2.0),
        trial(1, 0.7, 1.5, ANGULAR),
        trial(2, 0.75, 1.5, ANGULAR, LORA),
        trial(3, 0.51, 1.2, {"method": "bi", "block_size": 8}),
        TrialResult("bi-00000004", 4, "failed", trial(4, 0, 0).config, {}, error="boom <script>alert(1)</script>"),
    ]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_trials(tmp_path / "demo", results())
    return tmp_path / "demo"


def text_of(page: str) -> str:
    page = re.sub(r"<(style|svg).*?</\1>", " ", page, flags=re.S)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", page)).split())


def test_report_needs_no_network_and_trusts_no_trial(run: Path):
    path = write_report(run)
    assert path == run / "report.html"
    page = path.read_text()
    assert page.count("<svg") == 1
    assert not re.search(r"""(src|href)\s*=\s*["'](https?:)?//|@import|<link|<script|<iframe""", page)
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
    assert "ESTIMATE" not in write_report(tmp_path / "r").read_text()


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


# -------------------------------------------------------------------------------------------- labels, picture


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prune.method": "none", "heal.method": "none"}, "dense"),
        ({"prune.method": "none", "heal.method": "lora"}, "dense + lora"),
        ({"prune.method": "angular", "prune.block_size": 4, "prune.ratio": None}, "angular 4"),
        ({"prune.method": "bi", "prune.block_size": 2.0} | QLORA, "bi 2 + qlora"),
        ({"prune.method": "flap", "prune.ratio": 0.2, "prune.structure": "AL-AM"}, "flap 20 %"),
        ({"prune.method": "wanda", "prune.ratio": 0.5, "prune.structure": "2:4"}, "wanda 50 % 2:4"),
    ],
)  # fmt: skip
def test_label(row: dict[str, Any], expected: str):
    assert label(row) == expected
    assert label(pd.Series(row)) == expected


def test_labels_tell_twins_apart():
    rank16 = {**LORA, "rank": 16}
    frame = to_frame([trial(0, 0.8, 2.0), trial(1, 0.7, 1.0, ANGULAR, LORA), trial(2, 0.7, 1.0, ANGULAR, rank16)])
    assert labels(frame) == ["dense", "angular 4 + lora, rank 8", "angular 4 + lora, rank 16"]


def line(figure: Any, name: str) -> Any:
    return next(line for line in figure.axes[0].lines if line.get_label() == name)


def test_picture_holds_every_finished_trial_and_the_step_of_the_front(run: Path):
    figure = front_figure(load_trials(run), {"accuracy": "max", "energy_j_per_token": "min"})
    axes = figure.axes[0]
    drawn = sorted(
        tuple(point) for marks in axes.collections if marks.get_label()[0] != "_" for point in marks.get_offsets()
    )
    assert drawn == [(1.2, 0.51), (1.5, 0.7), (1.5, 0.75), (2.0, 0.8)]
    step = line(figure, "Pareto front")
    assert list(step.get_xdata()) == [1.2, 1.5, 2.0]
    assert step.get_drawstyle() == "steps-post"
    assert {text.get_text() for text in axes.texts} == {"dense", "angular 4 + lora", "bi 8"}
    assert axes.get_xlabel() == "energy per token (J/token; ESTIMATED; lower is better)"
    assert line(figure, "no knowledge (floor)").get_ydata()[0] == 0.5


def test_picture_of_a_maximised_horizontal_axis_steps_the_other_way(run: Path):
    trials = load_trials(run).assign(decode_tokens_per_s=[1.0, 2.0, 3.0, 4.0, None])
    figure = front_figure(trials, {"accuracy": "max", "decode_tokens_per_s": "max"})
    assert line(figure, "Pareto front").get_drawstyle() == "steps-pre"


@pytest.mark.parametrize("objectives", [["accuracy"], ["accuracy", "energy_ratio", "w_ppl@512"]])
def test_one_or_three_objectives_have_a_picture_without_a_line(run: Path, objectives: list[str]):
    figure = front_figure(load_trials(run), {name: "max" if name == "accuracy" else "min" for name in objectives})
    assert all(line.get_label() != "Pareto front" for line in figure.axes[0].lines)
    assert svg(figure).startswith("<svg")


def test_twins_share_a_label_and_odd_names_are_text(tmp_path: Path):
    odd = {"method": r"a$\frac$<i>", "block_size": 1}
    figure = front_figure(
        to_frame([trial(0, 0.8, 2.0, odd), trial(1, 0.8, 2.0, ANGULAR)]),
        {"accuracy": "max", "energy_ratio": "min"},
    )
    assert [text.get_text() for text in figure.axes[0].texts] == [r"a$\frac$<i> 1 = angular 4"]
    assert "<i>" not in svg(figure)


def test_save_front_takes_its_format_from_the_name(run: Path, tmp_path: Path):
    assert save_front(run, tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
    first = save_front(run, tmp_path / "front.svg").read_bytes()
    assert b"<svg" in first
    assert save_front(run, tmp_path / "again.svg").read_bytes() == first


def test_scores_of_several_tasks():
    scores = {"a_acc": 0.5, "a_stderr": 0.03, "a_floor": 0.5, "b_acc": 0.7, "b_stderr": 0.04, "b_floor": 0.25}
    rows = pd.DataFrame([scores | {"accuracy": 0.6}])
    assert floor_of(rows, "accuracy") == pytest.approx(0.375)
    assert floor_of(rows, "b_acc") == 0.25
    assert floor_of(rows, "energy_ratio") is None
    assert stderr_of(rows, "accuracy")[0] == pytest.approx(0.025)  # sqrt(0.03² + 0.04²) / 2
    assert stderr_of(rows, "c_acc") is None


def test_accuracy_has_no_floor_where_a_task_has_none():
    rows = pd.DataFrame({"accuracy": [0.5], "a_acc": [0.5], "a_floor": [0.5], "xsum_acc": [0.1]})
    assert floor_of(rows, "accuracy") is None
    assert floor_of(rows, "xsum_acc") is None
    assert floor_of(rows, "a_acc") == 0.5


def test_unreadable_answers_and_stand_ins_are_said_first(tmp_path: Path):
    one = trial(0, 0.8, 2.0, xsum_unparsed=0.25, gsm8k_unparsed=0.01)
    one.config["benchmark"] |= {"data": "assets", "perplexity": ["c4@512", "wikitext2=mine.txt@512"]}
    write_trials(tmp_path / "r", [one])
    cautions = text_of(write_report(tmp_path / "r").read_text()).split("The front")[0]
    assert "Of the answers to xsum, up to 25% in a trial can't be parsed; they count as wrong." in cautions
    assert "gsm8k" not in cautions
    assert "Perplexities of c4 are of the small samples that pinned wheels hold" in cautions


def test_break_even():
    row = {"heal_energy_wh": 3.0, "energy_wh_per_1k_requests": 50.0, "energy_ratio": 0.5}
    assert break_even(pd.Series(row)) == "–"  # not all of it was metered as the workload was: the trial says none
    assert break_even(pd.Series({**row, "energy_ratio": 1.1})) == "never"
    assert break_even(pd.Series({**row, "heal_energy_wh": None})) == "–"
    assert break_even(pd.Series({**row, "break_even_requests": 80.0})) == "80"
    assert break_even(pd.Series({**row, "break_even_requests": None})) == "–"  # not metered alike


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
