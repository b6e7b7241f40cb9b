"""Make a model's class and configuration say what its shape is, once surgery.py has changed it.

A model that Transformers can describe stays an ordinary checkpoint of its architecture. One whose layers differ in
width becomes its Pruned… class (modeling_pruned.py), whose code travels with the checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig, PreTrainedModel

from greenprune.errors import ModelError
from greenprune.models.architectures import ARCHITECTURES, architecture_of
from greenprune.models.decoder import Decoder, of_one_width
from greenprune.models.modeling_pruned import (
    BIASES,
    LINEARS,
    auto_map,
    pruned_class,
    set_heads,
    set_per_layer_config,
)
from greenprune.models.surgery import give_zero_bias

Needs = Literal["transformers", "trust_remote_code"]
# What a Pruned… class has in its configuration beside the stock fields
OF_PRUNED = {"per_layer_config", "allow_global_per_layer_attribute_access", "auto_map", *BIASES}


@dataclass(frozen=True)
class StockForm:
    """How a stock class takes a model's shape: fields of its configuration, and biases that it has more (zeros)."""

    fields: dict[str, Any]
    biases: list[str]


def fit_class_and_config(model: PreTrainedModel) -> Needs:
    """Make class and configuration fit the model's shape; gives what it takes to load its checkpoint.

    Where the stock configuration can say it, the model is of its stock class ("transformers"), if need be with
    zero biases beside those that pruning added; or of another architecture's class that computes the same. Otherwise
    it becomes its Pruned… class, whose code save_pretrained writes into the checkpoint ("trust_remote_code"). A second
    call changes nothing.

    Raises ModelError for a model of other code than Transformers' whose own configuration can't say it.
    """
    stock = architecture_of(model).stock
    pruned = pruned_class(stock)
    foreign = type(model) is not stock and type(model).__name__ != pruned.__name__
    target = type(model) if foreign else stock
    if form := _stock_form(model, target, model.config):
        _set_stock(model, target, form)
    elif not foreign and (same := _same_function(model)):
        become(model, *same)
        fit_class_and_config(model)
    elif foreign:
        raise ModelError(
            f"layers of different widths need Transformers' own code of an architecture, got {type(model).__name__}; "
            "prune to one width for all layers, or load the model without trust_remote_code"
        )
    else:
        _check_names(model)
        _set_pruned(model, pruned)
    for view in Decoder(model).views():
        set_heads(view.attention, view.heads, view.kv_heads, model.config)
    return "trust_remote_code" if model.is_remote_code() else "transformers"


def _check_names(model: PreTrainedModel) -> None:
    """Raises ModelError where a Pruned… class would build a linear of the stock width, since its name is unknown."""
    names = {path.rpartition(".")[2] for path in architecture_of(model).layout.linears}
    if unknown := sorted(names - LINEARS.keys()):
        raise ModelError(
            f"layers of different widths need linears named {', '.join(LINEARS)}, got {', '.join(unknown)} in "
            f"{model.config.model_type}; add what they hold to LINEARS in greenprune/models/modeling_pruned.py, or "
            "prune to one width for all layers"
        )


def _same_function(model: PreTrainedModel) -> tuple[type[PreTrainedModel], PreTrainedConfig] | None:
    """A stock class that computes the same and can have this shape, and the configuration to begin from."""
    if sees_less(model.config) or not of_one_width(Decoder(model).views()):
        return None
    for name in architecture_of(model).same_as:
        other = ARCHITECTURES[name].stock
        known = other.config_class().to_dict().keys() - {"model_type", "layer_types", "transformers_version"}
        fields = {key: value for key, value in model.config.to_dict().items() if key in known}
        view = Decoder(model).view(0)
        fields |= {"sliding_window": None, "head_dim": view.head_dim}
        for heads in (model.config.num_attention_heads, view.heads):
            config = _accepted(other.config_class(), fields | {"num_attention_heads": heads})
            if config is not None and _stock_form(model, other, config):
                return other, config
    return None


def sees_less(config: PreTrainedConfig) -> bool:
    """Whether some layer's attention has a window."""
    kinds = getattr(config, "layer_types", None)
    return any("sliding" in kind for kind in kinds) if kinds else getattr(config, "sliding_window", None) is not None


def become(model: PreTrainedModel, target: type[PreTrainedModel], config: PreTrainedConfig) -> None:
    """The same tensors as a model of another architecture, whose modules have the same names."""
    with torch.device("meta"):
        theirs = dict(target(config).named_modules())
    for name, module in model.named_modules():
        module.__class__ = type(theirs[name])
        if hasattr(module, "config"):
            module.config = config


