"""Taylor statistics: layer by layer they are what autograd gives for the whole model, in a layer's memory."""

from __future__ import annotations

import weakref

import pytest
import torch
from architectures import ARCHITECTURES, TOKENS, random_model
from tiny import tiny_config
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaForCausalLM

from greenprune.collect import collect, gradients
from greenprune.collect.gradients import input_spacing, layer_gradients, part_sums
from greenprune.models.decoder import Decoder
from greenprune.models.stock_form import fit_class_and_config
from greenprune.models.surgery import keep_channels, keep_heads


def by_autograd(model, tokens):
    """Gradients of the decoder layers' parameters, for the mean loss, layer by layer."""
    model.zero_grad()
    logits = model(tokens).logits[:, :-1].flatten(0, 1).float()
    nn.functional.cross_entropy(logits, tokens[:, 1:].flatten()).backward()
    found = [{n: p.grad.float() for n, p in layer.named_parameters()} for layer in Decoder(model).layers]
    model.zero_grad()
    return found


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gradients_are_those_of_autograd(name):
    model = random_model(name)
    whole = by_autograd(model, TOKENS)
    rows = [by_autograd(model, row[None]) for row in TOKENS]
    for options in ({"batch_size": 4}, {"batch_size": 3}, {"squares": True}):
        seen = []
        for gradient in layer_gradients(model, TOKENS, **options):
            seen.append(gradient.layer)
            torch.testing.assert_close(gradient.mean, whole[gradient.layer], rtol=1e-4, atol=1e-6)
            if gradient.squares is not None:
                squares = {n: torch.stack([row[gradient.layer][n] ** 2 for row in rows]).mean(0) for n in gradient.mean}
                torch.testing.assert_close(gradient.squares, squares, rtol=1e-4, atol=1e-9)
        assert seen == [5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize("spacing", [2, 4])
def test_inputs_computed_once_more_change_nothing(spacing, monkeypatch):
    model = random_model("gemma3_text")
    plain = collect(model, TOKENS, {"fisher"})
    monkeypatch.setattr(gradients, "input_spacing", lambda *_: spacing)
    again = collect(model, TOKENS, {"fisher"})
    torch.testing.assert_close(again.tensors, plain.tensors, rtol=0, atol=0)


def test_input_spacing():
    decoder = Decoder(LlamaForCausalLM(tiny_config(num_hidden_layers=9)))
    room = sum(p.numel() for p in decoder.model.parameters()) // (9 * 32)  # tokens whose states are as large as it
    assert input_spacing(decoder, room) == 1
    assert input_spacing(decoder, room + 1) == 3


def test_part_sums_by_hand():
    """Two heads of size 1 on one KV head, two channels, hidden size 2."""
    config = tiny_config(hidden_size=2, num_attention_heads=2, num_key_value_heads=1, intermediate_size=2, head_dim=1)
    view = Decoder(LlamaForCausalLM(config)).view(0)
    attention, mlp = view.module.self_attn, view.module.mlp
    matrices = {
        attention.q_proj: [[1, 2], [3, 4]],
        attention.k_proj: [[5, 6]],
        attention.v_proj: [[7, 8]],
        attention.o_proj: [[1, 10], [2, 20]],
        mlp.gate_proj: [[1, 1], [2, 2]],
        mlp.up_proj: [[3, 3], [4, 4]],
        mlp.down_proj: [[5, 50], [6, 60]],
    }
    sums = part_sums(view, lambda linear: torch.tensor(matrices[linear]))
    assert {part: values.tolist() for part, values in sums.items()} == {
        "query": [3, 7],
        "key": [11],
        "value": [15],
        "out": [3, 30],
        "gate": [2, 4],
        "up": [6, 8],
        "down": [11, 110],
    }


def test_element_scores_by_hand():
    w, g, a = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 3.0]), torch.tensor([1.0, 4.0])
    assert gradients.FIRST_ORDER["param_first"](w, g).tolist() == [1, 3]
    assert gradients.FIRST_ORDER["vectorize"](w, g).tolist() == [1, -3]
    assert gradients.SECOND_ORDER["param_second"](w, g, a).tolist() == [4, 4]
    assert gradients.SECOND_ORDER["param_mix"](w, g, a).tolist() == [1, 5]


