"""Paired tests by hand-worked examples, and a run's trials compared by the answers they kept."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from greenprune import compare
from greenprune.benchmark.answers import write_answers
from greenprune.cli import app
from greenprune.errors import ConfigError
from greenprune.paired import Difference, holm, paired_test, pooled_test
from greenprune.report import write_report
from greenprune.results import TrialResult, write_result, write_trials


def right(both: int, only_a: int, only_b: int, neither: int) -> tuple[list[float], list[float]]:
    """Answers with these counts of documents that both, only one, or none of two models got right."""
    a = [1.0] * (both + only_a) + [0.0] * (only_b + neither)
    b = [1.0] * both + [0.0] * only_a + [1.0] * only_b + [0.0] * neither
    return a, b


def test_mcnemar_by_hand():
    """8 documents differ, 1 of them for B: p = 2 · (1 + 8) / 2^8."""
    found = paired_test("t", *right(both=5, only_a=7, only_b=1, neither=7))
    assert found.p == pytest.approx(18 / 256)
    assert (found.a, found.b, found.difference) == (0.6, 0.3, pytest.approx(0.3))
    assert found.verdict == "no difference shown", "6 of 20 better, and still not shown"
    # Clopper-Pearson of 7 in 8 is 0.4735 … 0.9968; times 8 of 20 documents.
    assert (found.low, found.high) == (pytest.approx(-0.0530 * 0.4, abs=1e-4), pytest.approx(0.9937 * 0.4, abs=1e-4))


@pytest.mark.parametrize(("only_a", "p", "verdict"), [(5, 1 / 16, "no difference shown"), (6, 1 / 32, "A better")])
def test_six_of_six_are_needed(only_a, p, verdict):
    found = paired_test("t", *right(3, only_a, 0, 3))
    assert (found.p, found.verdict) == (p, verdict)
    swapped = paired_test("t", *reversed(right(3, only_a, 0, 3)))
    assert (swapped.p, swapped.verdict) == (p, verdict.replace("A", "B"))
    assert (swapped.low, swapped.high) == (pytest.approx(-found.high), pytest.approx(-found.low))


@pytest.mark.parametrize("only_a", range(12))
@pytest.mark.parametrize("only_b", range(12))
def test_the_interval_leaves_out_zero_exactly_where_p_is_small(only_a, only_b):
    found = paired_test("t", *right(4, only_a, only_b, 4))
    assert (found.p < 0.05) == (found.low > 0 or found.high < 0)
    assert found.low - 1e-12 <= found.difference <= found.high + 1e-12


def test_equal_answers_show_no_difference_but_prove_no_equality():
    found = paired_test("t", *right(30, 0, 0, 29))
    assert (found.p, found.verdict) == (1.0, "no difference shown")
    assert found.high == pytest.approx(1 - 0.05 ** (1 / 59))  # 0.05: none of 59 differed
    assert found.low == -found.high


def test_graded_answers_by_hand():
    """Differences 0.1, 0.2, 0.3: mean 0.2, standard error 0.1 / √3, t = 3.46 with 2 degrees of freedom."""
    found = paired_test("t", [0.5, 0.6, 0.7], [0.4, 0.4, 0.4])
    assert found.difference == pytest.approx(0.2)
    assert (found.low, found.high) == pytest.approx((0.2 - 4.30265 * 0.0577350, 0.2 + 4.30265 * 0.0577350), rel=1e-4)
    assert found.p == 0.25, "t gives 0.074, but three documents can't show more than 2 · ½³"
    assert paired_test("t", [0.5, 0.6, 0.7] * 5, [0.4] * 15).verdict == "A better"


def test_a_few_equal_differences_prove_nothing():
    found = paired_test("t", [0.3, 0.3], [0.2, 0.2])
    assert (found.p, found.verdict) == (0.5, "no difference shown")
    assert paired_test("t", [0.3], [0.2]).low is None


def test_pooled_tasks_weigh_the_same_however_many_documents():
    """Means +0.5 and −0.25; variances of the means (1/3) / 4 and (3/14) / 8... by hand below."""
    a1, b1 = right(0, 2, 0, 2)
    a2, b2 = right(0, 0, 2, 6)
    found = pooled_test([(a1, b1), (a2, b2)])
    assert found.difference == pytest.approx((0.5 - 0.25) / 2)
    first, second = (1 / 3) / 4, (3 / 14) / 8  # sample variance / documents
    error = (first + second) ** 0.5 / 2
    freedom = (first + second) ** 2 / (first**2 / 3 + second**2 / 7)
    from scipy.stats import t

    assert found.high - found.difference == pytest.approx(t.ppf(0.975, freedom) * error)
    assert (found.documents, found.verdict) == (12, "no difference shown")


def test_many_small_differences_add_up():
    task = right(10, 5, 0, 10)
    assert paired_test("t", *task).verdict == "no difference shown"
    assert pooled_test([task, task, task]).verdict == "A better"


def test_holm_by_hand():
    """Sorted 0.01, 0.02, 0.04 become 0.03, 0.04, 0.04."""
    found = [Difference("t", 1.0, 0.0, 0.1, 0.9, p, 9, "A better") for p in (0.02, 0.04, 0.01)]
    assert [one.p for one in holm(found)] == pytest.approx([0.04, 0.04, 0.03])
    assert [one.verdict for one in holm([*found, *found])] == ["no difference shown"] * 6
    assert holm(found[:1]) == found[:1]


# ------------------------------------------------------------------------------------------ trials of a run


def rows(scores: list[float], first: int = 0, text: str = "d") -> list[dict]:
    return [{"doc_id": first + i, "document": f"{text}{first + i}", "score": s} for i, s in enumerate(scores)]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Trials: dense, a better and an equal one, and one that met other documents."""
    dense, better = right(10, 0, 12, 10)
    answered = {
        "none-0": {"piqa": rows(dense), "xsum": rows([0.1, 0.2, 0.3])},
        "bi-1": {"piqa": rows(better), "xsum": rows([0.1, 0.2, 0.3])},
        "bi-2": {"piqa": rows(dense)[::-1], "xsum": rows([0.1, 0.3, 0.2])},
        "bi-3": {"piqa": rows(dense, first=1)},
        "bi-4": {"boolq": rows(dense)},
        "bi-5": {},
    }
    results = []
    for number, (trial_id, tasks) in enumerate(answered.items()):
        for task, given in tasks.items():
            write_answers(tmp_path / f"_stages/accuracy/key{number}/answers", task, given)
        config = {"prune": {"method": trial_id.split("-")[0]}, "heal": {"method": "none"}}
        metrics = {"accuracy": 0.5 + number / 100, "energy_j_per_token": 1.0 + number, "energy_kind": "measured"}
        stages = [{"stage": "accuracy", "key": f"key{number}"}]
        results.append(TrialResult(trial_id, number, "ok", config, metrics, stages=stages))
        write_result(tmp_path / "demo", results[-1])
    write_trials(tmp_path / "demo", results)
    return tmp_path / "demo"


