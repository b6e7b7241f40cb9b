"""A checkpoint as one GGUF file, which llama.cpp runs.

Layers of one width are an architecture that llama.cpp knows; layers of different widths need one whose sizes are lists:
`deci` for what is a Llama (Mistral and Qwen 2 are: with biases, or without), `openelm` for Qwen 3 with tied embeddings.

write_gguf(Path("checkpoint"), Path("model.gguf"), "q8_0")
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from greenprune.config.serving import GGUF_FORMS
from greenprune.errors import ModelError

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedConfig

PLAIN = ("f32", "f16")
QUANTISED = {"q8_0": "LLAMA_FTYPE_MOSTLY_Q8_0", "q4_k_m": "LLAMA_FTYPE_MOSTLY_Q4_K_M"}  # by llama.cpp itself
TEXT = "In 1984, 3 of 27 trees (11.1 %) weren't green:\n\n  the ÄLTESTE of them – it's 300!"  # that all must read alike
BIAS_FIELDS = ("attention_bias", "mlp_bias", "o_proj_bias", "down_proj_bias")


def can_write(config: PreTrainedConfig) -> str | None:
    """None where a checkpoint of this configuration can be written as GGUF, else why not: rule, got, remedy."""
    form = GGUF_FORMS.get(config.model_type)
    uniform = "set prune.uniform: true"
    if form is None:
        return f"GGUF is written of {', '.join(GGUF_FORMS)}, got {config.model_type}; serve it by transformers"
    biased = any(getattr(own, name, False) for own in config.per_layer_config for name in BIAS_FIELDS)
    without_attention = not all(own.num_attention_heads for own in config.per_layer_config)
    unlike_openelm = form.per_layer == "openelm" and (biased or without_attention or not config.tie_word_embeddings)
    if _differs(config) and (form.per_layer is None or unlike_openelm):
        wanted = "llama, mistral and qwen2, and qwen3 without biases and with tied embeddings"
        return f"llama.cpp runs layers of different widths of {wanted}, got {config.model_type}; {uniform}"
    if without_attention and not config.per_layer_config[0].num_attention_heads:
        return "the first layer of a GGUF must have attention, got none there; set prune.skip_first: 1"
    if biased and not form.biases:
        return (
            f"llama.cpp has no biases of projections in {config.model_type}, got some; prune by flap with bias: false, "
            "or set prune.reconstruct to none"
        )
    return _what_is_odd(config)


def _what_is_odd(config: PreTrainedConfig) -> str | None:
    """Settings that llama.cpp's architecture doesn't have."""
    act = getattr(config, "hidden_act", None) or getattr(config, "hidden_activation", None)
    expected = "gelu_pytorch_tanh" if config.model_type.startswith("gemma") else "silu"
    kinds = {rope.get("rope_type", "default") for rope in _ropes(config).values()}
    if act != expected:
        return f"GGUF's {config.model_type} has the activation {expected}, got {act}; serve it by transformers"
    if unknown := kinds - {"default", "linear", "llama3"}:
        return f"rotary scaling must be default, linear or llama3, got {unknown.pop()}; serve it by transformers"
    if config.model_type == "gemma3_text" and config.query_pre_attn_scalar != config.head_dim:
        return f"query_pre_attn_scalar must be head_dim, got {config.query_pre_attn_scalar}; serve it by transformers"
    return None


def _differs(config: PreTrainedConfig) -> bool:
    """Whether layers differ in width. Biases of some layers alone don't count: llama.cpp takes those that there are."""
    names = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
    return len({tuple(getattr(own, name, None) for name in names) for own in config.per_layer_config}) > 1


def _ropes(config: PreTrainedConfig) -> dict[str, Mapping[str, Any]]:
    """Rotary settings by layer type, "" where all layers have the same."""
    rope = getattr(config, "rope_parameters", None) or {}
    return rope if rope and all(isinstance(value, Mapping) for value in rope.values()) else {"": rope}


def write_gguf(checkpoint: Path, out: Path, type: str = "f32") -> None:
    """The model and the tokenizer in the folder `checkpoint` as the file `out`, which is there when it is complete.

    f32 and f16 need only pip's `gguf`; q8_0 and q4_k_m are made by llama.cpp of an f32 file beside it.
    Raises ModelError for a model or a tokenizer that llama.cpp can't have, where llama.cpp isn't installed or refuses
    to quantise, and where it is and reads another model than the checkpoint.
    """
    if type not in (*PLAIN, *QUANTISED):
        raise ModelError(f"the type of a GGUF must be one of {', '.join((*PLAIN, *QUANTISED))}, got {type}")
    quantiser = _quantiser() if type in QUANTISED else None
    config = read_config(checkpoint)
    if reason := can_write(config):
        raise ModelError(reason)
    partial, whole = (out.with_name(f".{out.name}.{part}") for part in ("partial", "f32"))
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        _write(checkpoint, config, whole if quantiser else partial, half=type == "f16")
        check_gguf(whole if quantiser else partial, checkpoint)
        if quantiser:
            quantiser(whole, partial, QUANTISED[type])
        partial.replace(out)
    finally:
        for path in (partial, whole):
            path.unlink(missing_ok=True)


