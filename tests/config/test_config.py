"""Everything that can be known wrong is refused before a model is loaded, with key, rule, got and remedy."""

from __future__ import annotations

import copy
import json
import re
import shlex

import pytest
import yaml
from paths import ROOT

from greenprune.config import (
    BenchmarkConfig,
    LoraHealing,
    PruneConfig,
    Shape,
    TrialConfig,
    apply_overrides,
    flat,
    most_points,
    perplexity_name,
    points,
    split_text,
)
from greenprune.errors import ConfigError, GreenpruneError
from greenprune.experiment import json_schema, load_experiment, parse_experiment

EXPERIMENTS = ROOT / "experiments"
LARGE = [path for path in sorted(EXPERIMENTS.glob("*.yaml")) if "pypi:smollm2-135m" not in path.read_text()]
BASE = {
    "name": "base",
    "model": {"id": "pypi:smollm2-135m"},
    "prune": {"method": "angular", "block_size": 4},
    "heal": {"method": "lora", "rank": 8},
    "benchmark": {"tasks": ["piqa"], "perplexity": ["pypi:wikipedia@512"]},
    "sweep": {
        "space": {
            "prune.method": {"choice": ["angular", "bi"]},
            "prune.block_size": {"int": [1, 10], "when": {"prune.method": ["angular"]}},
        },
    },
}

