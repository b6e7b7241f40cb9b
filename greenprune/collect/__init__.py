"""The calibration pass over the dense model, gathered in named tensors.

    stats = collect(model, tokens, want={"angular", "bi"})

One pass gives every statistic of a group, and the artifact of that pass serves every method and every ratio
that needs one of them. STATISTICS names the groups; a group is a watcher of the forward pass (forward.py), which
all watchers share, or a computation with passes of its own.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from greenprune._callable import function_named, make_callable
from greenprune.config import CalibrationConfig, ModelConfig
from greenprune.errors import ConfigError, nearest

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from greenprune.collect.forward import Watcher

    Computation = Callable[..., dict[str, torch.Tensor]]

log = logging.getLogger("greenprune")


@dataclass(frozen=True)
class Statistic:
    """`watcher`: class of a forward pass's watcher, made with the number of layers.
    `compute`: for what no forward pass shows, `(model, tokens, batch_size) -> dict[str, Tensor]`; where it `shards`, it
    also takes `shard`, a worker's part (gradients.py).
    """

    summary: str
    watcher: str | None = None
    compute: str | None = None
    shards: bool = False


STATISTICS: dict[str, Statistic] = {
    "angular": Statistic(
        "angular distance of the hidden states before and after every block of layers",
        "greenprune.collect.hidden_states:AngularDistance",
    ),
    "bi": Statistic(
        "block influence: how much every layer turns the hidden states",
        "greenprune.collect.hidden_states:BlockInfluence",
    ),
    "activations": Statistic(
        "mean, variance and sizes of what attention output and MLP down projections read",
        "greenprune.collect.activations:Activations",
    ),
    "gradient": Statistic(
        "first-order Taylor scores of layers, heads and channels",
        compute="greenprune.collect.gradients:first_order",
        shards=True,
    ),
    "fisher": Statistic(
        "first- and second-order Taylor scores, from the gradient of each sample",
        compute="greenprune.collect.gradients:second_order",
        shards=True,
    ),
    "layer_perplexity": Statistic(
        "perplexity with each layer removed alone",
        compute="greenprune.collect.removal:layer_perplexity",
    ),
}


@dataclass(frozen=True)
class Statistics:
    """What a calibration pass saw, as named tensors. L is the number of decoder layers.

    angular_distance: float64 [L, L], in units of pi; row n-1, column start: the block start..start+n-1;
        NaN where the block doesn't fit. (Gromov et al. 2024, equation 4.)
    block_influence: float64 [L]; 1 - mean over tokens of cos(input, output) (Men et al. 2024, equation 1).
    layer_perplexity: float64 [L]; perplexity over all tokens with each layer removed alone; inf where it isn't finite.
    attention.NAME float64 [L, heads * head_dim], mlp.NAME float64 [L, channels]: of the inputs of the attention output
        and MLP down projections. NAME: mean, variance (of the population of tokens), square_sum (over tokens) and
        minitron (L2 norm over samples of the mean over the sequence of |x|). Where layers differ in width, rows
        are as long as the widest, and narrower ones end in NaN.
    hidden.minitron: float64 [hidden]; the same of the outputs of both norms of a layer, summed over norms.
    layer.taylor: float64 [L]; sum of |w·g| over a layer's weights, norms included, biases not; g is the gradient of
        the mean loss (Kim et al. 2024, Shortened LLaMA, equation 2). Of "gradient" and "fisher", like all below.
    param_first.PART: float32 [L, n]; sum of |w·g| for each channel of a part: rows of query (n = heads * head_dim),
        of key and value (kv_heads * head_dim), of gate (where there is one) and up (channels); columns of out and down.
        vectorize.PART: |sum of w·g|. Of "fisher" only: param_second.PART: sum of w²A, where A is the mean over samples
        of squared gradients; param_mix.PART: sum of |w·g - w²A/2| (Ma et al. 2023, LLM-Pruner, equations 3 to 5).
        Layers narrower than others are filled up with NaN.
    num_samples, num_tokens: what was averaged over, padding left out.
    parameters_per_worker: elements that each ZeRO-3 worker held; None for an unsharded pass.
    """

    tensors: dict[str, torch.Tensor]
    num_samples: int
    num_tokens: int
    parameters_per_worker: list[int] | None = None

    def __getitem__(self, name: str) -> torch.Tensor:
        assert name in self.tensors, f"{name} is gathered when the method's entry asks for it, got {list(self.tensors)}"
        return self.tensors[name]

    @property
    def angular_distance(self) -> torch.Tensor | None:
        return self.tensors.get("angular_distance")

    @property
    def block_influence(self) -> torch.Tensor | None:
        return self.tensors.get("block_influence")

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        save_file({k: v.contiguous() for k, v in self.tensors.items()}, folder / "statistics.safetensors")
        facts = {k: getattr(self, k) for k in ("num_samples", "num_tokens", "parameters_per_worker")}
        (folder / "statistics.json").write_text(json.dumps(facts))

    @staticmethod
    def load(folder: Path) -> Statistics:
        from safetensors.torch import load_file

        facts = json.loads((folder / "statistics.json").read_text())
        return Statistics(load_file(folder / "statistics.safetensors"), **facts)


def check_known(want: Collection[str]) -> None:
    """Raises ConfigError for a statistic that isn't in the table."""
    for name in sorted(want):
        if name not in STATISTICS:
            raise ConfigError(f"a statistic must be known, got {name!r}; {nearest(name, STATISTICS)}")