def read_config(checkpoint: Path) -> PreTrainedConfig:
    """Of a checkpoint's config.json, without code that lies beside it; an older one of ours in today's terms."""
    from transformers import AutoConfig

    from greenprune.models.modeling_pruned import use_per_layer_config

    config = AutoConfig.from_pretrained(checkpoint)
    if hasattr(config, "layer_widths"):
        use_per_layer_config(config)
    return config


def _write(checkpoint: Path, config: PreTrainedConfig, out: Path, half: bool) -> None:
    """Matrices in f16 where `half`, all else in f32. One tensor at a time is in memory."""
    import gguf
    import numpy

    from greenprune.engines.gguf_tensors import tensors_of
    from greenprune.engines.gguf_tokenizer import add_tokenizer

    form = GGUF_FORMS[config.model_type]
    name = form.per_layer if _differs(config) and form.per_layer else form.uniform
    writer = gguf.GGUFWriter(out, name)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if half else gguf.LlamaFileType.ALL_F32)
    _add_sizes(writer, config, as_list=name == form.per_layer)
    _add_rope(writer, config)
    add_tokenizer(writer, checkpoint, config.vocab_size)
    tensors = tensors_of(checkpoint, config, name, form.pairs)
    kinds = {
        key: numpy.dtype("float16" if half and len(each.shape) > 1 else "float32") for key, each in tensors.items()
    }
    for key, each in tensors.items():
        writer.add_tensor_info(key, each.shape, kinds[key], math.prod(each.shape) * kinds[key].itemsize)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for key, each in tensors.items():
            writer.write_tensor_data(each.values().astype(kinds[key]))
    finally:
        writer.close()


def _add_sizes(writer: GGUFWriter, config: PreTrainedConfig, as_list: bool) -> None:
    layers = list(config.per_layer_config)

    def each(name: str) -> Any:
        sizes = [getattr(own, name) for own in layers]
        return sizes if as_list else sizes[0]

    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    window = _window(config)
    alternates = config.model_type == "gemma3_text" and window is not None
    longest = config.max_position_embeddings
    # Elsewhere llama.cpp knows no window: up to its length there is none
    writer.add_context_length(longest if alternates or window is None else min(longest, window))
    writer.add_vocab_size(config.vocab_size)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(len(layers))
    writer.add_feed_forward_length(each("intermediate_size"))
    writer.add_head_count(each("num_attention_heads"))
    writer.add_head_count_kv(each("num_key_value_heads"))
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if alternates:
        assert window is not None
        writer.add_sliding_window(window)
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config.layer_types])
        if cap := config.final_logit_softcapping:
            writer.add_final_logit_softcapping(cap)


def _window(config: PreTrainedConfig) -> int | None:
    """Tokens that some layer sees at most; None where all see all."""
    kinds = getattr(config, "layer_types", None)
    used = "sliding_attention" in kinds if kinds else getattr(config, "use_sliding_window", True)
    return getattr(config, "sliding_window", None) if used else None


def _add_rope(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    import gguf

    ropes = _ropes(config)
    rope = ropes.get("full_attention", next(iter(ropes.values())))
    writer.add_rope_freq_base(rope.get("rope_theta", 10000.0))
    if "sliding_attention" in ropes:
        writer.add_rope_freq_base_swa(ropes["sliding_attention"]["rope_theta"])
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])


def check_gguf(path: Path, checkpoint: Path) -> None:
    """Raises ModelError where llama.cpp, if it is installed, gives other logits or tokens than the checkpoint."""
    try:
        from llama_cpp import Llama
    except ImportError:
        return
    import torch

    from greenprune.models import load_tokenizer
    from greenprune.models.load import load_in_files
    from greenprune.models.saved import TOKENS, check_logits, logits_of_prompt, short_prompt

    expected = logits_of_prompt(load_in_files(checkpoint))
    loaded = Llama(str(path), n_ctx=TOKENS, logits_all=True, type_k=0, type_v=0, verbose=False)
    try:
        loaded.eval(short_prompt(expected.shape[1]))
        check_logits(expected, loaded.scores[:TOKENS], torch.float16, f"llama.cpp's {path.name}")
        ours = load_tokenizer(checkpoint).encode(TEXT, add_special_tokens=False)
        theirs = loaded.tokenize(TEXT.encode(), add_bos=False, special=False)
    finally:
        loaded.close()
    if ours != theirs:
        raise ModelError(f"llama.cpp must read a text as the tokenizer does, got {theirs[:20]} of {ours[:20]}")


def _quantiser() -> Callable[[Path, Path, str], None]:
    """llama.cpp's own: of a file, to a file, by a file type's name. Raises ModelError where it isn't installed."""
    try:
        import llama_cpp
    except ImportError:
        raise ModelError(
            f"{' and '.join(QUANTISED)} need llama.cpp, got no llama_cpp; pip install llama-cpp-python, or choose one "
            f"of {', '.join(PLAIN)}"
        ) from None

    def quantise(source: Path, target: Path, name: str) -> None:
        parameters = llama_cpp.llama_model_quantize_default_params()
        parameters.ftype = getattr(llama_cpp, name)
        if llama_cpp.llama_model_quantize(bytes(source), bytes(target), ctypes.byref(parameters)):
            raise ModelError(
                f"llama.cpp must be able to quantise what was written, got an error for {name}; choose f16"
            )

    return quantise