# override, what the message must name: key, rule or got, remedy
BAD = {
    "unknown section": ("benchmrk.tasks=[piqa]", ["benchmrk", "did you mean 'benchmark'"]),
    "unknown key": ("prune.blocksize=3", ["prune.blocksize", "did you mean 'block_size'"]),
    "unknown nested key": ("benchmark.energy.reapeats=3", ["benchmark.energy.reapeats", "did you mean 'repeats'"]),
    "unknown method": ("prune.method=angulr", ["prune.method", "'angulr'", "did you mean 'angular'"]),
    "unknown healing": ("heal.method=lorra", ["heal.method", "'lorra'", "did you mean 'lora'"]),
    "wrong type": ("prune.block_size=four", ["prune.block_size", "integer", "'four'"]),
    "a bool is no number": ("prune.block_size=true", ["prune.block_size", "integer", "True"]),
    "too small": ("prune.block_size=0", ["prune.block_size", "greater than or equal to 1", "got 0"]),
    "out of range": ("heal.dropout=1.5", ["heal.dropout", "less than 1", "got 1.5"]),
    "not finite": ("heal.learning_rate=.nan", ["heal.learning_rate", "got nan"]),
    "bad choice": ("heal.quantize=nf8", ["heal.quantize", "'nf8'", "did you mean 'nf4'"]),
    "warm-up beyond the end": ("heal.steps=10", ["warmup_steps", "must not exceed steps (10)", "lower"]),
    "unknown loss": ("heal.loss=kl", ["heal.loss must be ce, kd, hidden, or weights", "'kl'", "use one of them"]),
    "loss without weight": ("heal.loss={kd: 0}", ["heal.loss must be", "{'kd': 0}"]),
    "negative weight": ("heal.loss={ce: -1, kd: 1}", ["heal.loss must be", "-1"]),
    "tokens and steps": ("heal={method: lora, tokens: 40960, steps: 7}", ["tokens 40960 and steps 7", "remove one"]),
    "too few tokens": ("heal.tokens=100", ["one step of 16384", "got 100", "raise heal.tokens"]),
    "bad step": (
        "prune={method: sequence, steps: [{method: bi, blocksize: 3}]}",
        ["prune.steps.0.blocksize", "did you mean 'block_size'"],
    ),
    "whole model removed": ("prune.block_size=30", ["prune.block_size", "at most 29", "30 layers", "lower"]),
    "protected layers": ("prune.skip_first=27", ["prune.block_size", "at most 3", "got 4", "prune.skip_first"]),
    "unknown asset": ("model.id=pypi:smollm", ["pypi:<asset>", "'smollm'", "did you mean 'smollm2-135m'"]),
    "no such folder": ("model.id=./nowhere", ["config.json", "nowhere", "check model.id"]),
    "country": ("benchmark.energy.country=fr", ["benchmark.energy.country", "'fr'", "FRA"]),
    "task twice": ("benchmark.tasks=[piqa,piqa]", ["benchmark.tasks", "piqa", "remove"]),
    "bad length": ("benchmark.perplexity=[wikitext2@x]", ["benchmark.perplexity", "name@length", "wikitext2@x"]),
    "perplexity twice": ("benchmark.perplexity=[a/x.txt@64, b/x.txt@64]", ["x_ppl@64", "more than once", "rename"]),
    "perplexity on seen text": (
        "calibration.dataset=pypi:wikipedia",
        ["benchmark.perplexity", "pypi:wikipedia", "measure on another text"],
    ),
    "PTB is no named text": ("benchmark.perplexity=[ptb@1024]", ["benchmark.perplexity", "ptb=PATH/ptb.test.txt@2048"]),
    "space: unknown key": ("sweep.space={prune.blok: {choice: [1]}}", ["prune.blok", "did you mean 'prune.block"]),
    "space: no kind": ("sweep.space={prune.block_size: {}}", ["prune.block_size", "exactly one of choice, int, float"]),
    "space: reversed": ("sweep.space={prune.block_size: {int: [9, 2]}}", ["low <= high", "[9, 2]"]),
    "space: value refused": (
        "sweep.space={prune.block_size: {choice: [1, 40]}}",
        ["40", "at most 29", "lower prune.block_size"],
    ),
    "when: unknown key": (
        "sweep.space={heal.rank: {choice: [4], when: {prune.metod: [bi]}}}",
        ["prune.metod", "did you mean 'prune.method'"],
    ),
    "when: never holds": (
        "sweep.space={heal.rank: {choice: [4], when: {prune.method: [bi]}}}",
        ["heal.rank", "never holds", "'angular'"],
    ),
    "when: never holds in a section": (
        "sweep.space={prune: {choice: [{method: bi, block_size: 2}]}, "
        "heal.rank: {choice: [4], when: {prune.method: [flap]}}}",
        ["heal.rank", "never holds", "one of ['bi']"],
    ),
    "when: circle": (
        "sweep.space={heal.rank: {choice: [4], when: {heal.alpha: [1.0]}}, "
        "heal.alpha: {choice: [1.0], when: {heal.rank: [4]}}}",
        ["wait for each other", "break the circle"],
    ),
    "grid over float": ("sweep.space={heal.dropout: {float: [0.0, 0.1]}}", ["grid", "heal.dropout", "give choice"]),
    "search without number": ("sweep.search=tpe", ["tpe", "needs num_trials", "add"]),
    "objective unmeasured": ("sweep.objectives={boolq_acc: max}", ["boolq_acc", "measured by nothing", "did you mean"]),
    "objective without energy": ("benchmark.energy=null", ["energy_j_per_token", "measured by nothing"]),
    "objective reversed": ("sweep.objectives={accuracy: min}", ["accuracy must be max", "got min"]),
    "objective typo": ("sweep.objectives={accuracy: maximum}", ["sweep.objectives.accuracy", "'maximum'"]),
    "part of an exclusive device": (
        "sweep.resources.energy={gpu: 0.5, exclusive: device}",
        ["sweep.resources.energy", "whole GPUs", "set gpu to 1"],
    ),
    "storage of nobody": ("sweep.storage=~nobody-here/runs", ["sweep.storage", "~nobody-here", "such as runs"]),
    "storage that no path can be": ('sweep.storage="a\\0b"', ["sweep.storage", "folder or a bucket"]),
    "bad name": ("name=../elsewhere", ["name", "../elsewhere"]),
    "override syntax": ("prune.block_size", ["key=value", "prune.block_size=4"]),
    "override: no such day": ("calibration.dataset=2001-13-45", ["calibration.dataset", "readable YAML", "quote it"]),
    "override: not its type": ("prune.ratio=!!int x", ["prune.ratio", "readable YAML", "'!!int x'", "quote it"]),
    "override: nested deeply": (f"prune={'[' * 1000}", ["prune", "readable YAML", "[[["]),
    "override: holds itself": ("prune=&a {method: *a}", ["prune must end somewhere", "holds itself"]),
    "method is no text": ("prune.method={a: 1}", ["prune.method", "'a'", "choices"]),
    "space: bounds too large": ("sweep.space={heal.dropout: {float: [-1.0e+308, 1.0e+308]}}", ["at most 1e+15"]),
    "space: too many steps": ("sweep.space={heal.dropout: {float: [0, 1], step: 1.0e-300}}", ["at most 1e+15"]),
    "model: no name of the hub": ("model.id=' '", ["model.id must be a folder", "owner/name", "' '"]),
    "model: too long": (f"model.id={'x' * 300}", ["model.id must be a folder", "owner/name"]),
    "model: nobody's home": ("model.id=~nobody-here/x", ["model.id", "~nobody-here/x", "check model.id"]),
    "override through a value": ("model.id.revision=x", ["model.id.revision", "to be a section"]),
}


