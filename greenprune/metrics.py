"""From a trial's artifacts to its row: every number under the name of its column (columns.py)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from greenprune.columns import COLUMNS, CONTAMINATED, Column, pattern_of
from greenprune.config import ENGINES, FIRST_ENGINE, STAGES, EnergyConfig, TrialConfig
from greenprune.energy.costs import break_even_requests
from greenprune.energy.machine import machine_class_of
from greenprune.energy.units import JOULES_PER_WH
from greenprune.store import Artifact, Store


def metrics_of(
    store: Store,
    done: Sequence[Artifact],
    accuracy: Artifact,
    energy: Artifact | None,
    dense_energy: Artifact | None,
    config: TrialConfig,
) -> dict[str, Any]:
    """All numbers of a trial by their columns; what wasn't measured is absent.

    done: every artifact of the trial; dense_energy: the dense model's, measured on the same machine; config: the
    trial's, in whose country's electricity the tasks' joules are told as CO2e too.
    """
    made = {artifact.stage: artifact for artifact in done if STAGES[artifact.stage].role != "benchmark"}
    scores, workload = _read(store, accuracy, "accuracy.json"), _read(store, energy, "energy.json")
    metrics: dict[str, Any] = {name: scores[name] for name in ("parameters", "checkpoint_bytes", "layers")}
    metrics["bits_per_weight"] = 8 * scores["checkpoint_bytes"] / scores["parameters"]
    metrics |= _of_pruning(_read(store, made.get("prune"), "report.json"), scores["parameters"])
    metrics |= _of_healing(_read(store, made.get("heal"), "history.json"))
    metrics["quantization"] = config.quantize.stored_as
    metrics |= _of_work(scores.get("work"), config.benchmark.energy)
    metrics |= _of_tasks(scores, with_energy=not workload or machine_class_of(scores) == machine_class_of(workload))
    asked = config.benchmark.energy
    metrics |= _emissions_of_tasks(metrics, scores["tasks"], asked.country if asked else None)
    if asked and workload and "energy_engine" not in workload:  # an artifact of before 2026-11-28
        engine = f"{FIRST_ENGINE} {ENGINES[FIRST_ENGINE].version()}"
        metrics |= {"energy_engine": engine, "energy_concurrency": asked.batch_size}
    metrics |= _of_workload(workload, _read(store, dense_energy, "energy.json"))
    metrics["machine_class"] = machine_class_of(workload)
    metrics |= _of_making(list(made.values()), metrics)
    metrics |= _of_memory([*made.values(), accuracy, *([energy] if energy else [])])
    return {name: value for name, value in metrics.items() if value is not None}


def _read(store: Store, artifact: Artifact | None, name: str) -> dict[str, Any]:
    """A file of an artifact, without its others; empty where there is no artifact."""
    return json.loads(store.part(artifact, name).read_text()) if artifact else {}


def _of_workload(workload: Mapping[str, Any], dense: Mapping[str, Any]) -> dict[str, Any]:
    """The workload's figures, with their ratios to the dense model's; those of each number of requests in flight too.

    Ratios of pairs stand among the figures and come before those of two artifacts.
    """
    metrics = _ratios(workload, dense)
    metrics |= {name: value for name, value in workload.items() if not isinstance(value, dict | list)}
    for number, figures in workload.get("at", {}).items():
        found = _ratios(figures, dense.get("at", {}).get(number, {})) | figures
        metrics |= {f"{name}@{number}": value for name, value in found.items()}
    return metrics


def _ratios(workload: Mapping[str, Any], dense: Mapping[str, Any]) -> dict[str, float]:
    """Energies over the dense model's on the same machine; none where that was disturbed, or metered otherwise.

    A trial that was itself disturbed keeps its ratio, whose kind says so.
    """
    return {
        name: workload[entry.of] / dense[entry.of]
        for name, entry in COLUMNS.items()
        if entry.of and workload.get(entry.of) and dense.get(entry.of) and _metered_alike(entry, workload, dense)
    }


def _metered_alike(entry: Column, workload: Mapping[str, Any], dense: Mapping[str, Any]) -> bool:
    kind, of_dense = (found.get(entry.kind or "") for found in (workload, dense))
    if of_dense == CONTAMINATED:
        return False
    same_scope = not entry.scope or workload.get(entry.scope) == dense.get(entry.scope)
    return kind == CONTAMINATED or (kind == of_dense and same_scope)


def _of_making(made: Sequence[Artifact], metrics: Mapping[str, Any]) -> dict[str, float | str | None]:
    """Energy of making the model, and the requests that save it again; only where all of it was metered alike."""
    found: dict[str, float | str | None] = {}
    spent: list[float] = []
    for artifact in made:
        if artifact.energy_j is not None:
            spent.append(artifact.energy_j / JOULES_PER_WH)
            found[f"{artifact.stage}_energy_wh"] = spent[-1]
            found[f"{artifact.stage}_energy_kind"] = artifact.energy_kind
            found[f"{artifact.stage}_machine"] = artifact.machine
    alike = {artifact.energy_kind for artifact in made} == {metrics.get("energy_kind")} != {CONTAMINATED}
    if spent and len(spent) == len(made) and alike:
        a_request, ratio = metrics.get("energy_wh_per_1k_requests"), metrics.get("energy_ratio")
        found["break_even_requests"] = break_even_requests(sum(spent), a_request, ratio)
    return found


def _of_memory(done: Sequence[Artifact]) -> dict[str, int | None]:
    """What each stage took of memory, and what was predicted."""
    taken = {f"{artifact.stage}_peak_memory_bytes": artifact.peak_memory_bytes for artifact in done}
    return taken | {f"{artifact.stage}_predicted_memory_bytes": artifact.predicted_memory_bytes for artifact in done}


def _of_pruning(report: Mapping[str, Any], parameters: int) -> dict[str, Any]:
    if not report:
        return {"parameters_dense": parameters, "parameters_removed_ratio": 0.0, "layers_removed": "[]"}
    return {
        "parameters_dense": report["parameters_before"],
        "parameters_removed_ratio": 1 - parameters / report["parameters_before"],
        "ratio_reached": report["ratio_reached"],
        "layers_removed": json.dumps(report["layers_removed"]),
        "sparsity": report["sparsity"],
        "checkpoint_needs": report["needs"],
    }


def _of_healing(history: Mapping[str, Any]) -> dict[str, Any]:
    """Losses, and what artifacts of before 2026-11-28 lack: the divergence from the dense model, where it was kept."""
    if not history:
        return {}
    first, last = history["validation"][0], history["validation"][-1]
    divergences = {"heal_kl_start": first.get("kl"), "heal_kl_end": last.get("kl")}
    return {f"heal_{name}": history[name] for name in ("train_loss", "loss_start", "loss_end", "tokens")} | divergences


def _of_work(work: Mapping[str, Any] | None, config: EnergyConfig | None) -> dict[str, float]:
    """Multiply-accumulates a token of the workload, as papers on pruning count them: those of linear layers, the head's
    at every position, and of queries with keys and of attention with values, where a prompt's tokens look at all of it.

    Checked against LLM-Pruner's table (Ma et al. 2023, arXiv:2305.11627). Artifacts of before 2026-11-28 say nothing of
    the work.
    """
    if not work or not config:
        return {}
    requests, a_position = config.lengths, 2 * sum(work["attention_widths"])
    prompts, replies = sum(each.prompt for each in requests), sum(each.decode for each in requests)
    prefill = sum(each.prompt * each.prompt for each in requests) * a_position + prompts * work["linear_macs"]
    looked_at = sum(each.decode * (each.prompt + (1 + each.decode) / 2) for each in requests)
    decode = looked_at * a_position + replies * work["linear_macs"]
    return {
        "macs_per_token": (prefill + decode) / (prompts + replies),
        "prefill_macs_per_token": prefill / prompts,
        "decode_macs_per_token": decode / replies,
    }


def _of_tasks(scores: Mapping[str, Any], with_energy: bool) -> dict[str, Any]:
    """Scores, and, where they were read on the workload's machine (`with_energy`), the tasks' joules."""
    metrics: dict[str, Any] = {"accuracy": scores["accuracy"], **scores["perplexity"]}
    if infinite := [name for name, value in scores["perplexity"].items() if not math.isfinite(value)]:
        metrics["perplexity_note"] = f"{', '.join(infinite)}: logits that aren't finite"
    for task, result in scores["tasks"].items():
        joules = result["joules"] if with_energy else None
        named = {f"{task}_{name}": value for name, value in result["metrics"].items()}
        metrics |= {name: value for name, value in named.items() if pattern_of(name) == "<task>_rouge<n>"}
        metrics |= {
            f"{task}_acc": result["value"],
            f"{task}_stderr": result["stderr"],
            f"{task}_floor": result["floor"],
            f"{task}_unparsed": result["unparsed"],
            f"{task}_seconds": result["seconds"],
            f"{task}_wh": None if joules is None else joules / JOULES_PER_WH,
        }
    if scores["tasks"]:
        metrics["tasks_machine"] = scores.get("machine")
    if with_energy:
        metrics |= {
            "energy_wh_tasks": scores["energy_wh_tasks"],
            "tasks_energy_kind": scores.get("energy_kind") if scores["tasks"] else None,
            "tasks_energy_scope": "; ".join(dict.fromkeys(r["scope"] for r in scores.get("readings", ()))) or None,
        }
    return metrics


def _emissions_of_tasks(
    metrics: Mapping[str, Any], tasks: Iterable[str], country: str | None
) -> dict[str, float | None]:
    """Grams of CO2e of the tasks' joules in `country`, and None where these weren't measured; none without a country.

    Worked out here and not by the stage: the joules are the same anywhere, so another country must not run the tasks
    again.
    """
    if country is None:
        return {}
    from greenprune.energy.carbon import grams_per_kwh

    watt_hours = {"co2e_g_tasks": metrics.get("energy_wh_tasks")}
    watt_hours |= {f"{task}_co2e_g": metrics.get(f"{task}_wh") for task in tasks}
    return {
        name: None if energy is None else energy / 1000 * grams_per_kwh(country) for name, energy in watt_hours.items()
    }
