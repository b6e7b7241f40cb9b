"""A run as papers print theirs: their tasks in their order, the mean, its ratio to the dense model.

    greenprune table runs/demo --style llm_pruner --format latex

A task that a style has and the run hasn't stays empty; one that the run has besides comes after the style's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from greenprune.columns import parts_of, shown, those_of
from greenprune.comparability import finished
from greenprune.errors import ConfigError, nearest
from greenprune.labels import labels
from greenprune.pareto import dense_row
from greenprune.report.published import PAPERS, SEVEN_TASKS, Published, PublishedRow
from greenprune.results import is_missing, load_trials

if TYPE_CHECKING:
    from pandas import DataFrame, Series

Format = Literal["markdown", "latex", "csv"]
NOT_THERE = "–"
ABOUT = 0.05  # how far a trial's ratio may be from a published one


@dataclass(frozen=True)
class Style:
    """tasks: in the paper's order. texts: whether perplexities stand before them. energy: whether what tasks took, and
    the ratio to dense, stand after them. source: the paper.
    """

    source: str
    tasks: tuple[str, ...]
    texts: bool = False
    energy: bool = False


STYLES: dict[str, Style] = {
    "greenpruning": Style("GreenPruning: seven tasks, mean, ratio to dense, energy", SEVEN_TASKS, energy=True),
    "llm_pruner": Style("Ma et al. 2023, arXiv:2305.11627, Table 1", SEVEN_TASKS, texts=True),
    "wanda": Style(
        "Sun et al. 2023, arXiv:2306.11695, zero-shot tables",
        ("boolq", "rte", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa"),
        texts=True,
    ),
}


def paper_table(
    run: str | Path, style: str = "greenpruning", layout: Format = "markdown", beside: str | None = None
) -> str:
    """The run's finished trials as a table of that style, the dense model first. Scores are in percent.

    beside: a paper of PAPERS, whose rows are laid under the trials, with the difference of those that have the paper's
    model and the row's configuration.
    Raises ConfigError for a style or a paper that isn't known, and for a run without finished trials that have scores.
    """
    if style not in STYLES:
        raise ConfigError(f"a style must be known, got {style!r}; {nearest(style, STYLES)}")
    if beside is not None and beside not in PAPERS:
        raise ConfigError(f"published values must be of a known paper, got {beside!r}; {nearest(beside, PAPERS)}")
    rows = finished(load_trials(run))
    if rows.empty or not those_of("<task>_acc", rows.columns):
        raise ConfigError(f"a table needs finished trials that answered tasks, got none in {run}; check the run")
    chosen = STYLES[style]
    tasks = [*chosen.tasks, *(task for task in _tasks(rows) if task not in chosen.tasks)]
    texts = those_of("<text>_ppl@<length>", rows.columns) if chosen.texts else []
    names = dict(zip(rows.index, labels(rows), strict=True))
    dense = _dense(rows)
    head = ["ratio", "method", *texts, *tasks, "mean", *(["ratio to dense", "Wh"] if chosen.energy else [])]
    lines = [_line(row, names[row.name], chosen, tasks, texts, dense) for row in _ordered(rows, dense)]
    if beside is not None:
        lines += _beside(PAPERS[beside], rows, names, tasks, len(texts), len(head))
    return WRITERS[layout](head, lines)


def _tasks(rows: DataFrame) -> list[str]:
    return [parts_of(name)["task"] for name in those_of("<task>_acc", rows.columns)]


def _dense(rows: DataFrame) -> Series | None:
    try:
        return dense_row(rows)
    except ConfigError:
        return None


def _ordered(rows: DataFrame, dense: Series | None) -> list[Series]:
    """Dense first, then by what was removed."""
    size = "parameters_removed_ratio"
    ordered = rows.sort_values(size, kind="stable") if size in rows else rows
    others = [row for _, row in ordered.iterrows() if dense is None or row.name != dense.name]
    return others if dense is None else [dense, *others]


def _line(
    row: Series, name: str, style: Style, tasks: Sequence[str], texts: Sequence[str], dense: Series | None
) -> list[str]:
    cells = [_cell("parameters_removed_ratio", row), name, *(_cell(text, row) for text in texts)]
    cells += [_percent(row.get(f"{task}_acc")) for task in tasks] + [_percent(_mean(row, style.tasks))]
    if style.energy:
        cells += [_ratio(row, dense, style.tasks), _cell("energy_wh_tasks", row)]
    return cells


def _mean(row: Series, tasks: Sequence[str]) -> float | None:
    """Over the style's tasks where the run has them all, else over those that it has."""
    scores = [row.get(f"{task}_acc") for task in tasks]
    return row.get("accuracy") if any(map(is_missing, scores)) else fmean(map(float, scores))


