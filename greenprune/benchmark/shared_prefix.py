"""lm-eval's HFLM with the same answers in a fraction of the time.

    from greenprune.benchmark.shared_prefix import SharedPrefixLM
    lm = SharedPrefixLM(pretrained=model, tokenizer=tokenizer, batch_size=16, max_length=2048)
    lm_eval.simple_evaluate(model=lm, tasks=["hellaswag"])

HFLM runs the context again for each choice, takes logits and a log-softmax of the whole vocabulary at every
position, and asks the device for each answer alone. Here

- what requests begin with in common is computed once (prefix_tree.py),
- logits are taken only where a continuation is scored, in pieces, and reduced by logsumexp in fp32,
- a batch is bounded by its tokens, and halves where memory runs out,
- a batch's answers come to the host in one copy,
- strings are tokenised once for all models of one tokenizer.

Where a model can't do this, HFLM's own code runs and the log says why.
"""

from __future__ import annotations

import hashlib
import logging
from array import array
from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from typing import Any
from weakref import WeakKeyDictionary

import torch
import tqdm
from accelerate.utils.memory import should_reduce_batch_size
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils_hf import clear_torch_cache
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformers import LogitsProcessorList, PreTrainedModel

from greenprune.benchmark.finite import FiniteLogits, check_finite
from greenprune.benchmark.prefix_tree import (
    Tree,
    TreeBatch,
    ancestors,
    grow,
    is_plain,
    padded,
    starts,
    take_batch,
    width_of,
)
from greenprune.config import tokens_a_sequence
from greenprune.models.architectures import ARCHITECTURES, architecture_of
from greenprune.models.decoder import LOGITS_AT_ONCE, Decoder

log = logging.getLogger("greenprune")
AUTO_BATCH_SIZE = 64
CACHED_CHARACTERS = 1 << 28

TokenRequest = tuple[tuple[str, str] | None, list[int], list[int]]
Answer = tuple[float, bool]


