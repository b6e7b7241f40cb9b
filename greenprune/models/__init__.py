"""Load, view, reshape and save models; see load.py, decoder.py and surgery.py."""

from greenprune.models.decoder import Decoder
from greenprune.models.load import load_checkpoint, load_model, load_tokenizer, save_checkpoint
from greenprune.models.surgery import remove_layers

__all__ = ["Decoder", "load_checkpoint", "load_model", "load_tokenizer", "remove_layers", "save_checkpoint"]
