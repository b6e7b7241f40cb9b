"""A trial's checkpoint as a folder that plain Transformers loads, or llama.cpp, with a model card that says what it is.

The folder is written beside its place and renamed when it is complete, so there is never half an export.
Only files of the model and the tokenizer go in: nothing of the store, no optimizer state.
"""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from greenprune.assets import materialize, note_on
from greenprune.columns import column, parts_of, pattern_of
from greenprune.config import QUANTIZERS, STAGES, ModelConfig
from greenprune.errors import ConfigError
from greenprune.labels import label
from greenprune.results import CHANGING, TrialResult, find_trial, locate_run, read_results
from greenprune.stages import checkpoint_in
from greenprune.store import Artifact, Store

MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "spiece.model",
    "*.tiktoken",
    "chat_template.*",
    "*.py",  # modelling code that ships with the checkpoint
    "LICENSE*",
    "NOTICE*",
)
PRUNED_CODE = "modeling_pruned.py"  # beside layers that differ in width
# Only where there are no safetensors, the first that are there
INSTEAD = (("pytorch_model*.bin", "pytorch_model.bin.index.json"), ("*.gguf",))


ExportFormat = Literal["transformers", "gguf"]


def export(
    run: str | Path, trial: str | int, out: str | Path, format: ExportFormat = "transformers", type: str | None = None
) -> Path:
    """Copy a finished trial's checkpoint to the new folder `out`, with a README.md, and give that folder.

    trial: as `find_trial` takes it. format "gguf": one file of a type of greenprune/engines/gguf_file.py (default: f16)
    in place of the checkpoint's. Raises ConfigError for an unknown, ambiguous or failed trial, an `out` that holds
    something, and a checkpoint that is gone from the store; ModelError for what GGUF can't hold.
    """
    if type is not None and format != "gguf":
        raise ConfigError(f"a type is GGUF's, got type {type} with format {format}; add --format gguf, or leave it out")
    out = Path(out).expanduser().absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"the export's folder must be new or empty, got {out}; choose another")
    storage, name = locate_run(run)
    storage.pull(f"{name}/trials")
    result = find_trial(read_results(storage.local / name), trial)
    if result.status != "ok":
        raise ConfigError(
            f"an exported trial must have finished, got {result.trial_id}, which failed: {result.error}; "
            "choose another, or mend the reason and resume the sweep"
        )
    checkpoint = _checkpoint(Store(storage), result, str(run))
    files = _model_files(checkpoint)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}")
    try:
        partial.mkdir()
        if format == "gguf":
            from greenprune.engines.gguf_file import write_gguf

            gguf = f"model-{type or 'f16'}.gguf"
            write_gguf(checkpoint, partial / gguf, type or "f16")
            card = model_card(result, gguf=gguf)
        else:
            for file in files:
                shutil.copyfile(file, partial / file.name)
            card = model_card(result, own_code=any(file.name == PRUNED_CODE for file in files))
        (partial / "README.md").write_text(card, encoding="utf-8")
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def _checkpoint(store: Store, result: TrialResult, run: str) -> Path:
    """The folder of the trial's final checkpoint: what the last stage wrote that makes a model."""
    made = [stage for stage in result.stages if STAGES[stage["stage"]].role == "model"]
    if not made:
        return materialize(ModelConfig(**result.config["model"]))
    folder = checkpoint_in(store, Artifact(made[-1]["stage"], made[-1]["key"]))
    if not folder.is_dir():
        raise ConfigError(
            f"the checkpoint of {result.trial_id} must be in the store, got no folder {folder}; "
            f"make it again: greenprune trial {run}/trials/{result.trial_id}/config.yaml"
        )
    return folder


def _model_files(checkpoint: Path) -> list[Path]:
    """The files that make up model and tokenizer. Raises ConfigError where weights or config are missing."""
    files = [path for path in sorted(checkpoint.iterdir()) if path.is_file()]
    chosen = [path for path in files if _fits(path, MODEL_FILES)]
    weights = any(path.suffix == ".safetensors" for path in chosen)
    for others in () if weights else INSTEAD:
        if found := [path for path in files if _fits(path, others)]:
            chosen, weights = chosen + found, True
            break
    if not weights or not (checkpoint / "config.json").is_file():
        there = ", ".join(path.name for path in files) or "nothing"
        raise ConfigError(
            f"a checkpoint must hold config.json and weights (*.safetensors), got {there} in {checkpoint}; "
            "run the trial again"
        )
    return chosen


def _fits(path: Path, patterns: Sequence[str]) -> bool:
    return any(fnmatch(path.name, pattern) for pattern in patterns)


# ------------------------------------------------------------------------------------------- the model card


def model_card(result: TrialResult, own_code: bool = False, gguf: str | None = None) -> str:
    """README.md of an export: front matter for the hub, and in words how the model came about.

    own_code: the checkpoint brings our modelling file, because its layers differ in width. gguf: the name of the file
    that is exported in a checkpoint's place.
    """
    from huggingface_hub import ModelCardData

    base = str(result.config["model"]["id"])
    hub = re.fullmatch(r"[\w.-]+/[\w.-]+", base) is not None and not Path(base).exists()
    data = ModelCardData(
        model_name=f"{base.rsplit('/', 1)[-1]} {label(result.to_row())}",
        base_model=base if hub else None,
        library_name="gguf" if gguf else "transformers",
        pipeline_tag="text-generation",
        tags=["greenprune", "pruned", str(result.config.get("prune", {}).get("method", "none"))],
        eval_results=_eval_results(result) or None,
        co2_eq_emissions=_healing_emissions(result),
    )
    return f"---\n{data.to_yaml()}\n---\n\n{_text(result, base, own_code, gguf)}"


