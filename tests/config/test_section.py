"""What keys and ids are computed from."""

from __future__ import annotations

from typing import ClassVar

from greenprune.config.section import Section


class Inner(Section):
    LATER: ClassVar = {"added": "none"}

    size: int = 1
    added: str = "none"


class Outer(Section):
    LATER: ClassVar = {"inner_too": None}

    inner: Inner = Inner()
    inner_too: Inner | None = None


def test_a_later_field_counts_only_where_it_changes_something():
    assert Inner().identity() == {"size": 1}
    assert Inner(added="each").identity() == {"size": 1, "added": "each"}


def test_a_section_in_a_section_keeps_its_own_rule():
    assert Outer().identity() == {"inner": {"size": 1}}
    changed = Outer(inner=Inner(added="each"), inner_too=Inner())
    assert changed.identity() == {"inner": {"size": 1, "added": "each"}, "inner_too": {"size": 1}}


class Many(Section):
    inners: list[Inner]


def test_sections_in_a_list_keep_their_own_rule():
    assert Many(inners=[Inner(), Inner(added="each")]).identity() == {
        "inners": [{"size": 1}, {"size": 1, "added": "each"}]
    }
