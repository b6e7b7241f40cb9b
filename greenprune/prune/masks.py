"""Mask pruning: weights of the decoder's linears become zero, and shapes, embeddings and head stay.

The originals are locuslab/wanda's `magnitude`, `wanda` and `sparsegpt`. On purpose different from them:

- the factor of the inverse Hessian comes from one Cholesky factorisation and one triangular inverse, not from two
  factorisations and an inverse, and a column's update is gathered when the column's turn comes;
- a Hessian that isn't positive definite is damped more, instead of an error or NaN weights;
- blocks of columns are a multiple of M, so that no group of N:M is cut.

Fused matrices (Phi-3's query, key and value; GLM-4's gate and up) are one matrix. Weights of any dtype are ranked
and updated in float32 and written back in theirs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from greenprune.collect.layerwise import LayerByLayer, products, squares
from greenprune.config import MaskPruning
from greenprune.errors import ConfigError
from greenprune.models.decoder import Decoder
from greenprune.prune import Calibration, Removed

log = logging.getLogger("greenprune")

Pattern = tuple[int, int] | None  # (N, M), or None for unstructured
DAMPING = 0.01  # of the Hessian's mean diagonal
BLOCK = 128  # columns whose unstructured mask is chosen at once
DENSE_KERNEL = "kernel: dense; zeros save neither time nor energy until a sparse kernel runs them"

# -------------------------------------------------------------------------------------------------- maths


def lowest_of_matrix(scores: Tensor, ratio: float) -> Tensor:
    """True for every score up to the one of rank int(numel * ratio), counted from 0. [out, in] -> bool [out, in].

    As the originals do: at least one more than the ratio goes, and all that are equal to the last one.
    """
    return scores <= scores.flatten().kthvalue(int(scores.numel() * ratio) + 1).values


def lowest_of_rows(scores: Tensor, ratio: float) -> Tensor:
    """True for the int(in * ratio) lowest of every row, of equals the first. [out, in] -> bool [out, in]."""
    count = int(scores.shape[1] * ratio)
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    last = scores.kthvalue(count, dim=1, keepdim=True).values
    gone = scores <= last
    if int(gone.sum()) == count * len(scores):
        return gone
    lower, equal = scores < last, scores == last
    return lower | (equal & (equal.cumsum(dim=1) <= count - lower.sum(dim=1, keepdim=True)))


def lowest_of_groups(scores: Tensor, n: int, m: int) -> Tensor:
    """True for the `n` lowest of every `m` consecutive inputs. [out, in] -> bool [out, in].

    Of equals those go that `torch.topk` names, as in the originals; which they are, a GPU may decide otherwise.
    """
    groups = scores.view(scores.shape[0], -1, m)
    lowest = groups.topk(n, dim=-1, largest=False).indices
    return torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, lowest, True).view_as(scores)


def wanda_scores(weight: Tensor, squared: Tensor) -> Tensor:
    """|W_ij| * ||X_j||_2 (Sun et al. 2023, equation 1). weight [out, in], squared [in]: ||X_j||², of any scale.

    Returns float32 [out, in].
    """
    return weight.float().abs() * squared.sqrt()


def inverse_factor(hessian: Tensor, damping: float = DAMPING) -> tuple[Tensor, float]:
    """Upper triangular U with UᵀU = (H + λ I)⁻¹, λ = damping * mean diagonal, and the damping that was used.

    hessian: float32 [in, in], finite, with a positive diagonal. The damping grows tenfold until the matrix factors.
    Reversed in both dimensions, H + λ I = L Lᵀ gives U = L⁻¹ reversed.
    """
    mean = hessian.diagonal().mean()
    assert mean > 0, "dead inputs have been given a diagonal"
    identity = torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device)
    while True:
        damped = hessian + damping * mean * identity
        assert damped.isfinite().all(), "damping a finite Hessian makes it positive definite"
        lower, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
        if not failed:
            upper = torch.linalg.solve_triangular(lower, identity, upper=False).flip(0, 1)
            if upper.isfinite().all():
                return upper.contiguous(), damping
        damping *= 10


def sparsegpt(weight: Tensor, factor: Tensor, ratio: float, pattern: Pattern = None, block: int = BLOCK) -> Tensor:
    """The pruned weight, what stays of it corrected for what went (Frantar & Alistarh 2023, algorithm 1).

    weight [out, in], any dtype; factor float32 [in, in] of `inverse_factor`. Column j is corrected for the errors of
    the columns before it. The mask: the lowest w² / U_jj², chosen for a block of columns of all rows at once
    (`lowest_of_matrix`), or for every M columns of each row. Returns float32 [out, in].
    """
    columns = weight.float().T.contiguous()  # a column of the matrix is a row here: contiguous
    errors = torch.zeros_like(columns)
    scale = factor.diagonal()[:, None]
    inputs = len(columns)
    group = min(block, inputs) if pattern is None else pattern[1]
    stride = max(block // group, 1) * group
    for start in range(0, inputs, stride):
        end = min(start + stride, inputs)
        for first in range(start, end, group):
            last = min(first + group, end)
            columns[first:last] -= factor[start:first, first:last].T @ errors[start:first]
            scores = (columns[first:last] / scale[first:last]).square().T
            gone = (lowest_of_matrix(scores, ratio) if pattern is None else lowest_of_groups(scores, *pattern)).T
            for j in range(first, last):
                now = columns[j] - factor[first:j, j] @ errors[first:j]
                columns[j] = now.masked_fill(gone[j - first], 0)
                errors[j] = (now - columns[j]) / factor[j, j]
        columns[end:] -= factor[start:end, end:].T @ errors[start:end]
    return columns.T


# ------------------------------------------------------------------------------------------------- wiring


def mask_by_magnitude(model: PreTrainedModel, config: MaskPruning, calibration: Calibration) -> Removed:
    """The weights of least |w|: in each matrix, or in each group of N:M (Han et al. 2015)."""
    decoder, pattern = _checked(model, config)
    for _, view in decoder.in_turn():
        for linear in view.linears.values():
            scores = linear.weight.detach().float().abs()
            _zero(linear, lowest_of_groups(scores, *pattern) if pattern else lowest_of_matrix(scores, config.ratio))
    return _masked(model, config, [])


def mask_by_wanda(model: PreTrainedModel, config: MaskPruning, calibration: Calibration) -> Removed:
    """The weights of least |w| * ||x||: in each output's row, or in each group of N:M (Sun et al. 2023)."""
    _, pattern = _checked(model, config)

    def prune(_: int, linears: dict[str, nn.Linear], squared: Tensor) -> None:
        for linear in linears.values():
            scores = wanda_scores(linear.weight.detach(), squared)
            _zero(linear, lowest_of_groups(scores, *pattern) if pattern else lowest_of_rows(scores, config.ratio))

    _layer_by_layer(model, calibration, squares, prune)
    return _masked(model, config, [])