@pytest.mark.parametrize(("override", "words"), BAD.values(), ids=BAD)
def test_bad_config_is_refused_with_key_rule_and_remedy(override, words):
    with pytest.raises(GreenpruneError) as refusal:
        parse_experiment(BASE, [override], source="base.yaml")
    for word in words:
        assert word in str(refusal.value)


def test_perplexity_on_the_stand_in_of_seen_text_is_refused():
    seen = ["calibration.dataset=pypi:c4", "benchmark.perplexity=[c4]"]
    with pytest.raises(ConfigError, match=r"benchmark\.perplexity must use text that calibration.*got c4"):
        parse_experiment(BASE, seen)
    parse_experiment(BASE, [*seen, "benchmark.data=hub"])


def test_message_names_the_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(BASE | {"prune": {"method": "angular"}}))
    with pytest.raises(ConfigError, match=r"mine\.yaml: prune\.block_size is required and missing"):
        load_experiment(path)


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2\n", "!!python/object/apply:os.system ['true']"])
def test_file_that_is_no_mapping_is_refused(tmp_path, text):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"broken\.yaml: must be"):
        load_experiment(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        load_experiment(tmp_path / "none.yaml")


def test_precedence_defaults_file_overrides():
    experiment = parse_experiment(BASE, ["prune.block_size=7"])
    assert experiment.prune.block_size == 7  # override over file
    assert experiment.heal.rank == 8  # file over default
    assert experiment.heal.alpha == 16.0  # default


def test_base_is_accepted_and_left_alone():
    before = copy.deepcopy(BASE)
    parse_experiment(BASE, ["prune.block_size=7", "sweep.space.prune.block_size.int=[1, 3]"])
    assert before == BASE


def test_override_of_a_space_key_keeps_its_dots():
    experiment = parse_experiment(BASE, ["sweep.space.prune.block_size={choice: [3]}"])
    assert experiment.sweep.space["prune.block_size"].choice == [3]


def test_changing_the_method_drops_the_fields_the_new_one_lacks():
    trial_only = {key: value for key, value in BASE.items() if key != "sweep"}
    experiment = parse_experiment(trial_only, ["prune.method=none", "heal.method=none"])
    assert experiment.prune.model_dump() == {"method": "none"}
    assert experiment.heal.model_dump() == {"method": "none"}
    with pytest.raises(ConfigError, match=r"heal\.rank is not a known key"):
        parse_experiment(BASE, ["heal.method=none", "heal.rank=4"])  # an explicit one is refused all the same


def test_scientific_notation_is_a_number():
    assert parse_experiment(BASE, ["heal.learning_rate=1e-4"]).heal.learning_rate == 1e-4


def test_points_respect_conditions():
    experiment = parse_experiment(BASE, ["sweep.space.prune.block_size.int=[1, 2]"])
    found = list(points(experiment.sweep, flat(experiment.trial().model_dump())))
    assert found == [
        {"prune.method": "angular", "prune.block_size": 1},
        {"prune.method": "angular", "prune.block_size": 2},
        {"prune.method": "bi"},
    ]


def test_a_condition_sees_a_section_that_is_chosen_whole():
    sections = "[{method: none}, {method: bi, block_size: 2}]"
    space = f"{{heal.rank: {{choice: [4, 8], when: {{prune.method: [bi]}}}}, prune: {{choice: {sections}}}}}"
    experiment = parse_experiment(BASE, [f"sweep.space={space}"])
    fixed = flat(experiment.trial().model_dump())
    dense, pruned = {"method": "none"}, {"method": "bi", "block_size": 2}
    found = [{"prune": dense}, {"prune": pruned, "heal.rank": 4}, {"prune": pruned, "heal.rank": 8}]
    assert list(points(experiment.sweep, fixed)) == found
    assert most_points(experiment.sweep, fixed) == 3


def test_float_grid_with_step():
    experiment = parse_experiment(BASE, ["sweep.space={heal.dropout: {float: [0.0, 0.3], step: 0.1}}"])
    assert list(experiment.sweep.space["heal.dropout"].values()) == [0.0, 0.1, 0.2, 0.3]


def test_trial_id_is_stable_and_tells_trials_apart():
    one, two = (parse_experiment(BASE, [f"prune.block_size={n}"]).trial() for n in (3, 4))
    assert one.trial_id() == parse_experiment(BASE, ["prune.block_size=3"]).trial().trial_id()
    assert one.trial_id() != two.trial_id()
    assert one.trial_id().startswith("angular-")
    assert one.dense() == two.dense()


def test_trial_round_trips_through_yaml():
    trial = parse_experiment(BASE).trial()
    again = TrialConfig.model_validate(yaml.safe_load(yaml.safe_dump(trial.model_dump(mode="json"))))
    assert again == trial


def test_experiment_round_trips_with_its_nulls():
    objectives = "sweep.objectives={accuracy: max, parameters: min}"
    experiment = parse_experiment(BASE, ["benchmark.energy=null", objectives])
    again = parse_experiment(yaml.safe_load(yaml.safe_dump(experiment.to_dict())))
    assert again == experiment
    assert again.benchmark.energy is None


def test_prune_config_gives_the_variant():
    config = PruneConfig(method="bi", block_size=2)
    assert isinstance(config, PruneConfig)
    assert config.block_size == 2
    with pytest.raises(ConfigError, match="did you mean 'angular'"):
        PruneConfig(method="angul", block_size=2)
    with pytest.raises(ValueError, match="block_size"):
        PruneConfig(method="bi")


def test_steps_are_checked_against_what_the_former_leave():
    steps = [{"method": "bi", "block_size": 20}, {"method": "angular", "block_size": 9}]
    PruneConfig(method="sequence", steps=steps).check(Shape(layers=30))
    with pytest.raises(ConfigError, match="at most 8 for a model of 9 layers"):
        PruneConfig(method="sequence", steps=steps).check(Shape(layers=29))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "sequence", "steps": [{"method": "bi", "block_size": 1}], "ratio": 0.1}, "ratio"),
        ({"method": "sequence", "steps": []}, "steps"),
    ],
)
def test_bad_prune_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        PruneConfig(**fields)


