"""Where BOS stands in blocks of text: a setting, decided by the tokenizer, in the keys and in the table."""

from __future__ import annotations

import math

import pytest
import torch

from greenprune.benchmark.texts import measure_perplexities
from greenprune.bos import Marking, marking, with_bos
from greenprune.config import BenchmarkConfig, CalibrationConfig, LoraHealing, TrialConfig
from greenprune.data import calibration_tokens, documents, token_blocks
from greenprune.engines.transformers import TransformersEngine
from greenprune.errors import AssetError, ConfigError
from greenprune.experiment import parse_experiment
from greenprune.heal.blocks import healing_blocks
from greenprune.results import to_frame
from greenprune.trial import run_trial

BOS = 1


@pytest.fixture
def marking_tokenizer(tiny_tokenizer):
    """The tiny tokenizer, starting each text with BOS as Llama's and Gemma's do."""
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    words = type(tiny_tokenizer.backend_tokenizer).from_str(tiny_tokenizer.backend_tokenizer.to_str())
    words.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture
def marking_experiment(tiny_experiment, tiny_checkpoint, marking_tokenizer):
    """The tiny sweep, of a model whose tokenizer starts a text with BOS."""
    marking_tokenizer.save_pretrained(tiny_checkpoint)
    return tiny_experiment


TEXT = ["the cat sat on a mat", "rivers run to the sea"]  # 11 tokens


@pytest.mark.parametrize(
    ("bos", "blocks", "marked"),
    [("none", 2, [False, False]), ("first", 3, [True, False, False]), ("each", 3, [True, True, True])],
)
def test_blocks_are_whole_and_hold_all_text_in_order(marking_tokenizer, bos, blocks, marked):
    cut = token_blocks(TEXT, marking_tokenizer, 4, bos=bos)
    assert cut.shape == (blocks, 4)
    assert (cut[:, 0] == BOS).tolist() == marked
    assert (cut[:, 1:] != BOS).all()
    text = cut[cut != BOS].tolist()
    assert text == marking_tokenizer("\n\n".join(TEXT), add_special_tokens=False)["input_ids"][: len(text)]
    assert torch.equal(token_blocks(TEXT, marking_tokenizer, 4, blocks, bos=bos), cut)
    with pytest.raises(AssetError, match=f"{blocks + 1} blocks of 4 tokens, got 11"):
        token_blocks(TEXT, marking_tokenizer, 4, blocks + 1, bos=bos)


def test_auto_asks_the_tokenizer(marking_tokenizer, tiny_tokenizer):
    assert marking("auto", marking_tokenizer) == Marking("each", BOS)
    assert marking("auto", tiny_tokenizer) == Marking(), "it has a BOS, but starts no text with it"
    assert marking("each", tiny_tokenizer) == Marking("each", BOS)


def test_a_bos_that_the_tokenizer_lacks_is_refused(marking_tokenizer):
    marking_tokenizer.bos_token = None
    assert marking("auto", marking_tokenizer) == Marking()
    with pytest.raises(ConfigError, match=r"heal\.bos first needs a tokenizer with a BOS token.*set heal\.bos: none"):
        marking("first", marking_tokenizer, "heal.bos")


@pytest.mark.parametrize("bos", ["none", "first", "each"])
def test_calibration_and_healing_take_it(marking_experiment, marking_tokenizer, bos):
    text = marking_experiment["calibration"]["dataset"]
    calibrated = calibration_tokens(text, marking_tokenizer, 5, 16, 0, bos)
    heal = LoraHealing(**marking_experiment["heal"] | {"bos": bos})
    expected = {"none": 0, "first": 1, "each": None}[bos]
    for blocks in (calibrated, *healing_blocks(heal, marking_tokenizer)):
        assert blocks.shape[1] == 16
        assert (blocks == BOS).sum() == (len(blocks) if expected is None else expected)
        assert (blocks[:, 1:] != BOS).all()


def test_bos_is_read_but_not_predicted(tiny_model, marking_tokenizer, marking_experiment):
    (text,) = marking_experiment["benchmark"]["perplexity"]
    config = BenchmarkConfig(perplexity=[text], perplexity_segments=3, energy=None, bos="each")
    found = measure_perplexities(TransformersEngine(tiny_model), marking_tokenizer, config)
    segments = token_blocks(
        documents(text.partition("@")[0]), marking_tokenizer, 15, 3
    )  # the same text, 15 tokens a segment
    inputs = torch.cat([torch.full((3, 1), BOS), segments], dim=1)
    with torch.no_grad():
        logits = tiny_model(inputs).logits[:, :-1].flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(logits, segments.flatten()).item()
    assert found["held_ppl@16"] == pytest.approx(math.exp(loss), rel=1e-5)