def _stock_form(model: PreTrainedModel, target: type[PreTrainedModel], config: PreTrainedConfig) -> StockForm | None:
    """How `config` becomes that of this shape; None where `target` can't have it; the fewest biases otherwise.

    The judge is the class itself, built without memory: what it gives is what from_pretrained will build.
    """
    views = Decoder(model).views()
    if not of_one_width(views):
        return None
    fields = _fields(model, views[0].heads, views[0].kv_heads, views[0].channels)
    off = [name for name in ARCHITECTURES[config.model_type].layout.config_biases if not getattr(config, name)]
    for number in range(len(off) + 1):
        for flags in combinations(off, number):
            wanted = fields | dict.fromkeys(flags, True)
            accepted = _accepted(config, wanted)
            biases = _missing_biases(model, target, accepted) if accepted is not None else None
            if biases is not None:
                return StockForm(wanted, biases)
    return None


def _fields(model: PreTrainedModel, heads: int, kv_heads: int, channels: int) -> dict[str, Any]:
    """The configuration's fields for these widths, under the names of the architecture."""
    config, decoder = model.config, Decoder(model)
    fields = {"num_attention_heads": heads, decoder.layout.config_channels: channels}
    if decoder.layout.head_dim_from_hidden:
        return fields
    hidden, head_dim = model.get_input_embeddings().embedding_dim, decoder.view(0).head_dim
    if hasattr(config, "head_dim") or head_dim != hidden // heads:
        fields["head_dim"] = head_dim  # Qwen 2 and Phi-3 read it too, though their configurations don't list it
    return fields | {"hidden_size": hidden, "num_key_value_heads": kv_heads}


def _accepted(config: PreTrainedConfig, fields: dict[str, Any]) -> PreTrainedConfig | None:
    """The configuration with these fields, as it will be read from its file; None where its class refuses them."""
    written = {name: value for name, value in config.to_dict().items() if name not in OF_PRUNED}
    try:
        return type(config).from_dict(written | fields)
    except (ValueError, StrictDataclassError):
        return None


def _missing_biases(
    model: PreTrainedModel, target: type[PreTrainedModel], config: PreTrainedConfig
) -> list[str] | None:
    """The biases that the layers of `target(config)` have more than the model's; None where they differ otherwise."""
    try:
        with torch.device("meta"):
            built = target(config)
    except ValueError:  # OPT: heads that don't divide the hidden size
        return None
    theirs, ours = _shapes(built), _shapes(model)
    more = sorted(theirs.keys() - ours.keys())
    same = all(theirs.get(name) == shape for name, shape in ours.items())
    same_heads = Decoder(built).view(0).head_dim == Decoder(model).view(0).head_dim
    return more if same and same_heads and all(name.endswith(".bias") for name in more) else None


def _shapes(model: PreTrainedModel) -> dict[str, torch.Size]:
    owner = Decoder(model).owner
    return {name: tensor.shape for name, tensor in (*owner.named_parameters(), *owner.named_buffers())}


def _set_stock(model: PreTrainedModel, target: type[PreTrainedModel], form: StockForm) -> None:
    config = model.config
    if config.is_heterogeneous:
        config.per_layer_config = None
        for name in OF_PRUNED - {"per_layer_config"}:
            vars(config).pop(name, None)
    for name, value in form.fields.items():
        setattr(config, name, value)
    for name in form.biases:
        give_zero_bias(Decoder(model).owner.get_submodule(name.removesuffix(".bias")))
    model.__class__ = target


def _set_pruned(model: PreTrainedModel, pruned: type[PreTrainedModel]) -> None:
    """The configuration gets the widths layer by layer; its own fields stay those of the model before it was pruned."""
    config, decoder = model.config, Decoder(model)
    config.per_layer_config = None
    for name, value in _common_fields(model).items():
        setattr(config, name, value)
    layers = {}
    for layer, view in enumerate(decoder.views()):
        layers[layer] = {"num_attention_heads": view.heads, decoder.layout.config_channels: view.channels}
        layers[layer] |= zip(
            BIASES, (view.attends and view.out.bias is not None, view.down.bias is not None), strict=True
        )
        if not decoder.layout.head_dim_from_hidden:
            layers[layer]["num_key_value_heads"] = view.kv_heads
    set_per_layer_config(config, layers)
    # Not beside what is there: a base's own entries name files that this checkpoint doesn't have.
    config.auto_map = auto_map(pruned, type(model.base_model))
    model.__class__ = pruned


def _common_fields(model: PreTrainedModel) -> dict[str, Any]:
    """What all layers have in common: sizes of the residual stream and of a head, and numbers of heads for those who
    ask the configuration as a whole. They must be such as its class accepts: some refuse what doesn't divide the hidden
    size."""
    config, layout, head_dim = model.config, Decoder(model).layout, Decoder(model).view(0).head_dim
    hidden = model.get_input_embeddings().embedding_dim
    if layout.head_dim_from_hidden:
        return {"num_attention_heads": hidden // head_dim}
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    for common_kv_heads in (kv_heads, 1):
        for common_heads in (heads, hidden // head_dim, *range(heads - 1, 0, -1)):
            fields = {"hidden_size": hidden, "head_dim": head_dim, "num_attention_heads": common_heads}
            fields["num_key_value_heads"] = common_kv_heads
            if common_heads and common_heads % common_kv_heads == 0 and _accepted(config, fields) is not None:
                return fields
    raise AssertionError("a decoder has a number of heads that its configuration accepts")
