"""One entry makes an architecture known: the table against the tests' rows, and a new entry as the recipe says."""

from __future__ import annotations

import architectures
import pytest
import torch
from architectures import GROUPED, TOKENS, assert_generates, assert_reloads, random_model
from transformers import SmolLM3ForCausalLM, Starcoder2ForCausalLM

from greenprune import PruneConfig, prune
from greenprune.errors import ModelError
from greenprune.models import Decoder, modeling_pruned
from greenprune.models.architectures import ARCHITECTURES, Architecture, Layout

HOLDS = {
    ("query",): "queries",
    ("key",): "keys or values",
    ("value",): "keys or values",
    ("query", "key", "value"): "queries, keys and values",
    ("out",): "attention's output",
    ("gate",): "gates or ups",
    ("up",): "gates or ups",
    ("gate", "up"): "gates and ups",
    ("down",): "MLP's output",
}
NEW = {
    "smollm3": Architecture(SmolLM3ForCausalLM, Layout(config_biases=("attention_bias", "mlp_bias")), "by_layer_type"),
    "starcoder2": Architecture(
        Starcoder2ForCausalLM, Layout(gate=None, up="mlp.c_fc", down="mlp.c_proj", config_biases=("use_bias",))
    ),
}
WIDTHS = {"method": "flap", "ratio": 0.25, "skip_first": 1, "skip_last": 1}


def test_every_entry_has_a_row_and_every_row_an_entry():
    assert {row.partition("-")[0] for row in architectures.ARCHITECTURES} == ARCHITECTURES.keys()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_narrow_layers_know_what_each_linear_of_the_layout_holds(name):
    layout = ARCHITECTURES[name].layout
    for path in layout.linears:
        parts = tuple(part for part, where in vars(layout).items() if where == path)
        assert modeling_pruned.LINEARS[path.rpartition(".")[2]] == HOLDS[parts]


@pytest.mark.parametrize("row", architectures.ARCHITECTURES)
def test_masks_are_as_the_forward_takes_them(row):
    """A prepared mask that lets each token see those before it changes nothing."""
    model = random_model(row)
    length = TOKENS.shape[1]
    window = getattr(model.config, "sliding_window", None) or length
    distance = torch.arange(length)[:, None] - torch.arange(length)
    seen, near = distance >= 0, (distance >= 0) & (distance < window)
    full, sliding = (torch.zeros(len(TOKENS), 1, length, length).masked_fill(~mask, -1e9) for mask in (seen, near))
    by_type = ARCHITECTURES[model.config.model_type].masks == "by_layer_type"
    mask = {"full_attention": full, "sliding_attention": sliding} if by_type else sliding
    with torch.no_grad():
        places = torch.arange(length).expand_as(TOKENS)  # OPT would count them in the mask
        masked = Decoder(model).backbone(TOKENS, attention_mask=mask, position_ids=places).last_hidden_state
        plain = Decoder(model).backbone(TOKENS).last_hidden_state
    torch.testing.assert_close(masked, plain, rtol=1e-5, atol=1e-5)


def test_an_unknown_architecture_names_the_one_table(monkeypatch):
    model = random_model("mistral")
    monkeypatch.delitem(ARCHITECTURES, "mistral")
    with pytest.raises(ModelError, match=r"got mistral; add its entry to ARCHITECTURES in greenprune/models/archi"):
        prune(model, PruneConfig(method="bi", block_size=1), calibration=TOKENS)


@pytest.fixture
def new_entries(monkeypatch):
    """What the recipe asks for, an entry and a row, for two architectures that aren't known."""
    for name, entry in NEW.items():
        monkeypatch.setitem(ARCHITECTURES, name, entry)
        monkeypatch.setitem(architectures.ARCHITECTURES, name, GROUPED)


def assert_prunes(name, fields, folder, needs):
    model = random_model(name)
    assert prune(model, PruneConfig(**fields), calibration=TOKENS).needs == needs
    assert_generates(model)
    assert_reloads(model, folder, needs)


def test_an_entry_is_all_that_an_architecture_of_known_names_needs(new_entries, tmp_path):
    assert_prunes("smollm3", {"method": "ppl_depth", "block_size": 2}, tmp_path / "depth", "transformers")
    assert_prunes("smollm3", WIDTHS, tmp_path / "widths", "trust_remote_code")
    assert_prunes("smollm3", {"method": "flap", "ratio": 0.25, "uniform": True}, tmp_path / "one", "transformers")
    assert_prunes("smollm3", {"method": "wanda", "ratio": 0.5}, tmp_path / "mask", "transformers")


def test_linears_of_unknown_names_are_refused_only_where_layers_differ_in_width(new_entries, tmp_path):
    assert_prunes("starcoder2", {"method": "bi", "block_size": 2}, tmp_path / "depth", "transformers")
    with pytest.raises(ModelError, match=r"got c_fc, c_proj in starcoder2; add .* LINEARS in greenprune/models/mo"):
        prune(random_model("starcoder2"), PruneConfig(**WIDTHS), calibration=TOKENS)


def test_names_of_its_own_go_into_the_file_that_travels(new_entries, monkeypatch):
    monkeypatch.setitem(modeling_pruned.LINEARS, "c_fc", "gates or ups")
    monkeypatch.setitem(modeling_pruned.LINEARS, "c_proj", "MLP's output")
    model = random_model("starcoder2")
    prune(model, PruneConfig(**WIDTHS), calibration=TOKENS)
    again = type(model)(model.config)
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(again.eval()(TOKENS).logits, model(TOKENS).logits)
