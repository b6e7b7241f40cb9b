"""A node that doesn't see the storage of the sweep is refused before it works."""

from __future__ import annotations

import pytest

from greenprune.energy.exclusive import storage_mark
from greenprune.errors import SweepError
from greenprune.stages import check_storage


def test_a_node_that_sees_another_storage_is_refused(tmp_path):
    mark = storage_mark(str(tmp_path / "shared"))
    check_storage(str(tmp_path / "shared"), mark)
    with pytest.raises(SweepError, match=r"that all nodes share, got .*own, which node .* doesn't see"):
        check_storage(str(tmp_path / "own"), mark)
    with pytest.raises(SweepError, match=r"must serve all nodes, got nowhere://bucket, which node .* can't use"):
        check_storage("nowhere://bucket", mark)