@pytest.mark.parametrize("name", ["llama", "phi3", "opt", "gpt_neox", "qwen3"])
def test_statistics_by_definition(name):
    model = random_model(name)
    stats = collect(model, TOKENS, {"fisher"})
    whole, rows = by_autograd(model, TOKENS), [by_autograd(model, row[None]) for row in TOKENS]
    for index in range(6):
        view = Decoder(model).view(index)
        named = {n: p.detach() for n, p in view.module.named_parameters()}
        first = {n: weight * whole[index][n] for n, weight in named.items()}
        second = {n: weight**2 * sum(row[index][n] ** 2 for row in rows) / 4 for n, weight in named.items()}
        expected = sum(value.abs().sum().item() for n, value in first.items() if n.endswith("weight"))
        assert stats["layer.taylor"][index].item() == pytest.approx(expected, rel=1e-4)
        for part, n, slicing in [
            ("query", view.layout.query, lambda v, view=view: v[view.query.index].sum(1)),
            ("value", view.layout.value, lambda v, view=view: v[view.value.index].sum(1)),
            ("up", view.layout.up, lambda v, view=view: v[view.up.index].sum(1)),
            ("out", view.layout.out, lambda v: v.sum(0)),
            ("down", view.layout.down, lambda v: v.sum(0)),
        ]:
            of, a = first[f"{n}.weight"], second[f"{n}.weight"]
            for importance, sums in (
                ("param_first", slicing(of.abs())),
                ("vectorize", slicing(of).abs()),
                ("param_second", slicing(a)),
                ("param_mix", slicing((of - a / 2).abs())),
            ):
                torch.testing.assert_close(stats[f"{importance}.{part}"][index], sums, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("batch_size", [2, 3])
def test_batch_size_does_not_matter(tiny_model, batch_size):
    one, many = (collect(tiny_model, TOKENS, {"gradient"}, batch_size=size) for size in (1, batch_size))
    torch.testing.assert_close(one.tensors, many.tensors, rtol=1e-4, atol=1e-8)


def test_first_order_scores_come_with_the_second(tiny_model):
    first, second = (collect(tiny_model, TOKENS, {name}) for name in ("gradient", "fisher"))
    assert first.tensors.keys() < second.tensors.keys()
    torch.testing.assert_close({name: second[name] for name in first.tensors}, first.tensors, rtol=1e-4, atol=1e-8)


def test_bf16_is_accumulated_in_float32():
    exact = collect(random_model("llama"), TOKENS, {"gradient"})
    rounded = collect(random_model("llama", torch.bfloat16), TOKENS, {"gradient"})
    assert rounded["param_first.query"].dtype == torch.float32
    assert rounded["layer.taylor"].dtype == torch.float64
    torch.testing.assert_close(rounded["layer.taylor"], exact["layer.taylor"], rtol=0.03, atol=0)


def test_layers_of_different_widths_are_filled_up(tiny_model):
    keep_heads(tiny_model, 1, [0, 2])
    keep_channels(tiny_model, 1, range(8))
    fit_class_and_config(tiny_model)
    stats = collect(tiny_model, TOKENS, {"gradient"})
    for name, kept in (("param_first.query", 16), ("param_first.down", 8)):
        assert stats[name][1, :kept].isfinite().all()
        assert stats[name][1, kept:].isnan().all()
        assert stats[name][[0, 2, 3]].isfinite().all()


@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_left_as_it_was(tiny_model, training):
    tiny_model.train(training)
    tiny_model.lm_head.weight.requires_grad_(False)
    flags = {name: parameter.requires_grad for name, parameter in tiny_model.named_parameters()}
    backward = layer_gradients(tiny_model, TOKENS)
    next(backward)
    backward.close()  # half way
    collect(tiny_model, TOKENS, {"gradient"})
    assert {name: parameter.requires_grad for name, parameter in tiny_model.named_parameters()} == flags
    assert all(parameter.grad is None for parameter in tiny_model.parameters())
    assert all(module.training == training for module in tiny_model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in tiny_model.modules())


class Memory(TorchDispatchMode):
    """Bytes of tensors made while it is on, at their most."""

    def __init__(self):
        super().__init__()
        self.now, self.peak, self.alive = 0, 0, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **kwargs or {})
        given = {tensor.untyped_storage()._cdata for tensor in args if isinstance(tensor, torch.Tensor)}
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in given | self.alive.keys():
                    self._count(storage)
        return made

    def _count(self, storage):
        key, size = storage._cdata, storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)

        def freed(_):
            self.now -= size
            del self.alive[key]

        self.alive[key] = weakref.ref(storage, freed)


@pytest.mark.parametrize(("want", "layers_at_most"), [("gradient", 3), ("fisher", 4)])
def test_never_more_than_a_layers_gradients(want, layers_at_most):
    """One layer's gradients, their sums and the products that are scored; not the twelve layers'."""
    model = LlamaForCausalLM(tiny_config(num_hidden_layers=12, hidden_size=64, intermediate_size=256))
    layer_bytes = sum(p.numel() for p in model.model.layers[0].parameters()) * 4
    with Memory() as memory:
        collect(model, TOKENS[:2, :4], {want})
    assert layer_bytes < memory.peak < layers_at_most * layer_bytes
    with Memory() as whole:
        by_autograd(model, TOKENS[:2, :4])
    assert whole.peak > 12 * layer_bytes  # what the test would see of a plain backward pass
