"""Healing by two workers gives what one gives, each holding its part, and goes on after they are killed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch
from paths import ROOT
from pydantic import ValidationError
from safetensors.torch import load_file
from tiny import write_text

from greenprune.config import HEAL_VARIANTS, FullHealing, LoraHealing
from greenprune.errors import ConfigError
from greenprune.experiment import parse_experiment
from greenprune.heal import heal_stage
from greenprune.heal.resume import last_whole_checkpoint
from greenprune.heal.teacher import teach_stage
from greenprune.models import load_checkpoint, load_tokenizer, save_checkpoint

BRIEF = {"steps": 20, "warmup_steps": 0, "seq_len": 16, "gradient_accumulation": 4, "validation_samples": 3}
BRIEF |= {"learning_rate": 1e-3, "eval_every": 10, "checkpoint_every": 5, "bos": "none"}


@pytest.fixture
def text(tmp_path) -> Path:
    return write_text(tmp_path / "train.jsonl", 200, 0)


def heal(method: str, text: Path, checkpoint: Path, out: Path, teacher: Path | None = None, **more) -> dict:
    config = HEAL_VARIANTS[method](dataset=str(text), **{**BRIEF, **more})
    out.mkdir(parents=True, exist_ok=True)
    scratch = str(out.parent / "runs" / "_workers")
    given = {"checkpoint": checkpoint, "config": config, "dtype": "float32", "teacher": teacher}
    made = heal_stage(out, **given, scratch=scratch)
    return {**json.loads((out / "history.json").read_text()), "made": made}


def assert_same(one: Path, two: Path, tolerance: float = 1e-4) -> None:
    mine, theirs = (load_file(folder / "checkpoint" / "model.safetensors") for folder in (one, two))
    assert mine.keys() == theirs.keys()
    for name, weight in mine.items():
        apart = (weight - theirs[name]).norm() / weight.norm()
        assert apart < tolerance, f"{name}: {apart:.2e}"


BOTH = [("lora", {"dropout": 0.0}), ("full", {})]


@pytest.mark.parametrize(("method", "more"), [*BOTH, ("lora", {"dropout": 0.0, "quantize": "nf4"})])
def test_two_workers_give_the_weights_of_one(method, more, text, tiny_checkpoint, tmp_path, ray_here):
    alone = heal(method, text, tiny_checkpoint, tmp_path / "one", **more)
    together = heal(method, text, tiny_checkpoint, tmp_path / "two", num_workers=2, **more)
    assert_same(tmp_path / "one", tmp_path / "two")
    for name in ("loss_start", "loss_end", "loss_merged", "train_loss"):
        assert together[name] == pytest.approx(alone[name], rel=1e-4)
    assert together["trainable_parameters"] == alone["trainable_parameters"]
    assert together["tokens"] == alone["tokens"] == 20 * 4 * 16
    assert together["loss_end"] < together["loss_start"]
    assert not (tmp_path / "two" / "work").exists()


@pytest.mark.slow
def test_two_workers_read_of_each_domain_what_one_does(text, tiny_checkpoint, tmp_path, ray_here):
    more = {"domains": {"one": str(text), "other": str(write_text(tmp_path / "other.jsonl", 200, 5))}}
    more |= {"eval_every": 4, "dropout": 0.0, "loss": {"ce": 0.5, "kd": 0.5}}
    section = LoraHealing(dataset=str(text), **BRIEF | more)
    record = tmp_path / "record"
    record.mkdir()
    teach_stage(record, checkpoint=tiny_checkpoint, config=section.teaching(), dtype="float32")
    alone, together = (
        heal("lora", text, tiny_checkpoint, tmp_path / f"{workers}", record, num_workers=workers, **more)
        for workers in (1, 2)
    )
    assert_same(tmp_path / "1", tmp_path / "2")
    for mine, theirs in zip(alone["validation"], together["validation"], strict=True):
        assert theirs["losses"] == pytest.approx(mine["losses"], rel=1e-4)
        assert theirs["shares"] == pytest.approx(mine["shares"], rel=1e-4)


KILLED = """
import json, sys
from pathlib import Path
from test_sharded import heal
from greenprune.cluster.join import start_ray
start_ray(None)
method, text, checkpoint, out, more = sys.argv[1:]
heal(method, Path(text), Path(checkpoint), Path(out), num_workers=2, **json.loads(more))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("method", "more"), BOTH)
def test_killed_workers_go_on_and_end_the_same(method, more, text, tiny_checkpoint, tmp_path, ray_here):
    """Each kept its half of the optimizer."""
    longer = {**more, "steps": 200, "eval_every": 200}
    undisturbed, out = tmp_path / "one", tmp_path / "two"
    heal(method, text, tiny_checkpoint, undisturbed, **longer)
    command = [sys.executable, "-c", KILLED, method, *map(str, (text, tiny_checkpoint, out)), json.dumps(longer)]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)])
    running = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": paths})
    end = time.monotonic() + 300
    while not (kept := last_whole_checkpoint_of_two(out / "work")):
        assert running.poll() is None, "it ended before it was killed"
        assert time.monotonic() < end
        time.sleep(0.05)
    for process in [psutil.Process(running.pid), *psutil.Process(running.pid).children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    running.wait()
    sizes = [path.stat().st_size for path in kept.glob("*/*_optim_states.pt")]
    assert len(sizes) == 2
    assert max(sizes) < 1.2 * min(sizes)
    history = heal(method, text, tiny_checkpoint, out, num_workers=2, **longer)
    assert history["steps"] == 200
    assert_same(undisturbed, out)


def last_whole_checkpoint_of_two(work: Path) -> Path | None:
    """Without touching what is being written."""
    with tempfile.TemporaryDirectory() as copied:
        with suppress(shutil.Error, OSError):
            shutil.copytree(work, Path(copied) / "work")
        found = last_whole_checkpoint(Path(copied) / "work", workers=2)
        return work / found.name if found else None


def test_a_checkpoint_of_several_workers_is_whole_with_all_parts(tmp_path):
    folder = tmp_path / "checkpoint-5"
    kept = folder / "global_step5"
    kept.mkdir(parents=True)
    (folder / "trainer_state.json").write_text("{}")
    (folder / "latest").write_text("global_step5")
    parts = [folder / "scheduler.pt", kept / "mp_rank_00_model_states.pt"]
    for rank in range(2):
        parts += [folder / f"rng_state_{rank}.pth", kept / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"]
    for part in parts:
        torch.save({}, part)
    assert last_whole_checkpoint(tmp_path, workers=2) == folder
    parts[-1].write_bytes(parts[-1].read_bytes()[:-9])
    assert last_whole_checkpoint(tmp_path, workers=2) is None
    assert not folder.exists()


def test_what_several_workers_refuse(text, tiny_checkpoint, tmp_path, ray_here):
    with pytest.raises(ValidationError, match=r"gradient_accumulation must be a multiple of num_workers \(3\)"):
        LoraHealing(gradient_accumulation=4, num_workers=3)
    with pytest.raises(ConfigError, match=r"sweep.storage must be a folder that all nodes share.*got s3://b/runs"):
        parse_experiment(
            {
                "model": {"id": str(tiny_checkpoint)},
                "prune": {"method": "magnitude", "ratio": 0.5},
                "heal": {"method": "lora", "num_workers": 2},
                "benchmark": {"energy": None},
                "sweep": {
                    "space": {"prune.ratio": {"choice": [0.3]}},
                    "objectives": {"parameters": "min"},
                    "storage": "s3://b/runs",
                },
            }
        )
    masked = load_checkpoint(tiny_checkpoint)
    masked.config.pruning_mask = {"method": "magnitude"}
    save_checkpoint(masked, load_tokenizer(tiny_checkpoint), tmp_path / "masked")
    with pytest.raises(ConfigError, match=r"heal.num_workers must be 1 where all weights of a masked model"):
        heal("full", text, tmp_path / "masked", tmp_path / "out", num_workers=2)
    assert "num_workers" not in LoraHealing().identity()
    assert FullHealing(num_workers=2).identity()["num_workers"] == 2
