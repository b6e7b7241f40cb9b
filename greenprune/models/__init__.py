"""Load, view, reshape and save models; see load.py, decoder.py and surgery.py."""

from greenprune.models.decoder import Decoder, LayerView, Rows
from greenprune.models.load import load_checkpoint, load_model, load_tokenizer, save_checkpoint
from greenprune.models.surgery import add_output_bias, keep_channels, keep_heads, keep_hidden, remove_layers, settle

__all__ = [
    "Decoder",
    "LayerView",
    "Rows",
    "add_output_bias",
    "keep_channels",
    "keep_heads",
    "keep_hidden",
    "load_checkpoint",
    "load_model",
    "load_tokenizer",
    "remove_layers",
    "save_checkpoint",
    "settle",
]
