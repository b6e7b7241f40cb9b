"""Hooks are gone when the `with` ends, whatever ended it."""

from __future__ import annotations

import pytest
from architectures import TOKENS

from greenprune.collect import collect
from greenprune.collect.gradients import layer_gradients
from greenprune.collect.layerwise import LayerByLayer
from greenprune.collect.removal import losses_without
from greenprune.models import Decoder
from greenprune.models.hooks import Hooks


def hooks_of(model) -> list[object]:
    return [hook for module in model.modules() for hook in (*module._forward_hooks, *module._forward_pre_hooks)]


def failing(*_):
    raise ZeroDivisionError


def test_hooks_see_and_go(tiny_model):
    seen = []
    with Hooks() as hooks:
        hooks.before(tiny_model.lm_head, lambda module, args, kwargs: seen.append(("before", args[0].shape)))
        hooks.after(tiny_model.lm_head, lambda module, args, output: seen.append(("after", output.shape)))
        tiny_model(TOKENS)
    tiny_model(TOKENS)
    assert seen == [("before", (4, 16, 32)), ("after", (4, 16, 64))]
    assert hooks_of(tiny_model) == []


def test_an_error_inside_leaves_no_hook(tiny_model):
    def run():
        with Hooks() as hooks:
            hooks.before(tiny_model.lm_head, failing)
            tiny_model(TOKENS)

    with pytest.raises(ZeroDivisionError):
        run()
    assert hooks_of(tiny_model) == []


def test_an_error_while_hooking_leaves_none(tiny_model):
    def run():
        with Hooks() as hooks:
            hooks.after(tiny_model.lm_head, print)
            hooks.after(None, print)

    with pytest.raises(AttributeError):
        run()
    assert hooks_of(tiny_model) == []


PASSES = {
    "angular and bi": lambda model: collect(model, TOKENS, {"angular", "bi"}),
    "activations": lambda model: collect(model, TOKENS, {"activations"}),
    "gradients": lambda model: next(layer_gradients(model, TOKENS)),
    "losses without layers": lambda model: losses_without(model, TOKENS, [range(3, 4)]),
    "layer by layer": lambda model: LayerByLayer(model, TOKENS).input_means(0, Decoder(model).view(0).linears, failing),
}


@pytest.mark.parametrize("name", PASSES)
def test_no_pass_leaves_a_hook_after_an_error(tiny_model, name):
    """The last layer's MLP fails, when all hooks are in place."""
    tiny_model.model.layers[3].mlp.down_proj.forward = failing
    with pytest.raises(ZeroDivisionError):
        PASSES[name](tiny_model)
    assert hooks_of(tiny_model) == []
