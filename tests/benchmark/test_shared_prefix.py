"""SharedPrefixLM answers as HFLM does, on every architecture; and the trees by hand."""

from __future__ import annotations

import logging
import random

import pytest
import torch
from architectures import ARCHITECTURES, random_model
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tiny import WORDS
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedTokenizerFast

from greenprune import PruneConfig, prune
from greenprune.benchmark import prefix_tree, shared_prefix
from greenprune.benchmark.prefix_tree import Branch, ancestors, common_prefix, grow, padded, starts, take_batch
from greenprune.benchmark.shared_prefix import SharedPrefixLM

# ------------------------------------------------------------------------------------------- trees by hand

SEQUENCES = [[7, 1, 2], [7, 5], [7, 1, 3, 4], [9], [7, 1]]


def test_a_tree_by_hand():
    (tree,) = grow(SEQUENCES, [0, 1, 2], longest=100)
    assert tree.tokens == [7, 1, 2, 3, 4, 5]
    assert tree.depths == [0, 1, 2, 2, 3, 1]
    assert tree.branches == [Branch(0, 3, None), Branch(3, 5, 1), Branch(5, 6, 0)]
    assert dict(zip(tree.members, tree.paths, strict=True)) == {0: [0, 1, 2], 1: [0, 5], 2: [0, 1, 3, 4]}
    assert ancestors([[tree]])[0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 0, 1, 0, 0],
        [1, 1, 0, 1, 1, 0],
        [1, 0, 0, 0, 0, 1],
    ]


def test_trees_side_by_side_and_padding_see_only_themselves():
    one, other = grow(SEQUENCES, [3, 0], longest=100)
    row, short = [other, one], [one]
    assert starts(row) == [0, 3]
    seen = ancestors([row, short]).int().tolist()
    assert seen[0] == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 1]]
    assert seen[1] == torch.eye(4).int().tolist()
    assert padded([[1, 2], [3]], 3).tolist() == [[1, 2, 0], [3, 0, 0]]


def test_beginnings_and_repetitions_need_no_tokens_of_their_own():
    (tree,) = grow([*SEQUENCES, SEQUENCES[2]], [2, 4, 5], longest=100)
    assert tree.tokens == [7, 1, 3, 4]
    assert {tuple(path) for path in tree.paths} == {(0, 1), (0, 1, 2, 3)}


def test_what_shares_little_or_grows_too_long_is_a_tree_of_its_own():
    alike, unlike = [*range(20), 30], [0, *range(40, 60)]
    assert len(grow([list(range(21)), alike], [0, 1], longest=100)) == 1
    assert len(grow([list(range(21)), unlike], [0, 1], longest=100)) == 2
    many = [[*range(20), 30 + number] for number in range(30)]
    assert [len(tree) for tree in grow(many, range(30), longest=30)] == [28, 42]
    assert common_prefix([1, 2, 3], [1, 2, 4]) == 2
    assert common_prefix([1, 2], [1, 2, 4]) == 2


def test_a_batch_is_rows_filled_from_the_longest_tree_down(monkeypatch):
    monkeypatch.setattr(prefix_tree, "ROW", 10)
    sequences = [[number] * length for number, length in enumerate([12, 9, 5, 4, 3, 3, 1])]
    trees = grow(sequences, range(7), longest=100)
    batches = []
    while trees:
        batches.append([[len(tree) for tree in row] for row in take_batch(trees, tokens=24)])
    assert batches == [[[12], [9, 3]], [[5, 4, 1], [3]]]
    assert [[len(tree) for tree in row] for row in take_batch(grow(sequences, [0], 100), tokens=3)] == [[12]]


# --------------------------------------------------------------------------------------- answers as HFLM's


def text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(WORDS, k=words))


