"""An engine's process: asked, killed, ended with whoever started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from greenprune.benchmark.workload import Side, measure_workload
from greenprune.config import EnergyConfig
from greenprune.energy import ReplayMeter
from greenprune.energy.processes import own_cpu_s, own_pids
from greenprune.engines.process import EngineProcess
from greenprune.engines.served import ServingEngine
from greenprune.errors import EngineDied

MAKER = "counting_stepper:CountingStepper"
HERE = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parents[1])])}
CONFIG = EnergyConfig(
    engine="vllm", prompt_len=4, decode_len=3, concurrency=[1, 2], min_seconds=0.05, repeats=2, max_foreign_load=1.0
)

SHORT = CONFIG.model_copy(update={"min_seconds": 0.001})  # one request, three steps, a warm-up and a window
IN_A_WINDOW = [4]


class CountingEngine(ServingEngine):
    """Serves nothing, from a process. deaths: after how many steps each of its processes dies."""

    maker = MAKER

    def __init__(self, checkpoint, deaths=()):
        super().__init__(checkpoint, "float32", False)
        self.deaths = list(deaths)

    def settings(self, sequences, tokens):
        return {"step_s": 0.002, "die_after": self.deaths.pop(0) if self.deaths else None}

    def environment(self, tokens):
        return HERE


@pytest.fixture
def processes():
    """All must be gone when a test ends."""
    before = own_pids()
    yield
    assert own_pids() <= before


def test_a_process_answers_and_ends(processes):
    process = EngineProcess(MAKER, {}, HERE)
    assert process.ask("generate", prompts=[[1], [2]], new_tokens=2) == [[1, 2], [2, 3]]
    assert process.pid in own_pids(), "so its work on a GPU and a CPU is ours"
    assert process.peak_memory_bytes() > 2**20
    process.close()
    assert not process.alive()


def test_its_cpu_time_is_ours(processes):
    process = EngineProcess(MAKER, {}, HERE)
    before = own_cpu_s()
    process.ask("generate", prompts=[[1]], new_tokens=300_000)
    spent = own_cpu_s() - before
    process.close()
    assert spent > 0.05


def test_a_process_that_is_killed_says_how_and_its_last_words(processes):
    process = EngineProcess(MAKER, {"die_after": 0}, HERE)
    with pytest.raises(EngineDied, match=r"killed by SIGKILL; its last words: out of breath"):
        process.ask("load_up", lengths=[[4, 3]], concurrency=1, seed=0, seconds=0.1)


def test_a_process_that_hangs_is_killed_and_one_that_is_slow_is_not(processes):
    process = EngineProcess(MAKER, {"step_s": 0.05}, HERE, silence_s=1.8)
    assert process.ask("generate", prompts=[[1]], new_tokens=50)[0][-1] == 50
    process.close()
    hung = EngineProcess(MAKER, {"step_s": 60}, HERE, silence_s=0.2)
    with pytest.raises(EngineDied, match=r"must step or answer within 0.2 s, got silence"):
        hung.ask("generate", prompts=[[1]], new_tokens=1)
    assert not hung.alive()


def test_an_engine_that_cannot_start_says_why(processes):
    with pytest.raises(EngineDied, match=r"(?s)exit status 1.*unexpected keyword argument 'wings'"):
        EngineProcess(MAKER, {"wings": 2}, HERE)


def test_the_process_ends_with_the_one_that_started_it():
    code = (
        f"from greenprune.engines.process import EngineProcess; import time\np = EngineProcess({MAKER!r}, {{}}, {{}})"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", f"{code}\nprint(p.pid, flush=True)\ntime.sleep(60)"],
        stdout=subprocess.PIPE,
        env=os.environ | HERE,
        text=True,
    )
    child = int(parent.stdout.readline())
    assert psutil.pid_exists(child)
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    ends = time.time() + 10
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE and time.time() < ends:
        time.sleep(0.05)
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_each_number_of_requests_is_measured(tmp_path, processes):
    side = Side(lambda: CountingEngine(tmp_path))
    found = measure_workload(side, CONFIG, ReplayMeter([0.1, 8e3, 8e3, 0.1, 8.0, 8.0]))
    side.close()
    assert [reading.name for reading in found.readings] == ["serve@1 1", "serve@1 2", "serve@2 1", "serve@2 2"]
    alone, two = (found.by[number].figures for number in (1, 2))
    assert min(alone.tokens_per_s, two.tokens_per_s) > 0
    assert (alone.prefill_latency_s, alone.energy.energy_j_per_decode_token) == (None, None)
    assert 0.001 < alone.latencies.ttft_p50_s <= alone.latencies.ttft_p99_s
    assert 0.001 < alone.latencies.tpot_p50_s <= alone.latencies.tpot_p99_s
    assert alone.energy.energy_j_per_request == pytest.approx(7 * alone.energy.energy_j_per_token)
    assert alone.energy.energy_ci95_ratio is not None
    told = found.to_json()
    assert told["energy_j_per_token"] == told["at"]["1"]["energy_j_per_token"] != told["at"]["2"]["energy_j_per_token"]
    assert told["at"]["2"]["energy_concurrency"] == 2


def test_an_engine_that_is_killed_in_a_window_is_started_again(tmp_path, processes, caplog):
    side = Side(lambda: CountingEngine(tmp_path, deaths=IN_A_WINDOW))
    meter = ReplayMeter([1.0] * 30)
    found = measure_workload(side, SHORT.model_copy(update={"concurrency": [1]}), meter)
    side.close()
    assert "killed by SIGKILL" in caplog.text
    assert "it is started again" in caplog.text
    assert len(found.readings) == 2


def test_one_that_is_killed_again_fails_with_the_reason(tmp_path, processes):
    side = Side(lambda: CountingEngine(tmp_path, deaths=2 * IN_A_WINDOW))
    with pytest.raises(EngineDied, match="killed by SIGKILL"):
        measure_workload(side, SHORT, ReplayMeter([1.0] * 30))
    side.close()