def test_files_and_assets_need_no_hub():
    assert not BenchmarkConfig(perplexity=["pypi:wikipedia", "ptb=ptb.txt@64"]).reads_hub()
    assert BenchmarkConfig(perplexity=["pypi:wikipedia", "c4"]).reads_hub()
    assert BenchmarkConfig(tasks=["piqa"]).reads_hub()


def test_perplexity_names():
    assert perplexity_name("pypi:wikipedia@512") == "wikipedia_ppl@512"
    assert perplexity_name("wikitext2@2048") == "wikitext2_ppl@2048"
    assert perplexity_name("/data/held.jsonl@128") == "held_ppl@128"
    assert perplexity_name("ptb=/data/a=b/test.txt@128") == "ptb_ppl@128"
    assert perplexity_name("ptb.test.txt@128") == "ptb_test_ppl@128"
    assert split_text("ptb=/data/a=b/test.txt") == ("ptb", "/data/a=b/test.txt", 0)
    assert split_text("/data/a=b/test.txt@64") == ("test", "/data/a=b/test.txt", 64)


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.yaml")), ids=lambda path: path.stem)
def test_experiments_are_valid(path):
    experiment = load_experiment(path)
    assert experiment.sweep is not None
    assert experiment.name


@pytest.mark.parametrize("path", LARGE, ids=lambda path: path.stem)
def test_experiments_can_be_tried_on_the_small_model(path):
    arrays = re.findall(r"^(SMALL|HEAL)=\((.*?)\)$", (EXPERIMENTS / "README.md").read_text(), flags=re.S | re.M)
    small, heal = (shlex.split(dict(arrays)[name]) for name in ("SMALL", "HEAL"))
    heals = load_experiment(path).heal.method != "none"
    experiment = load_experiment(path, small + heal * heals)
    assert experiment.model.id == "pypi:smollm2-135m"
    assert (experiment.sweep.storage, experiment.benchmark.limit) == ("runs", 20)


def test_thesis_study_is_the_one_described():
    experiment = load_experiment(EXPERIMENTS / "thesis_llama31_8b.yaml")
    assert isinstance(experiment.heal, LoraHealing)
    assert (experiment.heal.quantize, experiment.heal.dataset, experiment.heal.target_modules) == ("nf4", "c4", "mlp")
    assert (experiment.prune.method, experiment.benchmark.tasks) == ("angular", ["boolq"])
    assert list(experiment.sweep.space["prune.block_size"].values()) == list(range(1, 17))
    assert experiment.sweep.resources.energy.exclusive == "device"


def test_schema_is_json_and_knows_the_sections():
    schema = json.loads(json.dumps(json_schema()))
    assert {"model", "prune", "heal", "benchmark", "sweep"} <= set(schema["properties"])
    assert "name" not in schema["required"]


def test_apply_overrides_creates_missing_sections():
    assert apply_overrides({}, {"a.b": 1}) == {"a": {"b": 1}}
