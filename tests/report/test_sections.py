"""The contract of the report's sections: whatever a run holds, each has its say or keeps silent."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from handmade_runs import ANGULAR, results, text_of, trial

from greenprune.report import sections, write_report
from greenprune.report.page import section_html
from greenprune.report.run import ReportedRun, read_run
from greenprune.report.sections import SECTIONS, PagePart
from greenprune.report.sections.cautions import gather_cautions
from greenprune.results import TrialResult, write_trials

# What each section says of a run of five trials, one of which failed. A new section is a row here.
SAYS = {
    "cautions": "These energies are ESTIMATES",
    "facts": "model pypi:smollm2-135m",
    "family": "other pypi:smollm2-135m",
    "front": "Knee: angular 4 + lora",
    "budgets": "greenprune pareto",
    "compare": "TRIAL dense",
    "tasks": "0.750 ± 0.010 0.750 ± 0.010 93.8%",
    "layers": "layers layers.png",
    "curves": "curves curves.png",
    "energy": "energy energy.png",
    "trials": "0.750 ± 0.010",
    "failed": "bi-00000004 boom",
    "again": "trials/angular-00000002/config.yaml",
    "environment": "versions.torch 2.13",
}
EVIL = '<b>"evil" & co</b>'


def evil() -> list[TrialResult]:
    """Markup wherever a run holds text of its own."""
    texts = dict.fromkeys(("energy_source", "energy_note", "hostname", "machine"), EVIL)
    named = {f"{EVIL}_acc": 0.5, f"{EVIL}_unparsed": 0.5, f"{EVIL}_ppl@16": 9.0}
    ok = [trial(i, 0.8 - 0.1 * i, 2.0 - i, {"method": EVIL, "block_size": i} if i else None) for i in range(2)]
    for result in ok:
        result.metrics.update(texts | named)
        result.config["model"]["id"] = EVIL
    return [*ok, TrialResult(EVIL, 2, "failed", ok[1].config, {}, error=EVIL)]


RUNS: dict[str, Callable[[], list[TrialResult]]] = {
    "five trials": results,
    "one trial": lambda: results()[:1],
    "one that was pruned": lambda: results()[1:2],
    "all failed": lambda: results()[-1:],
    "an empty front": lambda: [trial(0, math.nan, 2.0), trial(1, math.nan, 1.0, ANGULAR)],
    "no front": lambda: [trial(0, 0.8, 2.0), trial(1, 0.7, 1.0, ANGULAR, machine="box-2")],
    "no trials": list,
    "markup in names": evil,
}


def written(folder: Path, trials: list[TrialResult]) -> ReportedRun:
    write_trials(folder, trials)
    environment = {"versions": {"torch": "2.13"}, "evil": EVIL}
    (folder / "environment.json").write_text(json.dumps(environment))
    write_trials(folder.parent / "other", trials)
    return read_run(folder, beside=[folder.parent / "other"])


def test_every_section_has_its_row_and_its_template():
    assert list(SAYS) == list(SECTIONS)
    templates = {path.name for path in Path(sections.__file__).parent.glob("*.j2")}
    assert templates == {section.template for section in SECTIONS.values()}
    assert next(iter(SECTIONS)) == "cautions", "how numbers may be read comes before any number"


@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_shows_what_it_is_for(name: str, tmp_path: Path):
    assert SAYS[name] in text_of(section_html(SECTIONS[name], written(tmp_path / "r", results())))


@pytest.mark.parametrize("kind", RUNS)
@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_is_whole_and_safe_on_every_run(name: str, kind: str, tmp_path: Path):
    html = section_html(SECTIONS[name], written(tmp_path / "r", RUNS[kind]()))
    if html is None:
        return
    ElementTree.fromstring(f"<div>{html}</div>")  # raises where an element isn't closed or a name is markup
    assert text_of(html), "a section that has nothing to say is left out"
    assert EVIL not in html
    assert "Traceback" not in html


@pytest.mark.parametrize("kind", RUNS)
def test_the_page_holds_the_sections_in_their_order(kind: str, tmp_path: Path):
    run = written(tmp_path / "r", RUNS[kind]())
    page = write_report(run.folder, beside=[one.folder for one in run.beside]).read_text()
    bodies = [html for section in SECTIONS.values() if (html := section_html(section, run)) is not None]
    places = [page.index(str(html)) for html in bodies]
    assert places == sorted(places)
    titles = [s.title for s in SECTIONS.values() if s.title and section_html(s, run) is not None]
    assert [part.split("</h2>")[0] for part in page.split("<h2>")[1:]] == titles


def test_a_run_named_with_markup_is_text(tmp_path: Path):
    write_trials(tmp_path / "<i>r", results())
    page = write_report(tmp_path / "<i>r").read_text()
    assert "<h1>&lt;i&gt;r</h1>" in page
    assert "<i>" not in page


def test_a_new_section_is_an_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def gather_toy(run: ReportedRun) -> dict[str, Any]:
        return {"facts": {"trials": len(run.trials)}}

    monkeypatch.setitem(SECTIONS, "toy", PagePart("A toy", gather_toy, "facts.html.j2"))
    write_trials(tmp_path / "r", results())
    assert text_of(write_report(tmp_path / "r").read_text()).endswith("A toy trials 5")


def test_a_failure_can_be_seen_again_where_nothing_finished(tmp_path: Path):
    run = written(tmp_path / "r", RUNS["all failed"]())
    assert "trials/bi-00000004/config.yaml" in text_of(section_html(SECTIONS["again"], run))


def test_a_run_with_masks_says_that_they_save_nothing(tmp_path):
    masked = trial(1, 0.7, 1.0, {"method": "wanda", "ratio": 0.5, "structure": "2:4"})
    for found, says in ([results()[0], masked], True), (results()[:1], False):
        assert any("Masks (wanda)" in caution for caution in _cautions(found, tmp_path / str(says))) == says


def _cautions(found: list[TrialResult], folder: Path) -> list[str]:
    write_trials(folder, found)
    return (gather_cautions(read_run(folder)) or {"cautions": []})["cautions"]