def watchers(want: Collection[str], layers: int) -> list[Watcher]:
    """What looks on a forward pass to gather the wanted statistics."""
    return [function_named(path)(layers) for name in sorted(want) if (path := STATISTICS[name].watcher)]


def computations(want: Collection[str]) -> dict[str, Computation]:
    """The wanted statistics that need passes of their own."""
    return {name: function_named(path) for name in sorted(want) if (path := STATISTICS[name].compute)}


def collect(
    model: PreTrainedModel,
    tokens: torch.Tensor,
    want: Collection[str],
    attention_mask: torch.Tensor | None = None,
    batch_size: int = 1,
) -> Statistics:
    """Run the model over `tokens` and gather what is wanted: one pass for all that watch, then each computation.

    tokens: LongTensor [num_samples, seq_len]; attention_mask: the same shape, 1 for a real token, 0 for
    padding (left or right), which never counts. Raises ConfigError for an unknown statistic, and for padding
    where one is computed.
    """
    from greenprune.collect.forward import ForwardPass
    from greenprune.models.decoder import Decoder

    check_known(want)
    computed = computations(want)
    if computed and attention_mask is not None and not attention_mask.all():
        raise ConfigError(
            f"tokens must come without padding for the statistics {', '.join(computed)}, got an attention mask with "
            "zeros; cut the text into blocks of one length (greenprune.data.token_blocks)"
        )
    statistics = Statistics({}, len(tokens), tokens.numel())
    if watching := watchers(want, len(Decoder(model))):
        statistics = ForwardPass(model, watching).run(tokens, attention_mask, batch_size).statistics()
    for compute in computed.values():
        statistics.tensors.update(compute(model, tokens, batch_size))
    return statistics


def collect_stage(
    out: Path,
    *,
    checkpoint: Path,
    config: CalibrationConfig,
    want: Collection[str],
    source: ModelConfig,
    scratch: str,
) -> None:
    """Statistics of the checkpoint on the calibration text. `source` finds the model on other nodes."""
    from greenprune.data import calibration_tokens
    from greenprune.models import load_streamed, load_tokenizer

    started = time.perf_counter()
    tokens = calibration_tokens(
        config.dataset, load_tokenizer(checkpoint), config.num_samples, config.seq_len, config.seed, config.bos
    )
    if config.num_workers > 1:
        from greenprune.collect.zero3 import collect_sharded

        statistics = collect_sharded(source, tokens, want, config, scratch)
    else:
        model: Any = load_streamed(checkpoint, source.dtype, source.trust_remote_code)
        statistics = collect(model, tokens, want, batch_size=config.batch_size)
    statistics.save(out)
    log.info(
        "collected %s on %d tokens in %.0f s",
        ", ".join(sorted(want)),
        tokens.numel(),
        time.perf_counter() - started,
    )


make_callable(__name__)
