"""Write a checkpoint. Is what was written the model that was in memory? A short prompt's logits tell.

A tensor that config.json doesn't announce is left out without an error by whoever loads the checkpoint, and the model
is another: a bias of FLAP's, and vLLM says not even a word.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from greenprune.errors import ModelError
from greenprune.models.decoder import Decoder
from greenprune.models.load import load_in_files
from greenprune.models.parts import save_in_parts

TOKENS = 8
# Largest difference of two logits, as a share of the largest logit: one model on a CPU and a GPU, or by two engines
OFF_BY = {torch.float32: 2e-3, torch.bfloat16: 5e-2, torch.float16: 2e-2}


def short_prompt(vocabulary: int) -> list[int]:
    """Tokens from all over the vocabulary, the same each time; what they say matters to nobody."""
    return [(2 * place + 1) * vocabulary // (2 * TOKENS) for place in range(TOKENS)]


@torch.no_grad()
def logits_of_prompt(model: PreTrainedModel) -> Tensor:
    """[TOKENS, vocabulary], fp32, on the CPU. A model that is in its files stays there."""
    training = model.training
    prompt = torch.tensor([short_prompt(model.get_input_embeddings().num_embeddings)], device=model.device)
    with Decoder(model).one_at_a_time():
        logits = model.eval()(prompt, use_cache=False).logits[0].float().cpu()
    model.train(training)
    return logits


def save_checkpoint(model: PreTrainedModel, tokenizer: Any, folder: Path) -> None:
    """Write a Transformers checkpoint (safetensors) with its tokenizer, and the code that its class needs.

    Raises ModelError where what was written doesn't load as the model in memory.
    """
    save_in_parts(model, folder)
    tokenizer.save_pretrained(folder)
    check_saved(model, folder)


def check_saved(model: PreTrainedModel, folder: Path) -> None:
    """Raises ModelError where the checkpoint in `folder`, loaded again, isn't the model."""
    loaded = load_in_files(folder, trust_remote_code=model.is_remote_code())
    ours, theirs = ({name: tensor.shape for name, tensor in each.state_dict().items()} for each in (model, loaded))
    if differ := sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)):
        raise ModelError(
            f"a checkpoint must load as the model that was saved, got other tensors in {folder}: "
            f"{', '.join(differ[:5])}{' …' if len(differ) > 5 else ''}; its config.json doesn't describe them"
        )
    check_logits(logits_of_prompt(model), logits_of_prompt(loaded), model.dtype, f"the checkpoint in {folder}")


def check_logits(expected: Tensor, got: Tensor | Sequence[Sequence[float]], dtype: torch.dtype, of: str) -> None:
    """Raises ModelError where logits [tokens, vocabulary] aren't the expected ones; of: whose they are."""
    got = torch.as_tensor(got, dtype=torch.float32)
    most = OFF_BY.get(dtype, OFF_BY[torch.float32]) * expected.nan_to_num().abs().max().item()
    if not torch.allclose(got, expected, rtol=0, atol=most, equal_nan=True):
        raise ModelError(
            f"{of} must give the logits of the model in memory within {most:.3g}, got up to "
            f"{(got - expected).abs().max():.3g} off; it is another model, don't use it"
        )
