"""Load, view, reshape and save models; architectures.py has an entry for each that is known."""

from greenprune.models.decoder import Decoder, LayerView, Rows
from greenprune.models.load import (
    load_checkpoint,
    load_model,
    load_split,
    load_streamed,
    load_tokenizer,
)
from greenprune.models.saved import save_checkpoint
from greenprune.models.stock_form import fit_class_and_config
from greenprune.models.surgery import add_output_bias, keep_channels, keep_heads, keep_hidden, remove_layers

__all__ = [
    "Decoder",
    "LayerView",
    "Rows",
    "add_output_bias",
    "fit_class_and_config",
    "keep_channels",
    "keep_heads",
    "keep_hidden",
    "load_checkpoint",
    "load_model",
    "load_split",
    "load_streamed",
    "load_tokenizer",
    "remove_layers",
    "save_checkpoint",
]