def questions() -> list[Instance]:
    """Choices of one context, of contexts that part late, of one token, without context; some beyond 64 tokens."""
    rng = random.Random(0)
    pairs = []
    for length in (1, 3, 12, 30, 44, 70):
        context = text(rng, length)
        pairs += [(context, f" {text(rng, rng.randint(1, 12))}") for _ in range(4)]
        pairs += [(context, f" {word}") for word in WORDS[:6]]
        ending = text(rng, 3)
        pairs += [(f"{context} {text(rng, 1)} {text(rng, 2)}", f" {ending}") for _ in range(2)]
    pairs += [("", text(rng, 5)), ("", WORDS[0] + " " + WORDS[1]), (text(rng, 4) + "  ", text(rng, 2))]
    rng.shuffle(pairs)
    return [Instance("loglikelihood", {}, pair, 0) for pair in pairs]


def harness(kind: type[HFLM], model, tokenizer, max_length: int = 64, batch_size: int | str = 4, **settings) -> HFLM:
    return kind(pretrained=model, tokenizer=tokenizer, max_length=max_length, batch_size=batch_size, **settings)


def pronounced(name: str):
    """Larger weights than fresh ones, so that what a token sees decides."""
    model = random_model(name)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


def assert_same(found, expected):
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], rel=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


@pytest.mark.parametrize("max_length", [64, 20])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_answers_are_those_of_hflm(name, max_length, tiny_tokenizer, monkeypatch):
    """Windows of 8 tokens are shorter than most contexts; requests beyond max_length lose tokens on the left."""
    model = pronounced(name)
    expected = harness(HFLM, model, tiny_tokenizer, max_length).loglikelihood(questions(), disable_tqdm=True)
    lm = harness(SharedPrefixLM, model, tiny_tokenizer, max_length)
    assert lm.shares
    monkeypatch.setattr(HFLM, "_loglikelihood_tokens", lambda *_, **__: pytest.fail("HFLM's own path"))
    assert_same(lm.loglikelihood(questions(), disable_tqdm=True), expected)


def test_a_greedy_continuation_is_known(tiny_model, tiny_tokenizer):
    ids = torch.tensor([tiny_tokenizer("the cat sat on")["input_ids"]])
    with torch.no_grad():
        best = tiny_model(ids).logits[0, -1].argsort(descending=True)
    requests = [(None, ids[0].tolist(), [token]) for token in best[:3].tolist()]
    answers = harness(SharedPrefixLM, tiny_model, tiny_tokenizer)._loglikelihood_tokens(requests, disable_tqdm=True)
    assert [greedy for _, greedy in answers] == [True, False, False]


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text", "qwen2"])
def test_layers_that_were_removed_take_their_windows_along(name, tiny_tokenizer):
    model = pronounced(name)
    prune(model, PruneConfig(method="bi", block_size=3), calibration=torch.randint(3, 64, (2, 16)))
    expected = harness(HFLM, model, tiny_tokenizer).loglikelihood(questions(), disable_tqdm=True)
    assert_same(harness(SharedPrefixLM, model, tiny_tokenizer).loglikelihood(questions(), disable_tqdm=True), expected)


@pytest.mark.parametrize("name", ["llama", "gemma2", "opt", "gpt_neox"])
def test_layers_may_differ_in_width(name, tiny_tokenizer):
    model = pronounced(name)
    prune(model, PruneConfig(method="flap", ratio=0.3, skip_first=1), calibration=torch.randint(3, 64, (4, 16)))
    assert model.config.is_heterogeneous
    expected = harness(HFLM, model, tiny_tokenizer).loglikelihood(questions(), disable_tqdm=True)
    lm = harness(SharedPrefixLM, model, tiny_tokenizer)
    assert lm.shares
    assert_same(lm.loglikelihood(questions(), disable_tqdm=True), expected)


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text"])
def test_a_soft_cap_on_logits_is_kept(name, tiny_tokenizer):
    model = pronounced(name)
    free = harness(HFLM, model, tiny_tokenizer).loglikelihood(questions(), disable_tqdm=True)
    model.config.final_logit_softcapping = 0.1
    capped = harness(HFLM, model, tiny_tokenizer).loglikelihood(questions(), disable_tqdm=True)
    assert max(abs(one[0] - other[0]) for one, other in zip(free, capped, strict=True)) > 0.01
    assert_same(harness(SharedPrefixLM, model, tiny_tokenizer).loglikelihood(questions(), disable_tqdm=True), capped)


