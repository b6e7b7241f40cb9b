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
from greenprune.models.architectures import architecture_of
from greenprune.models.decoder import Decoder, LayerView
from greenprune.models.modeling_pruned import LINEARS, pruned_class, set_heads
from greenprune.models.surgery import give_zero_bias

Needs = Literal["transformers", "trust_remote_code"]


@dataclass(frozen=True)
class StockForm:
    """How a stock class takes a model's shape: fields of its configuration, and biases that it has more (zeros)."""

    fields: dict[str, Any]
    biases: list[str]


def fit_class_and_config(model: PreTrainedModel) -> Needs:
    """Make class and configuration fit the model's shape; gives what it takes to load its checkpoint.

    Where the stock configuration can say it, the model is of its stock class ("transformers"), if need be with
    zero biases beside those that pruning added. Otherwise it becomes its Pruned… class, whose code save_pretrained
    writes into the checkpoint ("trust_remote_code"). A second call changes nothing.

    Raises ModelError for a model of other code than Transformers' whose own configuration can't say it.
    """
    stock = architecture_of(model).stock
    pruned = pruned_class(stock)
    foreign = type(model) is not stock and type(model).__name__ != pruned.__name__
    target = type(model) if foreign else stock
    if form := _stock_form(model, target):
        _set_stock(model, target, form)
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


def _stock_form(model: PreTrainedModel, target: type[PreTrainedModel]) -> StockForm | None:
    """None where `target` can't have this shape; the fewest biases otherwise.

    The judge is the class itself, built without memory: what it gives is what from_pretrained will build.
    """
    views = Decoder(model).views()
    if len({(view.heads, view.kv_heads, view.channels) for view in views}) > 1 or not views[0].attends:
        return None
    fields = _fields(model, views[0].heads, views[0].kv_heads, views[0].channels)
    off = [name for name in Decoder(model).layout.config_biases if not getattr(model.config, name)]
    for number in range(len(off) + 1):
        for flags in combinations(off, number):
            wanted = fields | dict.fromkeys(flags, True)
            accepted = _accepted(model.config, wanted)
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
    try:
        return type(config).from_dict(config.to_dict() | fields)
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
    if hasattr(config, "layer_widths"):
        del config.layer_widths, config.auto_map
    for name, value in form.fields.items():
        setattr(config, name, value)
    for name in form.biases:
        give_zero_bias(Decoder(model).owner.get_submodule(name.removesuffix(".bias")))
    model.__class__ = target


def _set_pruned(model: PreTrainedModel, pruned: type[PreTrainedModel]) -> None:
    """The configuration gets the widths layer by layer, and in its own fields the largest of them."""
    config, views = model.config, Decoder(model).views()
    for name, value in _largest_fields(model, views).items():
        setattr(config, name, value)
    config.layer_widths = [
        {
            "heads": view.heads,
            "kv_heads": view.kv_heads,
            "channels": view.channels,
            "attention_bias": view.attends and view.out.bias is not None,
            "mlp_bias": view.down.bias is not None,
        }
        for view in views
    ]
    # Not beside what is there: a base's own entries name files that this checkpoint doesn't have.
    config.auto_map = {"AutoModelForCausalLM": f"{pruned.__module__.rpartition('.')[2]}.{pruned.__name__}"}
    model.__class__ = pruned


def _largest_fields(model: PreTrainedModel, views: list[LayerView]) -> dict[str, Any]:
    """Fields that the configuration's class accepts: some refuse numbers of heads that don't divide the hidden size.

    The number of heads decides nothing in a Pruned… class but, in some architectures, the size of a head.
    """
    most_heads, most_kv_heads, channels = (
        max(getattr(view, name) for view in views) for name in ("heads", "kv_heads", "channels")
    )
    derived = Decoder(model).layout.head_dim_from_hidden
    fitting = model.get_input_embeddings().embedding_dim // views[0].head_dim
    for heads in (fitting,) if derived else (most_heads, fitting, *range(most_heads - 1, 0, -1)):
        fields = _fields(model, heads, min(heads, most_kv_heads), channels)
        if _accepted(model.config, fields) is not None:
            return fields
    raise AssertionError("a decoder has a number of heads that its configuration accepts")
