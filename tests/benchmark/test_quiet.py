"""What is changed around lm-eval is put back."""

from __future__ import annotations

import os

import pytest

from greenprune.benchmark.quiet import offline


def test_offline_restores_everything():
    import datasets.config
    import huggingface_hub.constants as hub

    def state():
        return (datasets.config.HF_HUB_OFFLINE, hub.HF_HUB_OFFLINE, os.environ.get("HF_HUB_OFFLINE"))

    before = state()
    inside = []
    with pytest.raises(ZeroDivisionError), offline():
        inside.append(state()) or 1 / 0
    assert inside == [(True, True, "1")]
    assert state() == before
