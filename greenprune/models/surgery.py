"""Change a model's shape in place: its layers, attentions, heads, channels, output biases and hidden size.

All but `remove_layers` leave class and configuration as they were: `fit_class_and_config` (stock_form.py) comes last.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from greenprune.errors import ModelError
from greenprune.models.decoder import Decoder, LayerView, Rows
from greenprune.models.in_files import belongs_with, put_away
from greenprune.models.modeling_pruned import NoHeads, set_heads


def twin(model: PreTrainedModel) -> PreTrainedModel:
    """A model of the same parameters and buffers that keeps its shape when surgery changes the other's."""
    shared = itertools.chain(model.parameters(), model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})


def remove_layers(model: PreTrainedModel, indices: Collection[int]) -> None:
    """Remove decoder layers (0-based) in place; the rest keep their order and are numbered anew.

    Raises ModelError for an index that isn't there or when no layer would be left.
    """
    decoder = Decoder(model)
    total, gone = len(decoder), set(indices)
    if not gone <= set(range(total)) or len(gone) >= total:
        raise ModelError(f"layers to remove must be some but not all of 0..{total - 1}, got {sorted(gone)}")
    kept = [index for index in range(total) if index not in gone]
    decoder.owner.layers = nn.ModuleList([decoder.layers[index] for index in kept])
    for position, layer in enumerate(decoder.layers):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = position  # the KV cache indexes by it
    _keep_layers_in_config(model, kept, total)


def _keep_layers_in_config(model: PreTrainedModel, kept: list[int], total: int) -> None:
    """Set the layer count and cut lists with an entry a layer (`layer_types` and its like)."""
    config = model.config
    for name, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == total and not name.endswith("token_id"):
            setattr(config, name, [value[index] for index in kept])
    config.num_hidden_layers = len(kept)
    if config.is_heterogeneous:
        own = {int(layer): fields for layer, fields in config.to_dict()["per_layer_config"].items()}
        config.per_layer_config = {new: own[old] for new, old in enumerate(kept) if old in own}
    if hasattr(config, "max_window_layers"):  # Qwen: layers from this one on use the sliding window
        config.max_window_layers = sum(index < config.max_window_layers for index in kept)


# --------------------------------------------------------------------------------------- heads and channels


