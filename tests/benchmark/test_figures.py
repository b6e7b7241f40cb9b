"""The workload's figures by hand."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from workload_windows import replayed, window

from greenprune.benchmark.figures import ci95_ratio, summarise
from greenprune.benchmark.windows import PhaseWindow
from greenprune.config import EnergyConfig
from greenprune.energy import Reading


def test_figures_by_hand():
    config = EnergyConfig(batch_size=2, prompt_len=10, decode_len=5, repeats=2)
    prefills = [window(40.0, 1.0, 1.0, co2e_g=4.0), window(80.0, 1.0, 2.0, co2e_g=8.0)]  # 20, 40 J a pass
    decodes = [window(60.0, 5.0, co2e_g=6.0), window(160.0, 5.0, 5.0, co2e_g=16.0)]  # 60, 80 J a pass
    found = summarise(prefills, decodes, config)
    assert (found.prefill_latency_s, found.decode_latency_s) == (1.0, 1.0)
    assert (found.prefill_tokens_per_s, found.decode_tokens_per_s) == (20.0, 2.0)
    assert found.energy.energy_j_per_prefill_token == pytest.approx(30 / 20)
    assert found.energy.energy_j_per_decode_token == pytest.approx(70 / 10)
    assert found.energy.energy_j_per_token == pytest.approx(100 / 30)
    assert found.energy.energy_wh_per_1k_requests == pytest.approx(1000 * 50 / 3600)
    assert found.energy.average_power_w == pytest.approx(340 / 20)
    assert found.energy.co2e_g_per_1k_requests == pytest.approx(1000 * 50 * 34 / 340)
    assert found.energy.energy_ci95_ratio == pytest.approx(12.706 * 20 / 100, rel=1e-3)  # batches of 80 and 120 J
    assert found.energy.energy_j_per_request == pytest.approx(50)
    assert found.tokens_per_s == pytest.approx(2 * 15 / 6)
    assert (found.latencies.ttft_p50_s, found.latencies.ttft_p90_s) == (1.0, pytest.approx(1.7))  # of 1, 1, 1, 2 s
    assert (found.latencies.tpot_p99_s, found.energy_concurrency) == (1.0, 2)
    assert found.energy_engine.startswith("transformers 5.")
    assert found.energy_window_s == 2.0
    assert found.energy.energy_delay_product_js == pytest.approx(50 * (1.0 + 5.0))
    assert (found.idle_power_w, found.energy.energy_j_per_token_net) == (None, None)
    idle = Reading("idle", 30.0, 10.0, "measured", "s", "device")
    found = summarise(prefills, decodes, config, idle)  # 3 W at rest; passes of 1.25 and 5 s
    assert found.idle_power_w == pytest.approx(3.0)
    assert found.energy.energy_j_per_token_net == pytest.approx((100 - 3 * 6.25) / 30)
    by_another = Reading("idle", 30.0, 10.0, "estimated", "a model", "process")
    assert summarise(prefills, decodes, config, by_another).idle_power_w is None


def test_the_state_of_gpus_is_summed_up():
    def state(clock, temperature, *reasons):
        return {"sm_clock_mhz": clock, "power_cap_w": 700.0, "temperature_c": temperature, "throttling": reasons}

    readings = [replayed(1.0, gpus=(state(1000.0, 60.0), state(None, 70.0, "power cap"))), replayed(1.0)]
    windows = [PhaseWindow(reading, (1.0,)) for reading in readings]
    found = summarise(windows, windows, EnergyConfig(prompt_len=10, decode_len=5))
    assert (found.gpu.gpu_sm_clock_mhz, found.gpu.gpu_temperature_c) == (1000.0, 70.0)
    assert (found.gpu.gpu_power_cap_w, found.gpu.gpu_throttling) == (700.0, "power cap")
    alone = [PhaseWindow(replayed(1.0), (1.0,))]
    assert summarise(alone, alone, EnergyConfig(prompt_len=10, decode_len=5)).gpu.gpu_throttling is None


def test_one_absent_window_leaves_no_energy_but_all_times():
    config = EnergyConfig(prompt_len=10, decode_len=5, repeats=2)
    found = summarise([window(40.0, 1.0), window(None, 1.0)], [window(60.0, 5.0), window(60.0, 5.0)], config)
    assert found.energy_kind == "absent"
    assert set(asdict(found.energy).values()) == {None}
    assert found.prefill_latency_s == 1.0


def test_an_interval_needs_two_windows():
    assert ci95_ratio([5.0]) is None
    assert ci95_ratio([5.0, 5.0, 5.0]) == 0.0
    assert ci95_ratio([9.0, 10.0, 11.0]) == pytest.approx(2.484 * 0.1, rel=1e-3)  # 2.48 · CV at n = 3