def _cell(name: str, row: Series) -> str:
    return NOT_THERE if is_missing(row.get(name)) else shown(name, row[name])


def _percent(value: Any) -> str:
    return NOT_THERE if is_missing(value) else f"{100 * float(value):.2f}"


def _ratio(row: Series, dense: Series | None, tasks: Sequence[str]) -> str:
    ours, theirs = (None if each is None else _mean(each, tasks) for each in (row, dense))
    if ours is None or theirs is None or is_missing(ours) or is_missing(theirs) or not theirs:
        return NOT_THERE
    return f"{ours / theirs:.1%}"


# ------------------------------------------------------------------------------------------------- beside a paper


def _beside(
    paper: Published, rows: DataFrame, names: Mapping[Any, str], tasks: Sequence[str], texts: int, width: int
) -> list[list[str]]:
    """Each published row, and under it, for every trial of its model and configuration, ours less theirs in percentage
    points.
    """
    found = []
    for published in paper.rows:
        cells = [f"{published.ratio:.0%}", f"{published.name} ({paper.model}; {paper.source})", *[NOT_THERE] * texts]
        cells += [_published(published, task) for task in tasks] + [f"{published.mean:.2f}"]
        found.append(_filled(cells, width))
        for _, row in rows.iterrows():
            if re.search(paper.ids, str(row.get("model.id")).lower()) and _is_of(row, published):
                less = [_less(row.get(f"{task}_acc"), published.scores.get(task)) for task in tasks]
                whole = not any(is_missing(row.get(f"{task}_acc")) for task in published.scores)
                mean = _less(_mean(row, list(published.scores)), published.mean) if whole else NOT_THERE
                cells = ["", f"{names[row.name]} − {published.name}", *[NOT_THERE] * texts, *less, mean]
                found.append(_filled(cells, width))
    return found


def _filled(cells: list[str], width: int) -> list[str]:
    return cells + [NOT_THERE] * (width - len(cells))


def _published(published: PublishedRow, task: str) -> str:
    return f"{published.scores[task]:.2f}" if task in published.scores else NOT_THERE


def _is_of(row: Series, published: PublishedRow) -> bool:
    size = row.get("parameters_removed_ratio")
    if not published.where:
        return row.get("prune.method") == "none" and row.get("heal.method", "none") == "none"
    alike = all(row.get(key) == value for key, value in published.where.items())
    return alike and not is_missing(size) and abs(float(size) - published.ratio) <= ABOUT


def _less(ours: Any, theirs: float | None) -> str:
    return NOT_THERE if is_missing(ours) or theirs is None else f"{100 * float(ours) - theirs:+.2f}"


# ------------------------------------------------------------------------------------------------------- as text


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---", "---", *["---:"] * (len(head) - 2)]
    every = [head, rule, *lines]
    return "".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |\n" for line in every)


def _latex(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """For the package booktabs."""
    body = [" & ".join(map(_escaped, line)) + r" \\" for line in (head, *lines)]
    return "\n".join(
        [rf"\begin{{tabular}}{{ll{'r' * (len(head) - 2)}}}", r"\toprule", body[0], r"\midrule", *body[1:],
         r"\bottomrule", r"\end{tabular}", ""]
    )  # fmt: skip


SPECIAL = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "–": "--", "−": "$-$", "¹": "$^1$", "²": "$^2$", "÷": r"$\div$",
}  # fmt: skip


def _escaped(text: str) -> str:
    return "".join(SPECIAL.get(character, character) for character in text)


def _csv(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    import csv
    import io

    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([head, *lines])
    return out.getvalue()


WRITERS = {"markdown": _markdown, "latex": _latex, "csv": _csv}
