"""The contract that every method keeps on every architecture; each outcome is a cell of the README's table.

Each is pruned twice, in memory and streamed from its files, and is the same bit for bit; a method that trains the whole
model refuses the second.

python tests/prune/test_contract.py       # prints that table, as it is now
"""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from architectures import ARCHITECTURES, TOKENS, assert_generates, assert_reloads, logits_of, random_model
from paths import ROOT

from greenprune import PruneConfig, prune
from greenprune.config import METHODS, DepthPruning, MaskPruning, TrialConfig
from greenprune.config.serving import KINDS, cannot_serve, layers_after
from greenprune.errors import GreenpruneError, ModelError
from greenprune.models import Decoder, load, load_streamed
from greenprune.models.in_files import MARK
from greenprune.prune import parameter_count, windows

README = ROOT / "README.md"
DEPTH = {"block_size": 2, "skip_first": 1, "skip_last": 1}
WIDTH = {"ratio": 0.25, "skip_first": 1, "skip_last": 1}
ROWS: dict[str, dict] = {
    "angular": DEPTH,
    "bi": DEPTH,
    "taylor_depth": DEPTH,
    "ppl_depth": DEPTH,
    "sleb": DEPTH,
    "minitron_depth": DEPTH,
    "bi, linear patch": {"block_size": 2, "patch": "linear"},
    "llm_pruner": WIDTH,
    "llm_pruner, global": WIDTH | {"scope": "global"},
    "llm_pruner, kv_group": WIDTH | {"ratio": 0.5, "heads": "kv_group"},
    "llm_pruner, uniform": {"ratio": 0.25, "uniform": True},
    "llm_pruner, uniform, least_squares": {"ratio": 0.25, "uniform": True, "reconstruct": "least_squares"},
    "flap": WIDTH,
    "flap, uniform": {"ratio": 0.25, "uniform": True},
    "flap, uniform, no bias": {"ratio": 0.25, "uniform": True, "bias": False},
    "wanda_sp": WIDTH,
    "wanda_sp, uniform": {"ratio": 0.25, "uniform": True},
    "wanda_sp, windows": WIDTH | {"reconstruct": "windows"},
    "minitron_width": WIDTH,
    "minitron_width, hidden": {"targets": {"hidden": 24, "ffn": 40}},
    "two_stage": WIDTH,
    "two_stage, more attention": WIDTH | {"alpha": 6},
    "sheared": {"targets": {"layers": 5, "heads": 2, "ffn": 40}, "steps": 3},
    "sheared, hidden": {"targets": {"hidden": 24, "ffn": 40}, "steps": 3},
    "magnitude": {"ratio": 0.5},
    "wanda": {"ratio": 0.5},
    "wanda, 2:4": {"structure": "2:4"},
    "sparsegpt": {"ratio": 0.5},
    "sparsegpt, 2:4": {"structure": "2:4"},
    "sequence": {"steps": [{"method": "bi", "block_size": 1}, {"method": "flap", "ratio": 0.25}]},
}
RATIO_TOLERANCE = 0.05  # of whole heads, and of widths in multiples of eight, in a layer of 4 heads and 48 channels
STOCK, OWN = "✓", "✓ own code"


@pytest.fixture(autouse=True)
def short_windows(monkeypatch):
    monkeypatch.setattr(windows, "WINDOW_STEPS", 4)


def config_of(row: str) -> PruneConfig:
    return PruneConfig(method=row.partition(",")[0], **ROWS[row])


def outcome(row: str, name: str) -> str:
    """The table's cell: loads with plain Transformers, or with the checkpoint's own code, or why it is refused."""
    try:
        report = prune(random_model(name), config_of(row), calibration=TOKENS)
    except GreenpruneError as refusal:
        return f"– {str(refusal).partition(';')[0]}"
    return OWN if report.needs == "trust_remote_code" else STOCK


def table() -> dict[tuple[str, str], str]:
    """The README's cells; refusals are footnotes below the table."""
    text = README.read_text().partition("## What works where")[2].partition("\n## ")[0]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    notes = dict(line.split(" ", 1) for line in text.splitlines() if line.startswith("["))
    header, _, *rows = lines
    cells = {(row[0], name): cell for row in rows for name, cell in zip(header[1:], row[1:], strict=True)}
    return {key: f"– {notes[cell.removeprefix('– ')]}" if cell.startswith("–") else cell for key, cell in cells.items()}


def markdown() -> str:
    notes: dict[str, str] = {}
    lines = ["| method | " + " | ".join(ARCHITECTURES) + " |", "|---" * (len(ARCHITECTURES) + 1) + "|"]
    for row in ROWS:
        cells = [outcome(row, name) for name in ARCHITECTURES]
        for cell in cells:
            if cell.startswith("–"):
                notes.setdefault(cell.removeprefix("– "), f"[{len(notes) + 1}]")
        shown = [f"– {notes[cell.removeprefix('– ')]}" if cell.startswith("–") else cell for cell in cells]
        lines.append(f"| {row} | " + " | ".join(shown) + " |")
    return "\n".join([*lines, "", *(f"{mark} {reason}" for reason, mark in notes.items())])


SERVED = {"transformers": "✓ own code", "vllm": "✓ plugin", "llama_cpp": "✓ deci"}  # where layers differ