def test_a_row_says_what_auto_meant(marking_experiment, tmp_path):
    result = run_trial(parse_experiment(marking_experiment), tmp_path / "runs")
    sections = ("calibration", "heal", "benchmark")
    assert [result.config[section]["bos"] for section in sections] == ["each"] * 3
    assert set(to_frame([result])[[f"{section}.bos" for section in sections]].loc[0]) == {"each"}
    again = run_trial(parse_experiment(result.config), tmp_path / "runs")
    assert again.trial_id == result.trial_id
    assert all(stage["reused"] for stage in again.stages)


def test_without_a_starting_bos_ids_and_keys_are_those_of_before(tiny_experiment):
    auto = parse_experiment(tiny_experiment).trial()
    none = with_bos(auto)
    assert (none.calibration.bos, none.heal.bos, none.benchmark.bos) == ("none", "none", "none")
    for section in (none.calibration, none.heal, none.benchmark):
        assert "bos" not in section.identity()
    assert none.trial_id() != auto.trial_id(), "an undecided one is no trial's"


def test_each_setting_has_artifacts_of_its_own(marking_experiment, tmp_path):
    def keys(**bos):
        overrides = [f"{section}.bos={value}" for section, value in bos.items()]
        result = run_trial(parse_experiment(marking_experiment, overrides), tmp_path / "runs")
        return [stage["key"] for stage in result.stages]

    none = {"calibration": "none", "heal": "none", "benchmark": "none"}
    first, second = keys(**none), keys(**none | {"benchmark": "first"})
    changed = [one != other for one, other in zip(first, second, strict=True)]
    assert changed == [False, False, False, True, False, False], "collect, prune, heal, accuracy, energy twice"
    assert keys(**none | {"calibration": "each"})[0] != first[0]


def test_a_sweep_names_its_trials_as_they_will_be(marking_experiment):
    from greenprune.sweep.search import SweepSearch

    search = SweepSearch(parse_experiment(marking_experiment))
    for ray_id in "abc":
        suggested = search.suggest(ray_id)
        trial = TrialConfig.model_validate(suggested["trial"])
        assert suggested["trial_id"] == with_bos(trial).trial_id()
        assert trial.calibration.bos == "each"


def test_layer_by_layer_methods_read_marked_text(marking_experiment, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr("greenprune.prune.prune", lambda model, config, tokens, *_, **__: seen.append(tokens) or stop())
    wanda = parse_experiment(marking_experiment | {"prune": {"method": "wanda", "ratio": 0.5}}).trial()
    with pytest.raises(InterruptedError):
        run_trial(wanda, tmp_path / "runs")
    old = wanda.model_copy(update={"calibration": wanda.calibration.model_copy(update={"bos": "none"})})
    with pytest.raises(InterruptedError):
        run_trial(old, tmp_path / "runs")
    assert [(tokens[:, 0] == BOS).all().item() for tokens in seen] == [True, False]


def stop():
    raise InterruptedError


def test_a_benchmark_without_texts_keeps_its_artifacts(marking_experiment):
    marking_experiment["benchmark"]["perplexity"] = []
    del marking_experiment["sweep"]
    assert with_bos(parse_experiment(marking_experiment).trial()).benchmark.bos == "none"


def test_the_tokenizer_is_read_only_where_it_decides():
    out_of_reach = {"model": {"id": "/no/such/model"}, "prune": {"method": "none"}}
    config = {"calibration": {"bos": "none"}, "benchmark": {"energy": None}}
    assert CalibrationConfig().bos == "auto"
    trial = TrialConfig.model_validate(out_of_reach | config)
    assert with_bos(trial).calibration.bos == "none"


def test_a_model_without_tokenizer_is_refused_in_words(tmp_path, tiny_model):
    tiny_model.save_pretrained(tmp_path / "bare")
    trial = parse_experiment({"model": {"id": str(tmp_path / "bare")}, "prune": {"method": "none"}}).trial()
    with pytest.raises(AssetError, match=r"model with its tokenizer, got .*bare.*save_pretrained, or set bos: none"):
        with_bos(trial)