@pytest.mark.parametrize("name", ["mistral", "opt"])
def test_answers_depend_on_neither_batches_nor_pieces(name, tiny_tokenizer, monkeypatch):
    model = pronounced(name)
    alone = []
    for request in questions():
        alone += harness(HFLM, model, tiny_tokenizer, batch_size=1).loglikelihood([request], disable_tqdm=True)
    for batch_size in (1, 16, "auto"):
        lm = harness(SharedPrefixLM, model, tiny_tokenizer, batch_size=batch_size)
        assert_same(lm.loglikelihood(questions(), disable_tqdm=True), alone)
    monkeypatch.setattr(shared_prefix, "LOGITS_AT_ONCE", 5 * 64)
    assert_same(lm.loglikelihood(questions(), disable_tqdm=True), alone)


def test_half_precision(tiny_model, tiny_tokenizer):
    expected = harness(HFLM, tiny_model, tiny_tokenizer).loglikelihood(questions(), disable_tqdm=True)
    lm = harness(SharedPrefixLM, tiny_model.bfloat16(), tiny_tokenizer)
    found = lm.loglikelihood(questions(), disable_tqdm=True)
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], rel=0.02)


class Forwards:
    """Counts the tokens that go through a model, and runs out of memory beyond `limit` of them."""

    def __init__(self, model, limit: int = 1 << 30) -> None:
        self.limit, self.shapes, self.refused = limit, [], 0
        self.handle = model.base_model.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module, args, kwargs) -> None:
        if kwargs["input_ids"].numel() > self.limit:
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        self.shapes.append(tuple(kwargs["input_ids"].shape))


def test_a_context_is_computed_once(tiny_model, tiny_tokenizer):
    context = text(random.Random(1), 40)
    choices = [Instance("loglikelihood", {}, (context, f" {word} and {word}"), 0) for word in WORDS[:5]]
    counter = Forwards(tiny_model)
    harness(SharedPrefixLM, tiny_model, tiny_tokenizer).loglikelihood(choices, disable_tqdm=True)
    assert counter.shapes == [(1, 40 + 5 * 2)]


def test_batches_halve_where_memory_runs_out(tiny_model, tiny_tokenizer, caplog):
    expected = harness(HFLM, tiny_model, tiny_tokenizer).loglikelihood(questions(), disable_tqdm=True)
    lm = harness(SharedPrefixLM, tiny_model, tiny_tokenizer, batch_size=16)
    counter = Forwards(tiny_model, limit=70)  # less than the largest trees: these are taken apart
    assert_same(lm.loglikelihood(questions(), disable_tqdm=True), expected)
    assert counter.refused > 0
    assert lm.batch_tokens <= 70
    assert "out of memory" in caplog.text
    before = counter.refused
    assert_same(lm.loglikelihood(questions()[:4], disable_tqdm=True), expected[:4])
    assert counter.refused - before <= 3, "the size that fits is remembered"


def test_one_request_that_never_fits_is_an_error(tiny_model, tiny_tokenizer):
    Forwards(tiny_model, limit=3)
    lm = harness(SharedPrefixLM, tiny_model, tiny_tokenizer)
    with pytest.raises(torch.OutOfMemoryError):
        lm.loglikelihood(questions()[:3], disable_tqdm=True)


def test_other_errors_are_not_taken_for_lack_of_memory(tiny_model, tiny_tokenizer):
    def broken(*_):
        raise RuntimeError("shapes differ")

    tiny_model.base_model.register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        harness(SharedPrefixLM, tiny_model, tiny_tokenizer).loglikelihood(questions(), disable_tqdm=True)


# ---------------------------------------------------------------------------------- rolling and generation