def keep_heads(model: PreTrainedModel, layer: int, heads: Sequence[int], kv_heads: Sequence[int] | None = None) -> None:
    """Keep these query heads of a layer in place, and the KV heads that they read; the others go.

    Each KV head that stays must keep as many query heads as every other (grouped-query attention knows no
    other shape). `kv_heads`, where given, must be those that the kept heads read. Raises ModelError otherwise.
    """
    view = Decoder(model).view(layer)
    chosen = _chosen(heads, view.heads, f"heads to keep in layer {layer}")
    group = view.heads // view.kv_heads
    read = [head // group for head in chosen]
    kept_kv = sorted(set(read))
    if kv_heads is not None and sorted(kv_heads) != kept_kv:
        raise ModelError(
            f"kv_heads in layer {layer} must be the ones that its kept heads read, {kept_kv}, got {sorted(kv_heads)}; "
            "keep a query head of each, or leave kv_heads out"
        )
    if len({read.count(kv) for kv in kept_kv}) > 1:
        raise ModelError(
            f"each KV head of layer {layer} must keep equally many of its {group} query heads, got "
            f"{ {kv: read.count(kv) for kv in kept_kv} }; keep the same number in each, or whole groups"
        )
    with torch.no_grad():
        columns = _units(chosen, view.head_dim)
        parts = ((view.query, columns), *((part, _units(kept_kv, view.head_dim)) for part in (view.key, view.value)))
        _keep_rows(parts)
        _keep_columns(view.out, columns)
    set_heads(view.attention, len(chosen), len(kept_kv), model.config)


def keep_channels(model: PreTrainedModel, layer: int, channels: Sequence[int]) -> None:
    """Keep these channels of a layer's MLP in place. Raises ModelError for one that isn't there, or none."""
    view = Decoder(model).view(layer)
    chosen = torch.tensor(_chosen(channels, view.channels, f"channels to keep in layer {layer}"))
    with torch.no_grad():
        _keep_rows(tuple((rows, chosen) for rows in (view.gate, view.up) if rows is not None))
        _keep_columns(view.down, chosen)
    for module in view.module.modules():
        _set_size(module, "intermediate_size", len(chosen))


def add_output_bias(model: PreTrainedModel, layer: int, attention: Tensor | None, mlp: Tensor | None) -> None:
    """Add a vector [hidden] to what a layer's attention or MLP gives, in the bias of its output projection."""
    view = Decoder(model).view(layer)
    for linear, bias in ((view.out, attention), (view.down, mlp)):
        if bias is not None:
            with torch.no_grad():
                if linear.bias is None:
                    give_zero_bias(linear)
                linear.bias = in_place_of(linear.bias + bias.to(linear.bias), linear.bias)


def remove_attention(model: PreTrainedModel, layer: int) -> None:
    """Leave a layer its MLP alone, in place. Raises ModelError where it has no attention any more."""
    view = Decoder(model).view(layer)
    view.module.set_submodule(view.layout.attention, _nothing_of(view))


def without_attention(view: LayerView) -> nn.Module:
    """A layer that shares all but its attention with that of the view, and has none."""
    layer = copy.copy(view.module)
    layer._modules = dict(layer._modules)
    layer.set_submodule(view.layout.attention, _nothing_of(view))
    return layer


def _nothing_of(view: LayerView) -> NoHeads:
    if not view.attends:
        raise ModelError("attention can be removed from a layer that has it, got one without; name another layer")
    return NoHeads(view.attention)


def _chosen(indices: Sequence[int], total: int, what: str) -> list[int]:
    chosen = sorted(int(index) for index in indices)
    if not chosen or len(set(chosen)) < len(chosen) or chosen[0] < 0 or chosen[-1] >= total:
        raise ModelError(f"{what} must be at least one of 0..{total - 1}, each once, got {chosen}")
    return chosen


def _units(indices: Sequence[int], size: int) -> Tensor:
    """The positions of units of `size` neighbours each: (1, 3), 2 -> 2 3 6 7."""
    return (torch.tensor(indices)[:, None] * size + torch.arange(size)).flatten()


def _keep_rows(parts: Sequence[tuple[Rows, Tensor]]) -> None:
    """Keep in each linear the chosen positions of every part of it, in the order of its rows."""
    kept: dict[nn.Linear, list[Tensor]] = {}
    for rows, positions in parts:
        kept.setdefault(rows.linear, []).append(rows.index[positions.to(rows.index.device)])
    for linear, indices in kept.items():
        _keep_outputs(linear, torch.cat(indices).sort().values)


def _keep_outputs(linear: nn.Linear, index: Tensor) -> None:
    linear.weight = in_place_of(linear.weight[index.to(linear.weight.device)], linear.weight)
    if linear.bias is not None:
        linear.bias = in_place_of(linear.bias[index.to(linear.bias.device)], linear.bias)
    linear.out_features = len(index)


def _keep_columns(matrix: nn.Linear | nn.Embedding, index: Tensor) -> None:
    matrix.weight = in_place_of(matrix.weight[:, index.to(matrix.weight.device)], matrix.weight)
    if isinstance(matrix, nn.Linear):
        matrix.in_features = len(index)


def _keep_norm(norm: nn.Module, index: Tensor) -> None:
    norm.weight = in_place_of(norm.weight[index.to(norm.weight.device)], norm.weight)


def in_place_of(values: Tensor, like: nn.Parameter) -> nn.Parameter:
    """A parameter of these values, to stand where `like` stood; `like` stays as it was."""
    return belongs_with(nn.Parameter(values.contiguous(), requires_grad=like.requires_grad), like)


def give_zero_bias(linear: nn.Linear) -> None:
    """A bias of zeros in place of the one that it has or lacks."""
    weight = linear.weight
    linear.bias = in_place_of(weight.new_zeros(linear.out_features), weight)


def _set_size(module: nn.Module, name: str, size: int) -> None:
    """Some modules repeat their sizes as attributes."""
    if hasattr(module, name):
        setattr(module, name, size)


# ------------------------------------------------------------------------------------------ the hidden size


def keep_hidden(model: PreTrainedModel, dims: Sequence[int]) -> None:
    """Keep these dimensions of the residual stream in place: in the embeddings, every norm and projection, the head.

    Gemma multiplies its embeddings by the square root of the hidden size. The weights stay, so that a tied
    head stays exact, and the factor follows the new size, as the stock architecture computes it: embeddings
    enter the stream smaller beside what the layers add.
    Raises ModelError where the configuration derives the size of a head from the hidden size (OPT, GPT-NeoX).
    """
    decoder = Decoder(model)
    embeddings = model.get_submodule(decoder.layout.embeddings)
    total = embeddings.embedding_dim
    chosen = _chosen(dims, total, "hidden dimensions to keep")
    if decoder.layout.head_dim_from_hidden:
        raise ModelError(
            "the hidden size can be pruned where the size of a head is a setting of its own, got "
            f"{model.config.model_type}, which derives it from the hidden size; prune heads, channels or layers"
        )
    head = model.get_output_embeddings()
    tied = head.weight is embeddings.weight
    index = torch.tensor(chosen)
    with torch.no_grad():
        _keep_columns(embeddings, index)
        if tied:
            head.weight, head.in_features = embeddings.weight, len(chosen)
        else:
            _keep_columns(head, index)
        _keep_norm(model.get_submodule(decoder.layout.final_norm), index)
        for _, view in decoder.in_turn():
            for norm in view.norms.values():
                _keep_norm(norm, index)
            for linear in view.linears.values():
                if linear in (view.out, view.down):
                    _keep_outputs(linear, index)
                else:
                    _keep_columns(linear, index)
    put_away((embeddings.weight, head.weight))
    for module in model.modules():
        _set_size(module, "hidden_size", len(chosen))
    embeddings.embedding_dim = len(chosen)
    if hasattr(embeddings, "embed_scale"):
        embeddings.scalar_embed_scale = len(chosen) ** 0.5
        embeddings.embed_scale.fill_(embeddings.scalar_embed_scale)
