"""Token sequences packed into rows in which a common beginning stands once.

The choices of a question begin with the same context. A row holds them as a tree: the first sequence whole,
each further one from where it leaves the row's earlier ones. Under a mask that lets a token see its ancestors
only, and with its place in its own sequence as position, each token's hidden state is the one it has alone.

    sequences   7 1 2 · 7 1 3 4 · 7 5
    tokens      7 1 2 3 4 5
    depths      0 1 2 2 3 1
    branches    (0, 3, after None) (3, 5, after token 1) (5, 6, after token 0)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch

KEYS_A_TOKEN = 4096  # a token's linear layers cost as much as attending to so many others (6 · hidden_size)
WORTH = 0.9  # a sequence joins a row where that costs at most this share of a row of its own


@dataclass(frozen=True)
class Branch:
    """Tokens `start` to `stop` of a row, each after the one before; the first comes after `parent`."""

    start: int
    stop: int
    parent: int | None


@dataclass
class Row:
    """A tree of sequences. members: which sequences; paths: for each member the row's tokens it consists of."""

    tokens: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    branches: list[Branch] = field(default_factory=list)
    members: list[int] = field(default_factory=list)
    paths: list[list[int]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.tokens)

    def add(self, member: int, sequence: Sequence[int], shared: int) -> None:
        """Append a sequence that has its first `shared` tokens in common with the one added before."""
        path = self.paths[-1][:shared] if shared else []
        if shared < len(sequence):
            start, stop = len(self), len(self) + len(sequence) - shared
            self.tokens += sequence[shared:]
            self.depths += range(shared, len(sequence))
            self.branches.append(Branch(start, stop, path[-1] if path else None))
            path = [*path, *range(start, stop)]
        self.members.append(member)
        self.paths.append(path)


def pack(sequences: Sequence[list[int]], members: Iterable[int], longest: int) -> list[Row]:
    """Rows of the sequences numbered `members`, longest row first.

    In lexicographic order a sequence shares most with its neighbour. `longest` bounds a row's tokens, except
    that any single sequence fits, and a second one of its length.
    """
    rows: list[Row] = []
    last: list[int] = []
    for member in sorted(members, key=sequences.__getitem__):
        sequence = sequences[member]
        shared = common_prefix(last, sequence)
        if not rows or not _joins(len(rows[-1]), len(sequence), shared, max(longest, 2 * len(sequence))):
            rows.append(Row())
            shared = 0
        rows[-1].add(member, sequence, shared)
        last = sequence
    return sorted(rows, key=len, reverse=True)


def _joins(row: int, sequence: int, shared: int, longest: int) -> bool:
    together = row + sequence - shared
    return together <= longest and _cost(together) - _cost(row) <= WORTH * _cost(sequence)


def _cost(tokens: int) -> int:
    """Of a row: linear layers, and attention of each token to every other."""
    return tokens * (KEYS_A_TOKEN + tokens)


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences have in common before they differ."""
    length = min(len(first), len(second))
    if first[:length] == second[:length]:
        return length
    return next(index for index in range(length) if first[index] != second[index])


def ancestors(rows: Sequence[Row]) -> torch.Tensor:
    """Who sees whom, bool [rows, tokens, tokens] (queries by keys): a token its ancestors and itself.

    Rows are padded on the right; padding sees only itself, so that no softmax is over nothing.
    """
    longest = max(map(len, rows))
    seen = torch.eye(longest, dtype=torch.bool).repeat(len(rows), 1, 1)
    causal = torch.ones(longest, longest, dtype=torch.bool).tril()
    for matrix, row in zip(seen, rows, strict=True):
        for branch in row.branches:
            own = slice(branch.start, branch.stop)
            if branch.parent is not None:
                matrix[own] = matrix[branch.parent]
            length = branch.stop - branch.start
            matrix[own, own] = causal[:length, :length]
    return seen


def padded(rows: Sequence[list[int]]) -> torch.Tensor:
    """LongTensor [rows, longest], zeros on the right."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