@pytest.mark.parametrize("name", ["llama", "gemma2", "opt"])
def test_rolling_is_that_of_hflm(name, tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(shared_prefix, "LOGITS_AT_ONCE", 7 * 64)
    rng = random.Random(0)
    texts = [Instance("loglikelihood_rolling", {}, (text(rng, words),), 0) for words in (1, 150, 20, 63, 64, 65)]
    model = pronounced(name)
    expected = harness(HFLM, model, tiny_tokenizer).loglikelihood_rolling(texts, disable_tqdm=True)
    found = harness(SharedPrefixLM, model, tiny_tokenizer).loglikelihood_rolling(texts, disable_tqdm=True)
    assert found == pytest.approx(expected, rel=1e-4)


def test_generation_is_that_of_hflm(tiny_tokenizer):
    model, rng = pronounced("mistral"), random.Random(0)
    settings = {"until": ["sea"], "max_gen_toks": 8, "do_sample": False}
    requests = [Instance("generate_until", {}, (text(rng, words), settings), 0) for words in (3, 20, 9, 60, 1)]
    expected = harness(HFLM, model, tiny_tokenizer).generate_until(requests, disable_tqdm=True)
    assert harness(SharedPrefixLM, model, tiny_tokenizer).generate_until(requests, disable_tqdm=True) == expected
    assert any(expected)


# ------------------------------------------------------------------------------------------------- tokens


def bytes_tokenizer(*, bos: bool) -> PreTrainedTokenizerFast:
    """A token a byte, a few merges, and perhaps a BOS before every string."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    merges = [("Ġ", "a"), ("b", "c"), ("Ġ", "Ġ")]
    alphabet = ["<end>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *(one + other for one, other in merges)]
    tokens = Tokenizer(models.BPE({token: index for index, token in enumerate(alphabet)}, merges))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    if bos:
        tokens.post_processor = processors.TemplateProcessing(single="<end> $A", special_tokens=[("<end>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token="<end>", bos_token="<end>")


PAIRS = [("ab", "c"), ("abc  ", "abc"), ("a \n", " a"), ("", "bc"), ("", "<end>bc"), ("<end>ab", "c d")]
PAIRS += [("abc", " a"), ("abc", " bc"), ("ab  ", " c")]


@pytest.mark.parametrize("settings", [{}, {"add_bos_token": True}, {"add_bos_token": False}, {"prefix_token_id": 66}])
@pytest.mark.parametrize("bos", [False, True])
def test_tokens_are_those_of_hflm(bos, settings, tiny_model, monkeypatch):
    requests = [Instance("loglikelihood", {}, pair, 0) for pair in PAIRS]
    seen = {}
    for kind in (HFLM, SharedPrefixLM):
        lm = harness(kind, tiny_model, bytes_tokenizer(bos=bos), **settings)
        monkeypatch.setattr(lm, "_loglikelihood_tokens", lambda made, *_, kind=kind, **__: seen.update({kind: made}))
        lm.loglikelihood(requests, disable_tqdm=True)
    assert seen[SharedPrefixLM] == seen[HFLM]
    assert len(seen[HFLM]) == len(PAIRS)


def test_strings_are_tokenised_once_for_all_models_of_a_tokenizer(monkeypatch):
    monkeypatch.setattr(shared_prefix, "_BY_CONTENT", {})
    encoded = []
    for name in ("llama", "mistral"):
        tokenizer = bytes_tokenizer(bos=True)  # read anew, as a trial does
        lm = harness(SharedPrefixLM, random_model(name), tokenizer)
        monkeypatch.setattr(lm, "_loglikelihood_tokens", lambda requests, **_: requests)
        encode = type(tokenizer)._encode_plus
        spy = lambda self, text, *_, encode=encode, **__: (encoded.append(text), encode(self, text, *_, **__))[1]  # noqa: E731
        monkeypatch.setattr(type(tokenizer), "_encode_plus", spy)
        first = lm.loglikelihood([Instance("loglikelihood", {}, pair, 0) for pair in PAIRS], disable_tqdm=True)
        if name == "llama":
            assert encoded
            encoded.clear()
            kept = first
    assert not [text for text in encoded if text not in ("bc", "<end>bc")]
    assert first == kept
    assert lm._encodings is not harness(SharedPrefixLM, random_model("llama"), bytes_tokenizer(bos=False))._encodings


def test_encodings_forget_rather_than_grow(monkeypatch):
    monkeypatch.setattr(shared_prefix, "CACHED_CHARACTERS", 10)
    encodings = shared_prefix.Encodings()
    encodings.put("abcdef", None, [1, 2])
    encodings.put("abc", None, [3])
    assert (encodings.get("abcdef", None), encodings.get("abc", False)) == ([1, 2], None)
    encodings.put("xyz", None, [4])
    assert (encodings.get("abcdef", None), encodings.get("xyz", None)) == (None, [4])


# ----------------------------------------------------------------------------------------------- fallback


def test_an_unknown_architecture_takes_hflms_path_and_says_so(tiny_tokenizer, caplog):
    torch.manual_seed(0)
    config = AutoConfig.for_model("gpt2", vocab_size=64, n_positions=64, n_embd=32, n_layer=2, n_head=4)
    model = AutoModelForCausalLM.from_config(config).eval()
    with caplog.at_level(logging.WARNING, logger="greenprune"):
        lm = harness(SharedPrefixLM, model, tiny_tokenizer)
    expected = harness(HFLM, model, tiny_tokenizer)
    assert lm.loglikelihood(questions(), disable_tqdm=True) == expected.loglikelihood(questions(), disable_tqdm=True)
    texts = [Instance("loglikelihood_rolling", {}, (text(random.Random(0), 99),), 0)]
    assert lm.loglikelihood_rolling(texts) == expected.loglikelihood_rolling(texts)
    assert caplog.text.count("HFLM's own, slower path: GPT2LMHeadModel of gpt2 is not among") == 1


def test_an_encoder_decoder_takes_hflms_path(tiny_tokenizer):
    sizes = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    config = AutoConfig.for_model("t5", **sizes, decoder_start_token_id=0)
    lm = harness(SharedPrefixLM, AutoModelForSeq2SeqLM.from_config(config).eval(), tiny_tokenizer)
    assert not lm.shares
    assert len(lm.loglikelihood(questions()[:4], disable_tqdm=True)) == 4


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda model: setattr(model.config, "_attn_implementation_internal", "flash_attention_2"), "takes no mask"),
        (lambda model: setattr(model.config, "use_bidirectional_attention", True), "bidirectional"),
        (lambda model: model.set_output_embeddings(None), "no language-model head"),
    ],
)
def test_models_that_cannot_share_say_why(change, reason, tiny_model, tiny_tokenizer):
    change(tiny_model)
    assert reason in shared_prefix.why_stock_scoring(harness(HFLM, tiny_model, tiny_tokenizer))


# --------------------------------------------------------------------------------------------- real model


@pytest.mark.real
def test_a_real_task_has_the_same_answers(real_model):
    from lm_eval.evaluator import evaluate

    from greenprune.benchmark.quiet import offline, quiet_harness
    from greenprune.benchmark.tasks import load_task

    model, tokenizer = real_model
    samples = {}
    with offline(), quiet_harness("test"):
        for kind in (HFLM, SharedPrefixLM):
            lm = harness(kind, model, tokenizer, max_length=2048)
            for name, documents in (("arc_easy", [0, 1]), ("winogrande", [0, 1])):
                task = {"tasks": {name: load_task(name, "assets")}, "groups": {}}
                found = evaluate(lm=lm, task_dict=task, samples={name: documents}, log_samples=True, bootstrap_iters=0)
                samples[kind, name] = found["samples"][name]
    for name in ("arc_easy", "winogrande"):
        for mine, theirs in zip(samples[SharedPrefixLM, name], samples[HFLM, name], strict=True):
            assert mine["acc"] == theirs["acc"]
            assert mine["doc_id"] == theirs["doc_id"]
            assert_same(*([answer for (answer,) in sample["resps"]] for sample in (mine, theirs)))