def test_trials_are_compared_on_what_they_share(run):
    found = compare(run, "bi-1", "dense")
    assert (found.trial_a, found.trial_b) == ("bi-1", "none-0")
    assert [(one.task, one.verdict, one.documents) for one in found.tasks] == [
        ("piqa", "A better", 32),
        ("xsum", "no difference shown", 3),
    ]
    assert found.tasks[0].p == pytest.approx(2 * 2 / 2**12), "McNemar's, times two tasks"
    assert found.overall.verdict == "A better"
    assert found.overall.difference == pytest.approx((12 / 32 + 0) / 2)
    assert compare(run, 1, 0) == found


def test_documents_are_matched_whatever_their_order(run):
    found = compare(run, "bi-2", "dense", tasks=["piqa"])
    assert (found.tasks[0].p, found.pooled, found.overall) == (1.0, None, found.tasks[0])


@pytest.mark.parametrize(
    ("trial", "tasks", "message"),
    [
        ("bi-3", None, r"same documents, got 32 and 32 of piqa with 31 in common; use one benchmark\.data, limit"),
        ("bi-4", None, r"a task in common, got boolq and piqa, xsum"),
        ("bi-5", None, r"needs the answers of trial bi-5, got none in .*key5.*; run it again"),
        ("bi-1", ["pica"], r"both trials answered, got 'pica'; did you mean 'piqa'"),
        ("bi-9", None, r"its number, or as dense, got 'bi-9'; did you mean"),
    ],
)
def test_what_cannot_be_compared_is_refused(run, trial, tasks, message):
    with pytest.raises(ConfigError, match=message):
        compare(run, trial, "dense", tasks)


def test_the_command_prints_verdicts(run):
    printed = CliRunner().invoke(app, ["compare", str(run), "bi-1", "dense"]).output
    assert "A: bi-1   B: none-0" in printed
    lines = {line.split("│")[1].strip(): line for line in printed.splitlines() if line.startswith("│")}
    assert "A better" in lines["piqa"]
    assert "+0.375" in lines["piqa"]
    assert "no difference shown" in lines["xsum"]
    assert "A better" in lines["all tasks"]
    only = CliRunner().invoke(app, ["compare", str(run), "bi-1", "dense", "--task", "xsum"]).output
    assert "piqa" not in only


def test_the_report_says_who_differs_from_the_dense_model(run):
    page = write_report(run, {"accuracy": "max"}).read_text()
    assert "against dense" not in page, "bi-5 leads the front and kept no answers"
    page = write_report(run, {"accuracy": "max", "energy_j_per_token": "min"}).read_text()
    front = page.split("<h2>All trials")[0]
    assert front.count(">better<") == 1
    assert front.count(">no difference shown<") == 1