def mask_by_sparsegpt(model: PreTrainedModel, config: MaskPruning, calibration: Calibration) -> Removed:
    """The weights whose loss the others can best make up for, which they then do (Frantar & Alistarh 2023).

    H = 2/N Σ x xᵀ; inputs that are always zero lose their weights.
    """
    _, pattern = _checked(model, config)
    notes: list[str] = []

    def prune(layer: int, linears: dict[str, nn.Linear], hessian: Tensor) -> None:
        dead = hessian.diagonal() == 0
        hessian.diagonal()[dead] = 1
        factor, damping = inverse_factor(hessian)
        if damping > DAMPING:
            notes.append(
                f"layer {layer}, {', '.join(linears)}: the Hessian isn't positive definite with {DAMPING:.0%} of its "
                f"mean diagonal, so it was damped with {damping:.0%}"
            )
            log.warning("%s", notes[-1])
        # N:M chooses in each row alone, so matrices with the same input are corrected as one.
        for stack in [[*linears.values()]] if pattern else [[linear] for linear in linears.values()]:
            weight = torch.cat([linear.weight.detach().float() for linear in stack]).masked_fill(dead, 0)
            pruned = sparsegpt(weight, factor, config.ratio, pattern)
            for linear, rows in zip(stack, pruned.split([linear.out_features for linear in stack]), strict=True):
                linear.weight.copy_(rows)

    _layer_by_layer(model, calibration, products, prune)
    return _masked(model, config, notes)


def _layer_by_layer(
    model: PreTrainedModel,
    calibration: Calibration,
    terms: Callable[[Tensor, int], Tensor],
    prune: Callable[[int, dict[str, nn.Linear], Tensor], None],
) -> None:
    """Call `prune(layer, linears, mean of terms)` for each distinct input in each layer, from the first layer on."""
    walk = LayerByLayer(model, calibration.required_tokens(), calibration.batch_size)
    for layer, view in walk.decoder.in_turn():
        with torch.no_grad():
            for found in walk.input_means(layer, view.linears, terms):
                prune(layer, found.linears, found.mean)
        if layer + 1 < len(walk):
            walk.advance(layer)


@torch.no_grad()
def _zero(linear: nn.Linear, gone: Tensor) -> None:
    linear.weight.masked_fill_(gone, 0)


def _checked(model: PreTrainedModel, config: MaskPruning) -> tuple[Decoder, Pattern]:
    """Raises ConfigError where a matrix can't be cut into groups of M."""
    decoder, pattern = Decoder(model), config.pattern()
    group = pattern[1] if pattern else 1
    for layer in range(len(decoder)):
        for name, linear in decoder.view(layer).linears.items():
            if linear.in_features % group:
                raise ConfigError(
                    f"prune.structure {config.structure} needs inputs in multiples of {group}, got "
                    f"{linear.in_features} in layer {layer}, {name}; choose another M or prune.structure=unstructured"
                )
    return decoder, pattern


def _masked(model: PreTrainedModel, config: MaskPruning, notes: list[str]) -> Removed:
    """Mark the model, so that healing puts the zeros back after its merge."""
    model.config.pruning_mask = config.structure
    return Removed(notes=[DENSE_KERNEL, *notes])