class SharedPrefixLM(HFLM):
    """HFLM that computes what requests have in common once. Takes HFLM's arguments.

    batch_size: a batch holds at most batch_size · 256 tokens (· 32 on a CPU), or one question; `auto` begins
    with 64. Where text is generated it is the number of sequences, as in HFLM.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._encodings = _encodings_of(self)
        self._task: str | None = None  # the one that is asked, for errors
        size = AUTO_BATCH_SIZE if self.batch_size == "auto" else int(self.batch_size)
        self.batch_tokens = size * tokens_a_sequence(self.device.type)
        reason = why_stock_scoring(self)
        self.shares = reason is None
        if reason is not None:
            log.warning("accuracy: HFLM's own, slower path: %s", reason)

    # ------------------------------------------------------------------------------------------- tokens

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, left_truncate_len: int | None = None, **kwargs: Any
    ) -> list[int]:
        """HFLM's, remembered for all models of this tokenizer."""
        found = self._encodings.get(string, add_special_tokens)
        if found is None:
            found = super().tok_encode(string, add_special_tokens=add_special_tokens, **kwargs)
            self._encodings.put(string, add_special_tokens, found)
        return found[-left_truncate_len:] if left_truncate_len else found

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[Answer]:
        """(log-likelihood of the continuation, whether it is the greedy one) for each (context, continuation)."""
        self._tokenise(string for request in requests for string in _strings(*request.args))
        self._task = requests[0].task_name
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def _tokenise(self, strings: Iterator[str]) -> None:
        """Encode in one call what HFLM would encode string by string; strings with a BOS are left to it."""
        if not self.tokenizer.is_fast:
            return
        bos = self.tokenizer.decode(self.prefix_token_id)
        fresh = dict.fromkeys(string for string in strings if self._encodings.get(string, None) is None)
        plain = [string for string in fresh if string and not string.startswith(bos)]
        special = {} if self.add_bos_token is None else {"add_special_tokens": self.add_bos_token}
        if plain:
            for string, tokens in zip(plain, self.tokenizer(plain, **special)["input_ids"], strict=True):
                self._encodings.put(string, None, tokens)

    # ------------------------------------------------------------------------------------------- scores

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each whole text, in windows of max_length that don't overlap."""
        self._task = requests[0].task_name
        if not self.shares:
            return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
        windows: list[TokenRequest] = []
        ends = [0]
        for request in requests:
            rolling = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            windows += [(None, *make_disjoint_window(window)) for window in rolling]
            ends.append(len(windows))
        answers = self._loglikelihood_tokens(windows, disable_tqdm=disable_tqdm)
        totals = [sum(value for value, _ in answers[start:stop]) for start, stop in pairwise(ends)]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """HFLM's greedy or sampled texts."""
        self._task = requests[0].task_name
        return super().generate_until(requests, disable_tqdm=disable_tqdm)

    def _model_generate(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        finite = LogitsProcessorList([FiniteLogits(self._task)])
        return super()._model_generate(*args, logits_processor=finite, **kwargs)

    def _loglikelihood_tokens(
        self, requests: Sequence[TokenRequest], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[Answer]:
        """Score (strings, context, continuation). Raises ModelError for what isn't finite."""
        if self.shares:
            answers = self._shared(requests, disable_tqdm)
        else:
            answers = super()._loglikelihood_tokens(requests, disable_tqdm=disable_tqdm, override_bs=override_bs)
        check_finite(self._task, (value for value, _ in answers))
        return answers

    def _shared(self, requests: Sequence[TokenRequest], disable_tqdm: bool) -> list[Answer]:
        """What requests have in common once; one that is too long loses tokens on the left, as in HFLM."""
        inputs, targets = [], []
        for _, context, continuation in requests:
            assert context, "a context has at least the prefix token"
            assert 0 < len(continuation) <= self.max_length, "a continuation is scored whole"
            inputs.append((context + continuation)[-(self.max_length + 1) :][:-1])
            targets.append(continuation)
        answers: dict[int, Answer] = {}
        progress = tqdm.tqdm(total=len(requests), disable=disable_tqdm, desc="Running loglikelihood requests")
        waiting = grow(inputs, range(len(inputs)), self.batch_tokens)
        while waiting:
            batch = take_batch(waiting, self.batch_tokens)
            try:
                scored = self._score(batch, targets)
            except RuntimeError as problem:
                if not should_reduce_batch_size(problem) or not self._can_halve(batch):
                    raise
                scored = None
            if scored is None:  # outside of the except, where the exception holds the batch's tensors
                clear_torch_cache()
                waiting = sorted(waiting + self._halved(batch, inputs), key=len)
                continue
            for number, answer in scored:
                answers[number] = answer
                if (strings := requests[number][0]) is not None:
                    self.cache_hook.add_partial("loglikelihood", strings, answer)
            progress.update(len(scored))
        progress.close()
        return [answers[number] for number in range(len(requests))]

    def _can_halve(self, batch: TreeBatch) -> bool:
        return sum(len(tree.members) for row in batch for tree in row) > 1

    def _halved(self, batch: TreeBatch, inputs: Sequence[list[int]]) -> list[Tree]:
        """The trees of a batch that didn't fit memory, for batches of half the tokens from now on."""
        tokens = len(batch) * width_of(batch)
        self.batch_tokens = max(1, tokens // 2)
        log.warning("accuracy: out of memory with %d tokens a batch, on with %d", tokens, self.batch_tokens)
        trees = [tree for row in batch for tree in row]
        if len(trees) > 1:
            return trees
        members = trees[0].members
        middle = len(members) // 2
        halves = (members[:middle], members[middle:])
        return [tree for half in halves for tree in grow(inputs, half, self.batch_tokens)]

    def _score(self, batch: TreeBatch, targets: Sequence[list[int]]) -> list[tuple[int, Answer]]:
        """(number of the request, its answer) for all requests of the batch."""
        width = width_of(batch)
        members, pairs = [], []
        for place, row in enumerate(batch):
            for begin, tree in zip(starts(row), row, strict=True):
                first = place * width + begin
                for member, path in zip(tree.members, tree.paths, strict=True):
                    target = targets[member]
                    members.append(member)
                    pairs += [(first + node, token) for node, token in zip(path[-len(target) :], target, strict=True)]
        positions, tokens = torch.tensor(pairs).T
        values, greedy = self._log_probabilities(self._hidden(batch), positions, tokens)
        answers, begin = [], 0
        for member in members:
            end = begin + len(targets[member])
            answers.append((member, (sum(values[begin:end]), all(greedy[begin:end]))))
            begin = end
        return answers

    @torch.no_grad()
    def _hidden(self, batch: TreeBatch) -> torch.Tensor:
        """The last hidden state of each token, [rows · tokens, hidden_size]."""
        width = width_of(batch)
        ids = padded((chain.from_iterable(tree.tokens for tree in row) for row in batch), width)
        arguments: dict[str, Any] = {"input_ids": ids.to(self.device)}
        if not is_plain(batch):
            depths = padded((chain.from_iterable(tree.depths for tree in row) for row in batch), width)
            arguments["position_ids"] = depths.to(self.device)
            arguments["attention_mask"] = self._mask(ancestors(batch).to(self.device), arguments["position_ids"])
        with self._autocast():
            return Decoder(self.model).backbone(**arguments, use_cache=False).last_hidden_state.flatten(0, 1)

    def _mask(self, seen: torch.Tensor, depths: torch.Tensor) -> torch.Tensor | dict[str, torch.Tensor]:
        """As the model's forward takes it prepared: additive, [rows, 1, tokens, tokens], for each kind of layer."""
        config = self.model.config
        window = getattr(config, "sliding_window", None)
        near = seen if window is None else seen & (depths[:, :, None] - depths[:, None, :] < window)
        if architecture_of(self.model).masks == "one":
            return self._additive(near)
        return {"full_attention": self._additive(seen), "sliding_attention": self._additive(near)}

    def _additive(self, seen: torch.Tensor) -> torch.Tensor:
        dtype = self.mixed_precision_dtype or self.model.dtype
        mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
        return mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]

    @torch.no_grad()
    def _log_probabilities(
        self, hidden: torch.Tensor, positions: torch.Tensor, tokens: torch.Tensor
    ) -> tuple[list[float], list[bool]]:
        """Of tokens[i] after hidden[positions[i]]: log-probability, and whether it is the likeliest.

        hidden: [states, hidden_size]; positions, tokens: LongTensor [pairs]. A state has its logits taken once,
        however many tokens are asked for after it.
        """
        states, places = positions.unique(return_inverse=True)
        order = places.argsort(stable=True)
        rows = max(1, LOGITS_AT_ONCE // self.model.config.get_text_config().vocab_size)
        bounds = torch.searchsorted(places[order], torch.arange(0, len(states) + rows, rows)).tolist()
        results = []
        for number, piece in enumerate(states.split(rows)):
            chosen = order[bounds[number] : bounds[number + 1]]
            with self._autocast():
                logits = Decoder(self.model).logits(hidden[piece.to(hidden.device)]).float()
            asked = (places[chosen] - number * rows).to(logits.device)
            wanted = tokens[chosen].to(logits.device)
            values = logits[asked, wanted] - logits.logsumexp(dim=-1)[asked]
            results.append(torch.stack((values, logits.argmax(dim=-1)[asked] == wanted)))
        values, greedy = torch.cat(results, dim=1).cpu()[:, order.argsort()]
        return values.tolist(), greedy.bool().tolist()

    def _autocast(self) -> torch.autocast:
        dtype = self.mixed_precision_dtype
        return torch.autocast(device_type=self.device.type, dtype=dtype, enabled=dtype is not None)


def why_stock_scoring(lm: HFLM) -> str | None:
    """Why a model can't share beginnings; None where it can."""
    model = lm.model
    if lm.backend != "causal":
        return "an encoder-decoder has no context that choices continue"
    if not isinstance(model, PreTrainedModel) or model.config.model_type not in ARCHITECTURES:
        kind = getattr(model.config, "model_type", type(model).__name__)
        return f"{type(model).__name__} of {kind} is not among {', '.join(sorted(ARCHITECTURES))}"
    if model.get_output_embeddings() is None:
        return f"{type(model).__name__} has no language-model head"
    if model.config._attn_implementation not in ("eager", "sdpa"):
        return f"{model.config._attn_implementation} takes no mask; load the model with attn_implementation: sdpa"
    if getattr(model.config, "use_bidirectional_attention", False):
        return "its attention is bidirectional"
    if lm.world_size > 1:
        return "the model runs in several processes"
    return None


def _strings(context: str, continuation: str) -> tuple[str, ...]:
    """What HFLM encodes of a request; trailing spaces of a context belong to the continuation."""
    return (context.rstrip(), context + continuation) if context else ()


# ------------------------------------------------------------------------------------------------- encodings


class Encodings:
    """Tokens of strings under one tokenizer; forgets everything rather than grow beyond CACHED_CHARACTERS."""

    def __init__(self) -> None:
        self._tokens: dict[tuple[str, bool | None], array[int]] = {}
        self._characters = 0

    def get(self, string: str, add_special_tokens: bool | None) -> list[int] | None:
        found = self._tokens.get((string, add_special_tokens))
        return None if found is None else found.tolist()

    def put(self, string: str, add_special_tokens: bool | None, tokens: Sequence[int]) -> None:
        if self._characters + len(string) > CACHED_CHARACTERS:
            self._tokens.clear()
            self._characters = 0
        self._tokens[string, add_special_tokens] = array("l", tokens)
        self._characters += len(string)


_BY_CONTENT: dict[str, Encodings] = {}
_BY_OBJECT: WeakKeyDictionary[Any, dict[str, Encodings]] = WeakKeyDictionary()


def _encodings_of(lm: HFLM) -> Encodings:
    """The process's encodings of a tokenizer: known by its content, or where that can't be read by the object."""
    settings = f"{lm.add_bos_token} {lm.prefix_token_id}"
    if not lm.tokenizer.is_fast:
        return _BY_OBJECT.setdefault(lm.tokenizer, {}).setdefault(settings, Encodings())
    content = f"{settings} {lm.tokenizer.backend_tokenizer.to_str()}"
    return _BY_CONTENT.setdefault(hashlib.sha256(content.encode()).hexdigest(), Encodings())
