"""Every column of the table of trials, declared once."""

from __future__ import annotations

import functools

from greenprune.columns.declaration import Column

_label = functools.partial(Column, text=True)
_task = functools.partial(Column, needs="benchmark.tasks", unit="0–1")
_served = functools.partial(
    Column, needs="benchmark.energy", engine="energy_engine", concurrency="energy_concurrency", at_each=True
)
_speed = functools.partial(_served, machine="machine")
_energy = functools.partial(_speed, kind="energy_kind", scope="energy_scope", better="min")
_ratio = functools.partial(
    _served, unit="ratio", better="min", kind="energy_kind", scope="energy_scope", shown="{:.3f}"
)
_workload = functools.partial(Column, needs="benchmark.energy", at_each=True)
_work = functools.partial(Column, needs="benchmark.energy")
_machine = functools.partial(Column, needs="benchmark.energy", text=True)
_gpu = functools.partial(Column, needs="benchmark.energy", machine="machine", at_each=True)

COLUMNS: dict[str, Column] = {
    "trial_number": Column("order in the sweep; the dense model is 0", title="#", phrase="trial", shown="{:.0f}"),
    "trial_id": _label(
        "method and hash of the configuration: the same wherever that configuration runs", title="trial"
    ),
    "status": _label("`ok` or `failed`"),
    "error": _label("why a failed trial failed"),
    "<section>.<key>": Column("the trial's configuration, e.g. `prune.block_size`; lists as JSON"),
    # ------------------------------------------------------------------------------------------------ size
    "parameters": Column("parameters of the trial's model; tied ones once", "count", better="min", shown="{:,.0f}"),
    "parameters_dense": Column("parameters of the dense model", "count", shown="{:,.0f}"),
    "parameters_removed_ratio": Column(
        "share of the dense model's parameters that is gone", "0–1", title="removed", shown="{:.1%}"
    ),
    "layers": Column("decoder layers left", "count", shown="{:.0f}"),
    "layers_removed": _label("decoder layers removed, numbered as in the dense model", "JSON list", needs="prune"),
    "ratio_reached": Column(
        "share of the touchable layers' parameters that pruning removed; of a mask, set to zero", "0–1", needs="prune"
    ),
    "sparsity": Column(
        "zeros in the layers' matrices; kernels are dense, so a zero costs what any weight costs", "0–1", needs="prune"
    ),
    "checkpoint_needs": _label(
        "`transformers`, or `trust_remote_code` for layers of different widths: code of ours ships with it",
        needs="prune",
    ),
    "checkpoint_bytes": Column(
        "size of the checkpoint's weight files", "bytes", phrase="checkpoint size", better="min",
        title="checkpoint MiB", shown="{:,.0f}", scale=2**20,
    ),
    "quantization": _label("how the weights are stored: `none` as the model's dtype, a method, or a type of GGUF"),
    "bits_per_weight": Column(
        "bits of the checkpoint's weight files / parameters", "bits", title="bits/weight", better="min", shown="{:.2f}"
    ),
    "macs_per_token": _work(
        "multiply-accumulates of the workload / (prompt + decoded tokens): linear layers and attention", "count",
        title="MACs/token", phrase="multiply-accumulates per token", better="min", shown="{:,.0f}",
    ),
    "prefill_macs_per_token": _work(
        "the same of prefill alone, each token looking at the whole prompt", "count", better="min", shown="{:,.0f}"
    ),
    "decode_macs_per_token": _work("the same of decode alone", "count", better="min", shown="{:,.0f}"),
    # --------------------------------------------------------------------------------------------- accuracy
    "accuracy": _task(
        "mean over tasks of each task's primary metric", phrase="accuracy, mean over tasks", better="max",
        shown="{:.3f}",
    ),
    "<task>_acc": _task(
        "the task's primary metric (acc_norm, acc or exact match; ROUGE-L for xsum)",
        title="<task>", better="max", stderr="<task>_stderr", floor="<task>_floor", shown="{:.3f}",
    ),
    "<task>_stderr": _task("standard error of `<task>_acc`"),
    "<task>_floor": _task("score without knowledge: the better of chance and the majority answer"),
    "<task>_unparsed": _task("share of generated answers that can't be parsed; they count as wrong"),
    "<task>_rouge<n>": _task("mean F1 of ROUGE-1, -2 and -L against the reference summaries"),
    "<task>_seconds": Column("time the task took", "s", needs="benchmark.tasks", machine="tasks_machine"),
    "<text>_ppl@<length>": Column(
        "exp of the mean loss per token on a text, in segments of `<length>` tokens", "perplexity",
        title="<text> ppl@<length>", better="min", inverse=True, needs="benchmark.perplexity",
    ),
    "perplexity_note": _label("which perplexities are infinite, and why", needs="benchmark.perplexity"),
    # ------------------------------------------------------------------------------------------------ speed
    "prefill_latency_s": _speed(
        "one prefill of the workload's batch", "s", phrase="latency of one prefill", better="min", batches=True
    ),
    "decode_latency_s": _speed(
        "one decode step of the workload's batch", "s", phrase="latency of one decode step", better="min", batches=True
    ),
    "prefill_tokens_per_s": _speed(
        "prompt tokens of the batch a second", "tokens/s", title="prefill tokens/s", better="max", batches=True
    ),
    "decode_tokens_per_s": _speed(
        "new tokens of the batch a second", "tokens/s", title="decode tokens/s", better="max", batches=True
    ),
    "tokens_per_s": _speed(
        "prompt and new tokens of all requests a second", "tokens/s", title="tokens/s", better="max"
    ),
    **{
        f"{name}_p{percent}_s": _speed(f"{meaning}, {percent}th percentile of the requests", "s", better="min")
        for name, meaning in {"ttft": "time to the first token", "tpot": "time of a token after the first"}.items()
        for percent in (50, 90, 99)
    },
    "peak_memory_bytes": _speed(
        "peak memory during the workload", "bytes", better="min", title="peak MiB", shown="{:,.0f}", scale=2**20
    ),
    "<stage>_peak_memory_bytes": Column(
        "peak memory of a stage: of its process, or of its GPUs together", "bytes", title="<stage> peak MiB",
        shown="{:,.0f}", scale=2**20,
    ),
    "<stage>_predicted_memory_bytes": Column(
        "the same as predicted from shapes before it ran", "bytes", title="<stage> predicted MiB", shown="{:,.0f}",
        scale=2**20,
    ),
    # ----------------------------------------------------------------------------------------------- energy
    "energy_j_per_token": _energy(
        "workload energy / (prompt + decoded tokens), gross", "J/token", title="J/token", phrase="energy per token",
        ratio="energy_ratio", ci95_ratio="energy_ci95_ratio",
    ),
    "energy_j_per_prefill_token": _energy(
        "prefill energy / prompt tokens, gross", "J/token", title="J/token prefill",
        phrase="energy per prefilled token", ratio="energy_ratio_prefill", batches=True,
    ),
    "energy_j_per_decode_token": _energy(
        "decode energy / decoded tokens, gross", "J/token", title="J/token decode", phrase="energy per decoded token",
        ratio="energy_ratio_decode", batches=True,
    ),
    "energy_j_per_request": _energy(
        "energy of one request of the workload", "J", title="J/request", phrase="energy of a request",
        ratio="energy_ratio", ci95_ratio="energy_ci95_ratio",
    ),
    "energy_wh_per_1k_requests": _energy(
        "energy of 1,000 requests of the workload", "Wh", title="Wh/1k requests", phrase="energy of 1,000 requests",
        ratio="energy_ratio", ci95_ratio="energy_ci95_ratio",
    ),
    "energy_ratio": _ratio(
        "energy per token / the dense model's on the same machine; of pairs, the mean of theirs", title="÷ dense",
        phrase="energy relative to the dense model", of="energy_j_per_token",
    ),
    "energy_ratio_prefill": _ratio("the same of prefill alone", of="energy_j_per_prefill_token", batches=True),
    "energy_ratio_decode": _ratio("the same of decode alone", of="energy_j_per_decode_token", batches=True),
    "energy_ratio_ci95": _workload(
        "half-width of the 95 % interval of `energy_ratio`, where both models were measured in pairs of windows",
        "ratio", shown="{:.3f}", needs="benchmark.energy.paired",
    ),
    "energy_j_per_token_net": _energy("energy per token less what the machine takes idle, model loaded", "J/token"),
    "energy_delay_product_js": _energy("energy of a request × time of a request", "J·s"),
    "average_power_w": _energy("mean power during the workload", "W"),
    "idle_power_w": _energy("mean power at rest, model loaded", "W", better=None),
    "energy_engine": _workload("what served the model, and its version", text=True, title="engine"),
    "energy_concurrency": _workload("requests in flight", "count", shown="{:.0f}"),
    "<workload>@<requests>": Column(
        "a figure of the workload with so many requests in flight, e.g. `energy_j_per_token@8`: there where "
        "`benchmark.energy.concurrency` isn't 1 alone; the plain name is the first number's",
    ),
    "energy_kind": _workload(
        "`measured` (sensors), `estimated` (a model of the hardware) or `contaminated` (others worked meanwhile)",
        text=True, title="kind",
    ),
    "energy_source": _workload("which counter, or which model with its parameters", text=True),
    "energy_scope": _workload("what the joules are of: `device`, `package`, `dram`, `process`", text=True),
    "energy_sharing": _workload(
        "what was kept free of other stages: `exclusive: node`, `exclusive: device`, or `shared`", text=True
    ),
    "energy_note": _workload("why it isn't measured, what contaminated it, which sensors disagree", text=True),
    "energy_window_s": _workload("shortest energy window", "s"),
    "energy_repeats": _workload("energy windows of each phase", "count"),
    "energy_windows_discarded": _workload("windows in which others worked, measured again", "count"),
    "energy_ci95_ratio": _workload("half-width of the 95 % interval / mean, over the windows", "ratio"),
    "co2e_g_per_1k_requests": _energy(
        "emissions of 1,000 requests in the configured country", "g CO2e", needs="benchmark.energy.country",
        phrase="emissions of 1,000 requests", ci95_ratio="energy_ci95_ratio",
    ),
    "gpu_sm_clock_mhz": _gpu("mean clock during the windows", "MHz"),
    "gpu_power_cap_w": _gpu("enforced power limit", "W"),
    "gpu_temperature_c": _gpu("highest temperature during the windows", "°C"),
    "gpu_throttling": _workload("why the GPU ran slower than it could, `none` if it didn't", text=True),
    "machine": _machine(
        "identity of the hardware: of each GPU, its driver and power cap; energies of different ones aren't compared",
    ),
    "machine_class": _machine(
        "what machines of equal parts share: CPU, cores, memory, models of GPUs, sensors; cards of one class are "
        "compared by the ratio to the dense model",
    ),
    "hostname": _machine("name of the node that ran the energy stage"),
    # ------------------------------------------------------------------------------------- energy besides
    "energy_wh_tasks": Column(
        "energy of all tasks together", "Wh", better="min", needs="benchmark.tasks", kind="tasks_energy_kind",
        scope="tasks_energy_scope", machine="tasks_machine",
    ),
    "tasks_energy_kind": _label("`energy_kind` of the tasks' energies", needs="benchmark.tasks"),
    "tasks_energy_scope": _label("`energy_scope` of the tasks' energies", needs="benchmark.tasks"),
    "tasks_machine": _label("identity of the hardware that answered the tasks", needs="benchmark.tasks"),
    "<stage>_energy_wh": Column(
        "energy of a stage that the model came from (`collect`, `prune`, `teach`, `heal`); other trials may share it",
        "Wh", kind="<stage>_energy_kind", machine="<stage>_machine", needs="prune",
    ),
    "<stage>_energy_kind": _label("`energy_kind` of `<stage>_energy_wh`", needs="prune"),
    "<stage>_machine": _label("identity of the hardware that ran the stage, where it was metered", needs="prune"),
    "<task>_wh": Column(
        "energy the task took", "Wh", needs="benchmark.tasks", kind="tasks_energy_kind", scope="tasks_energy_scope",
        machine="tasks_machine",
    ),
    "co2e_g_tasks": Column(
        "emissions of all tasks together in the configured country", "g CO2e", needs="benchmark.energy.country",
        kind="tasks_energy_kind", scope="tasks_energy_scope", machine="tasks_machine",
    ),
    "<task>_co2e_g": Column(
        "emissions of the task in the configured country", "g CO2e", needs="benchmark.energy.country",
        kind="tasks_energy_kind", scope="tasks_energy_scope", machine="tasks_machine",
    ),
    "break_even_requests": Column(
        "requests after which the energy of making the model is paid back; empty if it never is, and where not all of "
        "it was metered as the workload was",
        "count", title="break-even", needs="prune", shown="{:,.0f}", kind="energy_kind", machine="machine",
    ),
    # ---------------------------------------------------------------------------------------------- healing
    "heal_train_loss": Column("mean of what healing minimised (`heal.loss`)", "nats/token", needs="heal"),
    "heal_loss_start": Column("validation loss before healing", "nats/token", needs="heal"),
    "heal_loss_end": Column("validation loss after healing", "nats/token", needs="heal"),
    "heal_kl_start": Column("validation text's divergence from the dense model", "nats/token", needs="heal.loss"),
    "heal_kl_end": Column("the same after healing", "nats/token", needs="heal.loss"),
    "heal_tokens": Column("tokens that healing trained on, repeated ones too", "count", needs="heal", shown="{:,.0f}"),
    # ------------------------------------------------------------------------------------------------- time
    "seconds": Column("wall time of the trial", "s", machine="machine"),
    "started": _label("when the trial began", "ISO 8601 UTC"),
}  # fmt: skip

# The dozen that most readers look for: README prints these, `greenprune columns` all.
MAIN = (
    "status",
    "<section>.<key>",
    "parameters_removed_ratio",
    "accuracy",
    "<task>_acc",
    "<text>_ppl@<length>",
    "decode_tokens_per_s",
    "peak_memory_bytes",
    "energy_j_per_token",
    "energy_ratio",
    "energy_kind",
    "break_even_requests",
)
