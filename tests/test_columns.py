"""The declarations of columns are whole: names resolve, ratios and kinds lead somewhere."""

from __future__ import annotations

import pytest

from greenprune import columns
from greenprune.columns import COLUMNS, column, those_of


def test_names_and_patterns():
    assert column("energy_j_per_token").unit == "J/token"
    assert column("piqa_acc").unit == "0–1"
    assert column("wikitext2_ppl@2048").unit == "perplexity"
    assert column("nothing") is None
    assert column("piqa_acc").floor == "piqa_floor"
    assert column("arc_easy_wh").kind == "tasks_energy_kind"


def test_a_figure_at_so_many_requests_in_flight_is_compared_with_its_like():
    found = column("energy_j_per_token@8")
    assert (found.unit, found.ratio, found.machine) == ("J/token", "energy_ratio@8", "machine")
    assert {"energy_kind@8", "energy_engine@8", "energy_concurrency@8"} < set(found.must_agree)
    assert (columns.heading("energy_j_per_token@8"), column("energy_kind@8").text) == ("J/token @8", True)
    assert column("energy_ratio@8").of == "energy_j_per_token@8"
    assert column("machine@8") is None


def test_the_energy_of_a_stage_has_its_own_kind():
    assert column("prune_energy_wh").must_agree == ("prune_energy_kind", "prune_machine")
    assert column("idle_power_w").must_agree == (
        "energy_kind",
        "energy_scope",
        "energy_engine",
        "energy_concurrency",
        "machine",
    )


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_that_a_column_names_are_declared(name):
    declared = COLUMNS[name]
    for other in (
        *declared.must_agree,
        declared.ratio,
        declared.of,
        declared.stderr,
        declared.ci95_ratio,
        declared.floor,
    ):
        assert other is None or other in COLUMNS
    if declared.of:
        assert COLUMNS[declared.of].ratio == name
        assert declared.machine is None, "the ratio frees it from the machine"
    assert not (declared.text and declared.better)


# column: a number of it, its heading, and the number as a table shows it
SHOWN = {
    "energy_ratio": (0.98765, "÷ dense", "0.988"),
    "energy_j_per_token": (0.123456, "J/token", "0.1235"),
    "held_ppl@16": (63.926, "held ppl@16", "63.93"),
    "piqa_acc": (0.5, "piqa", "0.500"),
    "parameters_removed_ratio": (0.2, "removed", "20.0%"),
    "peak_memory_bytes": (3 * 2**20, "peak MiB", "3"),
    "prune.ratio": (0.25, "prune.ratio", "0.25"),
}


@pytest.mark.parametrize("name", SHOWN)
def test_headings_and_numbers(name):
    value, heading, text = SHOWN[name]
    assert (columns.heading(name), columns.shown(name, value)) == (heading, text)


def test_phrases_and_names_of_a_pattern():
    assert columns.phrase("decode_latency_s") == "latency of one decode step"
    assert those_of("<task>_acc", ["piqa_acc", "accuracy", "x_ppl@16", 3]) == ["piqa_acc"]


def test_the_table_in_markdown():
    lines = columns.markdown().splitlines()
    assert lines[0] == "| column | unit | meaning |"
    assert len(lines) == 2 + len(COLUMNS)
    assert all(line.count("|") == 4 for line in lines)
    assert set(columns.MAIN) <= set(COLUMNS)


def test_what_a_name_fills_in_and_what_a_pattern_stands_for():
    assert columns.parts_of("arc_easy_unparsed") == {"task": "arc_easy"}
    assert columns.parts_of("held_ppl@16") == {"text": "held", "length": "16"}
    assert columns.parts_of("energy_ratio") == columns.parts_of("nothing") == {}
    present = ["piqa_acc", "accuracy", "held_ppl@16", "boolq_acc"]
    wanted = ("accuracy", "<task>_acc", "energy_ratio", "<text>_ppl@<length>")
    assert columns.expanded(wanted, present) == ["accuracy", "piqa_acc", "boolq_acc", "energy_ratio", "held_ppl@16"]
    assert columns.kinds_of(["accuracy", "energy_ratio", "piqa_wh", "energy_j_per_token", "nothing"]) == [
        "energy_kind",
        "tasks_energy_kind",
    ]