def _eval_results(result: TrialResult) -> list[Any]:
    """The task scores and perplexities that were measured, for the card's front matter."""
    from huggingface_hub import EvalResult

    benchmark = result.config.get("benchmark", {})
    kept = {key: benchmark[key] for key in ("num_fewshot", "limit", "seed") if benchmark.get(key) is not None}
    entries = []
    for name, value in result.metrics.items():
        kind, parts = CARD_METRICS.get(pattern_of(name) or ""), parts_of(name)
        if value is None or kind is None:
            continue
        dataset = parts.get("task") or parts["text"]
        kind = "rouge" if f"{dataset}_rougeL" in result.metrics else kind
        entries.append(
            EvalResult("text-generation", dataset, dataset, kind, value, metric_name=name, dataset_args=kept)
        )
    return entries


CARD_METRICS = {"<task>_acc": "accuracy", "<text>_ppl@<length>": "perplexity"}  # column: the hub's name of its metric


def _healing_emissions(result: TrialResult) -> dict[str, Any] | None:
    """The hub's field for the emissions of training, in g CO2e; None where healing's weren't recorded.

    The country's carbon intensity is that of the workload: its emissions / its energy.
    """
    healing, emissions, energy = (
        result.metrics.get(name) for name in ("heal_energy_wh", "co2e_g_per_1k_requests", "energy_wh_per_1k_requests")
    )
    if not isinstance(healing, int | float) or not isinstance(emissions, int | float) or not energy:
        return None
    country = (result.config.get("benchmark", {}).get("energy") or {}).get("country")
    fields = {
        "emissions": healing * emissions / float(energy),
        "source": f"CodeCarbon; energy {result.metrics.get('energy_kind') or 'of unknown kind'}",
        "training_type": "fine-tuning",
        "geographical_location": country,
        "hardware_used": result.metrics.get("machine"),
    }
    return {key: value for key, value in fields.items() if value is not None}


def _text(result: TrialResult, base: str, own_code: bool, gguf: str | None) -> str:
    model, prune, heal = (result.config.get(section, {}) for section in ("model", "prune", "heal"))
    quantizer = QUANTIZERS[result.config.get("quantize", {}).get("method", "none")]
    lines = [f"# {base}: {label(result.to_row())}", "", _summary(result, base, prune, heal), ""]
    if note := note_on(base):
        lines += [note, ""]
    trusted = own_code or model.get("trust_remote_code")
    load = LOAD.replace("(folder", "(folder, trust_remote_code=True") if trusted else LOAD
    load = LOAD_GGUF.format(gguf) if gguf else load
    lines += ["## Load", "", f"```python\n{load}```", ""]
    if own_code:
        lines += [OWN_CODE, ""]
    if quantizer.packages:
        lines += [f"Its weights are in {quantizer.format}'s format: `{quantizer.packages[0][1]}`.", ""]
    lines += ["## Made by", ""]
    lines += [f"- {section}: {_fields(result.config.get(section, {}))}" for section in CHANGING]
    lines += [f"- calibration: {_fields(result.config.get('calibration', {}))}"]
    lines += [f"- greenprune trial `{result.trial_id}`, begun {result.started or 'at an unknown time'}", ""]
    lines += ["## Measured", "", _energy_note(result), "", "| metric | value | unit |", "|---|---|---|"]
    for metric, value in result.metrics.items():
        if value is not None and metric not in ("energy_kind", "energy_source"):
            shown = value if isinstance(value, str | int) else f"{value:.5g}"
            known = column(metric)
            lines.append(f"| {metric} | {shown} | {known.unit if known else ''} |")
    return "\n".join(lines) + "\n"


LOAD_GGUF = """\
from llama_cpp import Llama  # pip install llama-cpp-python; or: llama-server -m {0}

model = Llama("{0}")
"""
LOAD = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder
model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
"""

OWN_CODE = (
    f"The layers differ in width, which no stock configuration can say: `{PRUNED_CODE}` in this folder, which "
    "`trust_remote_code` runs, builds them. It needs nothing but torch and transformers."
)


def _summary(result: TrialResult, base: str, prune: Mapping[str, Any], heal: Mapping[str, Any]) -> str:
    if prune.get("method", "none") == "none":
        made = f"{base}, not pruned"
    else:
        made = f"{base}, pruned by `{prune['method']}`"
        removed = result.metrics.get("parameters_removed_ratio")
        if isinstance(removed, int | float):
            made += f": {removed:.1%} of its parameters are gone"
        if (layers := result.metrics.get("layers_removed")) not in (None, "[]"):
            made += f", decoder layers removed: {layers} (numbered as in the dense model)"
    if heal.get("method", "none") == "none":
        return f"{made}. It was not healed (trained back)."
    before, after = result.metrics.get("heal_loss_start"), result.metrics.get("heal_loss_end")
    losses = f", validation loss {before:.3f} to {after:.3f}" if before is not None and after is not None else ""
    return f"{made}. It was then healed by `{heal['method']}` on {heal.get('dataset', 'text')}{losses}."


def _energy_note(result: TrialResult) -> str:
    kind, source = (
        result.metrics.get("energy_kind"),
        result.metrics.get("energy_source") or "source not recorded",
    )
    if kind == "estimated":
        return f"Energies are **ESTIMATES** ({source}): no sensor was read. Not comparable with measured ones."
    if kind is None:
        return "Energy was not measured."
    return f"Energies are **{kind}** ({source})."


def _fields(section: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in section.items() if value is not None) or "none"
