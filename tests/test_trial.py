"""A trial's stages: run in order, found again, and told apart by what they depend on."""

from __future__ import annotations

import copy
import csv
import shutil
import subprocess
import sys

import pytest
import yaml
from transformers import AutoModelForCausalLM

from greenprune.bos import with_bos
from greenprune.columns import column
from greenprune.energy.carbon import grams_per_kwh
from greenprune.errors import AssetError, GreenpruneError
from greenprune.experiment import parse_experiment
from greenprune.metrics import _emissions_of_tasks, _of_tasks
from greenprune.results import load_trials, read_results
from greenprune.storage import Storage
from greenprune.storage.manifest import read_manifest
from greenprune.store import Store
from greenprune.trial import run_trial, write_trial


@pytest.fixture
def trial(tiny_experiment):
    return parse_experiment(tiny_experiment).trial()


def computed(root) -> list[str]:
    return [event["stage"] for event in Store(root).events() if event["event"] == "computed"]


def test_stages_in_order_then_all_reused(trial, tmp_path):
    first = run_trial(trial, tmp_path / "runs")
    assert computed(tmp_path / "runs") == ["collect", "prune", "heal", "accuracy", "energy", "energy"]
    second = run_trial(trial, tmp_path / "runs")
    assert len(computed(tmp_path / "runs")) == 6
    assert all(stage["reused"] for stage in second.stages)
    assert second.metrics == first.metrics


def test_metrics_are_those_of_the_table(trial, tmp_path):
    metrics = run_trial(trial, tmp_path / "runs").metrics
    assert (metrics["layers"], metrics["layers_removed"].count(",")) == (3, 0)
    assert metrics["parameters"] < metrics["parameters_dense"]
    assert metrics["parameters_removed_ratio"] == pytest.approx(1 - metrics["parameters"] / metrics["parameters_dense"])
    assert metrics["ratio_reached"] == pytest.approx(1 / 4)
    assert metrics["held_ppl@16"] > 1
    assert metrics["energy_j_per_token"] > 0
    assert metrics["energy_kind"] in ("measured", "estimated")
    assert metrics["energy_ratio"] > 0
    assert metrics["heal_loss_start"] > 0
    assert "accuracy" not in metrics  # no tasks: not measured, and never 0


def test_metrics_of_generated_answers():
    scored = {"value": 0.2, "stderr": 0.01, "floor": None, "unparsed": 0.5, "seconds": 3.0, "joules": 7200.0}
    scored["metrics"] = {"rouge1": 0.3, "rouge1_stderr": 0.02, "rougeL": 0.2}
    scores = {"accuracy": 0.2, "perplexity": {}, "tasks": {"xsum": scored}, "energy_wh_tasks": 2.0}
    found = _of_tasks(scores, with_energy=True)
    assert (found["xsum_acc"], found["xsum_unparsed"], found["xsum_wh"]) == (0.2, 0.5, 2.0)
    assert (found["xsum_rouge1"], found["xsum_rougeL"]) == (0.3, 0.2)
    assert all(column(name) for name in found)
    assert "xsum_rouge1_stderr" not in found


def test_tasks_carry_co2e_where_a_country_is_given():
    metrics = {"energy_wh_tasks": 4.0, "piqa_wh": 2.0}
    assert _emissions_of_tasks(metrics, ["piqa", "boolq"], None) == {}
    found = _emissions_of_tasks(metrics, ["piqa", "boolq"], "FRA")
    assert found["piqa_co2e_g"] == pytest.approx(2.0 * grams_per_kwh("FRA") / 1000)
    assert found["co2e_g_tasks"] == pytest.approx(2 * found["piqa_co2e_g"])
    assert found["boolq_co2e_g"] is None, "its joules weren't measured"
    assert column("piqa_co2e_g").kind == "tasks_energy_kind"