def served(row: str, engine: str, name: str = "llama") -> str:
    """A cell of the table of engines: what tests/engines/ see them run on the real model, or that it is refused."""
    trial = TrialConfig(model={"id": "pypi:smollm2-135m"}, prune=config_of(row))
    if cannot_serve(engine, trial, {"model_type": name}):
        return "–"
    return SERVED[engine] if layers_after(trial.prune) in KINDS[2:] else STOCK


def served_markdown() -> str:
    """Methods of the same cells stand in one line."""
    lines: dict[tuple[str, ...], list[str]] = {}
    for row in ROWS:
        lines.setdefault(tuple(served(row, engine) for engine in SERVED), []).append(row.replace(", ", " "))
    table = ["| method, Llama | Transformers | vLLM | llama.cpp |", "|---|---|---|---|"]
    return "\n".join(table + [f"| {'; '.join(rows)} | {' | '.join(cells)} |" for cells, rows in lines.items()])


def test_the_table_of_engines_is_that_of_the_rules():
    assert served_markdown() in README.read_text()


@pytest.mark.parametrize("row", ROWS)
def test_what_layers_are_after_pruning_is_known_before(row, cells):
    """On a Llama, whose configuration holds biases of outputs."""
    assert (served(row, "transformers") == SERVED["transformers"]) == (cells[row, "llama"] == OWN)


@pytest.fixture(scope="module")
def cells():
    return table()


def test_the_table_has_every_method_and_no_empty_cell(cells):
    assert {row.partition(",")[0] for row in ROWS} == METHODS.keys() - {"none"}
    assert list(cells) == [(row, name) for row in ROWS for name in ARCHITECTURES]
    assert all(cells.values())


def assert_ratio(report, config, model, before):
    assert report.parameters_before == before
    assert report.parameters_after == parameter_count(model)
    assert report.bytes_after == model.dtype.itemsize * report.parameters_after
    if isinstance(config, DepthPruning):
        assert report.ratio_reached == pytest.approx(config.block_size / 6)
    elif isinstance(config, MaskPruning):
        assert report.ratio_reached == pytest.approx(config.ratio, abs=0.01)
        assert report.parameters_after == before
    elif getattr(config, "ratio", None):
        assert report.ratio_reached == pytest.approx(config.ratio, abs=RATIO_TOLERANCE)


def assert_skipped_layers_are_the_same(config, model, untouched):
    for layer in range(config.skip_first or 0):
        assert_equal_states(Decoder(model).layers[layer], Decoder(untouched).layers[layer])
    for layer in range(config.skip_last or 0):
        assert_equal_states(Decoder(model).layers[-1 - layer], Decoder(untouched).layers[-1 - layer])


def assert_is_in_files(model):
    """A streamed model holds no matrix in memory when it has been pruned."""
    for parameter in (each for layer in Decoder(model).layers for each in layer.parameters() if each.dim() > 1):
        assert getattr(parameter, MARK).holds(parameter)


def assert_equal_states(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.fixture
def streamed(monkeypatch, tmp_path):
    """Models stay in their files however small they are (models/in_files.py)."""
    monkeypatch.setattr(load, "IN_FILES_FROM", 0)
    monkeypatch.setenv("GREENPRUNE_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("row", ROWS)
def test_contract(row, name, cells, tmp_path, streamed):
    config, model = config_of(row), random_model(name)
    untouched, before = copy.deepcopy(model), parameter_count(model)
    cell = cells[row, name]
    if cell.startswith("–"):
        with pytest.raises(GreenpruneError, match=r"must|can") as refusal:
            prune(model, config, calibration=TOKENS)
        assert str(refusal.value).partition(";")[0] == cell.removeprefix("– ")
        assert_equal_states(model, untouched)
        return
    report = prune(model, config, calibration=TOKENS)
    assert cell == (OWN if report.needs == "trust_remote_code" else STOCK)
    assert_ratio(report, config, model, before)
    if hasattr(config, "skip_first"):
        assert_skipped_layers_are_the_same(config, model, untouched)

    random_model(name).save_pretrained(tmp_path / "dense")
    again = load_streamed(tmp_path / "dense")
    if config.entry.trains:
        with pytest.raises(ModelError, match="must be in memory"):
            prune(again, config, calibration=TOKENS)
    else:
        assert prune(again, config, calibration=TOKENS) == report
        assert_equal_states(again, model)
        assert_is_in_files(again)

    assert logits_of(model).isfinite().all()
    assert_generates(model)
    assert_reloads(model, tmp_path / "pruned", report.needs)


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "phi3", "opt"])
@pytest.mark.parametrize("row", ROWS)
def test_contract_in_bf16(row, name, cells, tmp_path):
    if cells[row, name].startswith("–"):
        return
    config, model = config_of(row), random_model(name, torch.bfloat16)
    before = parameter_count(model)
    report = prune(model, config, calibration=TOKENS)
    assert_ratio(report, config, model, before)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert logits_of(model).isfinite().all()
    assert_reloads(model, tmp_path, report.needs)


if __name__ == "__main__":
    windows.WINDOW_STEPS = 4
    sys.stdout.write(f"{markdown()}\n\n{served_markdown()}\n")