def test_a_country_gives_the_tasks_co2e_without_running_them_again(tiny_experiment, tmp_path):
    """The joules are the same anywhere, so the country is no part of what accuracy.json depends on."""
    tiny_experiment["benchmark"] |= {"tasks": ["openbookqa"], "data": "assets", "limit": 2, "max_length": 128}
    abroad = copy.deepcopy(tiny_experiment)
    abroad["benchmark"]["energy"]["country"] = "FRA"
    plain, with_country = (
        run_trial(parse_experiment(each).trial().dense(), tmp_path / "runs") for each in (tiny_experiment, abroad)
    )
    assert "co2e_g_tasks" not in plain.metrics
    assert with_country.stages[0]["reused"]
    grams = with_country.metrics["energy_wh_tasks"] * grams_per_kwh("FRA") / 1000
    assert with_country.metrics["co2e_g_tasks"] == pytest.approx(grams) == with_country.metrics["openbookqa_co2e_g"]
    folder = write_trial(tmp_path / "runs" / "x", with_country, Storage(tmp_path / "runs"))
    with (folder / "emissions.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert {row["task_name"] for row in rows} >= {"openbookqa", "decode 1"}
    assert all(row["country_iso_code"] == "FRA" and float(row["emissions"]) > 0 for row in rows)


def test_every_stage_says_what_it_took(trial, tmp_path):
    first = run_trial(trial, tmp_path / "runs")
    assert all(stage["energy_j"] > 0 for stage in first.stages)
    assert first.metrics["collect_energy_wh"] > 0
    assert first.metrics["heal_energy_wh"] == pytest.approx(first.stages[2]["energy_j"] / 3600)
    spent = sum(first.metrics[f"{stage}_energy_wh"] for stage in ("collect", "prune", "heal"))
    saved = first.metrics["energy_wh_per_1k_requests"] * (1 / first.metrics["energy_ratio"] - 1)
    if saved > 0:
        assert first.metrics["break_even_requests"] == pytest.approx(1000 * spent / saved)
    else:
        assert "break_even_requests" not in first.metrics
    again = run_trial(trial, tmp_path / "runs")
    assert [stage["energy_j"] for stage in again.stages] == [stage["energy_j"] for stage in first.stages]


def test_a_resumed_healing_was_metered_in_part_only(trial, tmp_path):
    result = run_trial(trial, tmp_path / "runs")
    key = result.stages[2]["key"]
    folder = tmp_path / "runs" / "_stages" / "heal" / key
    shutil.rmtree(folder)
    (folder.with_suffix(".partial") / "work").mkdir(parents=True)
    metrics = run_trial(trial, tmp_path / "runs").metrics
    assert "heal_energy_wh" not in metrics
    assert "break_even_requests" not in metrics


def test_same_numbers_in_another_storage(trial, tmp_path):
    one, two = (run_trial(trial, tmp_path / name).metrics for name in ("one", "two"))
    assert one["held_ppl@16"] == two["held_ppl@16"]
    assert one["heal_loss_end"] == two["heal_loss_end"]


def test_variants_share_what_they_can(tiny_experiment, tmp_path):
    experiment = parse_experiment(tiny_experiment)
    for point in ({"heal.method": "none"}, {"heal.steps": 1}, {"prune.method": "bi", "heal.method": "none"}):
        run_trial(experiment.trial(point), tmp_path / "runs")
    stages = computed(tmp_path / "runs")
    assert stages.count("collect") == 1  # angular and bi share one calibration pass
    assert stages.count("prune") == 2  # one pruned model serves both its healing variants


def test_one_teacher_serves_every_healing(tiny_experiment, tmp_path):
    """Two prunings, two losses, two learning rates: the dense model is asked once."""
    tiny_experiment["heal"] |= {"loss": "kd", "teacher": {"top_k": 4}}
    tiny_experiment["benchmark"] |= {"energy": None}
    experiment = parse_experiment(tiny_experiment | {"sweep": None})
    points = (
        {},
        {"prune.block_size": 2},
        {"prune.block_size": 2, "heal.loss": {"ce": 0.3, "kd": 0.7}},
        {"heal.learning_rate": 1e-3},
    )
    results = [run_trial(experiment.trial(point), tmp_path / "runs") for point in points]
    assert computed(tmp_path / "runs").count("heal") == 4
    assert computed(tmp_path / "runs").count("teach") == 1
    made = next(stage for stage in results[0].stages if stage["stage"] == "teach")
    manifest = read_manifest(tmp_path / "runs" / "_stages" / "teach" / made["key"])
    assert manifest["bytes_per_token"] == pytest.approx(4 * 4 * 15 / 16)
    assert manifest["tokens"] == (2 + 2) * 16
    assert results[0].metrics["heal_kl_start"] > 0
    assert results[0].metrics["heal_tokens"] == 32
    assert results[0].metrics["teach_energy_wh"] > 0


def test_load_trials_gives_the_curve_of_healing(tiny_experiment, tmp_path):
    tiny_experiment["heal"] |= {"track_kl": True, "eval_every": 1, "teacher": {"top_k": 4}}
    tiny_experiment["benchmark"] |= {"energy": None}
    trial = parse_experiment(tiny_experiment | {"sweep": None}).trial()
    storage, results = Storage(tmp_path / "runs"), []
    for number, config in enumerate((trial.dense(), trial)):
        results.append(run_trial(config, tmp_path / "runs", number=number))
        write_trial(tmp_path / "runs" / "x", results[-1], storage)
    row = load_trials(tmp_path / "runs" / "x").iloc[1]
    curve = load_trials(tmp_path / "runs" / "x", curves=True)
    assert set(curve["trial_number"]) == {1}, "the dense model isn't healed"
    validation = curve[curve["split"] == "validation"]
    assert list(zip(validation["step"], validation["tokens"], strict=True)) == [(0, 0), (1, 16), (2, 32)]
    assert validation["loss"].iloc[-1] == row["heal_loss_end"]
    assert validation["kl"].iloc[0] == row["heal_kl_start"] > 0


def test_dense_trial_prunes_and_heals_nothing(trial, tmp_path):
    result = run_trial(trial.dense(), tmp_path / "runs")
    assert computed(tmp_path / "runs") == ["accuracy", "energy"]
    assert result.metrics["energy_ratio"] == 1.0
    assert result.metrics["layers_removed"] == "[]"


def test_energy_of_another_machine_is_not_reused(trial, tmp_path, monkeypatch):
    import greenprune.energy

    dense = trial.dense()
    run_trial(dense, tmp_path / "runs")
    facts = greenprune.energy.machine_identity()[1]
    monkeypatch.setattr(greenprune.energy, "machine_identity", lambda: ("another", facts))
    result = run_trial(dense, tmp_path / "runs")
    assert computed(tmp_path / "runs") == ["accuracy", "energy", "energy"]
    assert result.metrics["machine"] == "another"


def test_a_trial_folder_reproduces_its_row(trial, tmp_path):
    result = run_trial(trial, tmp_path / "runs")
    folder = write_trial(tmp_path / "runs" / "x", result, Storage(tmp_path / "runs"))
    again = parse_experiment(yaml.safe_load((folder / "config.yaml").read_text())).trial()
    assert again == with_bos(trial)
    assert read_results(tmp_path / "runs" / "x")[0].metrics == result.metrics
    with (folder / "emissions.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 4  # two windows of each phase; no tasks
    assert all(float(row["energy_consumed"]) > 0 for row in rows)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("benchmark.energy.country=ZZZ", "country must be .* got 'ZZZ'"),
        ("benchmark={tasks: [pika], data: assets}", "a task must be one of .* got 'pika'"),
    ],
)
def test_unknown_country_and_task_are_refused_before_any_stage(tiny_experiment, tmp_path, override, message):
    del tiny_experiment["sweep"]
    with pytest.raises(GreenpruneError, match=message):
        run_trial(parse_experiment(tiny_experiment, [override]), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_failed_stage_keeps_the_finished_ones(tiny_experiment, tmp_path):
    broken = copy.deepcopy(tiny_experiment)
    broken["heal"]["dataset"] = str(tmp_path / "missing.jsonl")
    with pytest.raises(AssetError, match="must exist"):
        run_trial(parse_experiment(broken).trial(), tmp_path / "runs")
    assert computed(tmp_path / "runs") == ["collect", "prune"]
    run_trial(parse_experiment(tiny_experiment).trial(), tmp_path / "runs")
    assert computed(tmp_path / "runs").count("collect") == 1


def test_healed_checkpoint_is_an_ordinary_one(trial, tmp_path):
    result = run_trial(trial, tmp_path / "runs")
    heal = next(stage for stage in result.stages if stage["stage"] == "heal")
    folder = tmp_path / "runs" / "_stages" / "heal" / heal["key"] / "checkpoint"
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.num_hidden_layers == 3
    assert not any("lora" in name for name, _ in model.named_parameters())


def test_runs_without_ray(tiny_experiment_file, tmp_path):
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "from greenprune.experiment import load_experiment\nfrom greenprune.trial import run_trial\n"
        f"print(run_trial(load_experiment({str(tiny_experiment_file)!r}).trial(), {str(tmp_path / 'runs')!r}).status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split()[-1:] == ["ok"], done.stderr
