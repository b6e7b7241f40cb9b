"""Token sequences packed into a batch in which a common beginning stands once.

The choices of a question begin with the same context. They are a tree: the first sequence whole, each further
one from where it leaves the earlier ones. Trees side by side fill the rows of a batch, so little is padding.
Under a mask that lets a token see its ancestors only, and with its place in its own sequence as position, each
token's hidden state is the one it has alone.

    sequences   7 1 2 · 7 1 3 4 · 7 5
    tokens      7 1 2 3 4 5
    depths      0 1 2 2 3 1
    branches    (0, 3, after None) (3, 5, after token 1) (5, 6, after token 0)
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch

KEYS_A_TOKEN = 4096  # a token's linear layers cost as much as attending to so many others (6 · hidden_size)
WORTH = 0.9  # a sequence joins a tree where that costs at most this share of a tree of its own
ROW = 128  # short trees fill rows of so many tokens


@dataclass(frozen=True)
class Branch:
    """Tokens `start` to `stop` of a tree, each after the one before; the first comes after `parent`."""

    start: int
    stop: int
    parent: int | None


@dataclass
class Tree:
    """Sequences of one beginning. members: which ones; paths: the tree's tokens that each member consists of."""

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


TreeBatch = list[list[Tree]]  # rows of trees side by side


def grow(sequences: Sequence[list[int]], members: Iterable[int], longest: int) -> list[Tree]:
    """Trees of the sequences numbered `members`, shortest first.

    In lexicographic order a sequence shares most with its neighbour. `longest` bounds a tree's tokens, except
    that any single sequence fits, and a second one of its length.
    """
    trees: list[Tree] = []
    last: list[int] = []
    for member in sorted(members, key=sequences.__getitem__):
        sequence = sequences[member]
        shared = common_prefix(last, sequence)
        if not trees or not _joins(len(trees[-1]), len(sequence), shared, max(longest, 2 * len(sequence))):
            trees.append(Tree())
            shared = 0
        trees[-1].add(member, sequence, shared)
        last = sequence
    return sorted(trees, key=len)


def _joins(tree: int, sequence: int, shared: int, longest: int) -> bool:
    together = tree + sequence - shared
    return together <= longest and _cost(together) - _cost(tree) <= WORTH * _cost(sequence)


def _cost(tokens: int) -> int:
    """Of a tree: linear layers, and attention of each token to every other."""
    return tokens * (KEYS_A_TOKEN + tokens)


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences have in common before they differ."""
    length = min(len(first), len(second))
    if first[:length] == second[:length]:
        return length
    return next(index for index in range(length) if first[index] != second[index])


def take_batch(trees: list[Tree], tokens: int) -> TreeBatch:
    """Take trees off the list, sorted shortest first, for a batch of at most `tokens`, or of the longest tree.

    Each row begins with the longest tree left and is filled up with the longest that still fit.
    """
    lengths = [len(tree) for tree in trees]
    width = max(lengths[-1], min(ROW, tokens))
    batch: TreeBatch = []
    while trees and len(batch) < max(1, tokens // width):
        row, room = [], width
        while fitting := bisect_right(lengths, room):
            row.append(trees.pop(fitting - 1))
            room -= lengths.pop(fitting - 1)
        batch.append(row)
    return batch


def ancestors(batch: TreeBatch) -> torch.Tensor:
    """Who sees whom, bool [rows, tokens, tokens] (queries by keys): a token its ancestors and itself.

    Rows are padded on the right; padding sees only itself, so that no softmax is over nothing.
    """
    width = width_of(batch)
    seen = torch.eye(width, dtype=torch.bool).repeat(len(batch), 1, 1)
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    for matrix, row in zip(seen, batch, strict=True):
        for begin, tree in zip(starts(row), row, strict=True):
            for branch in tree.branches:
                own = slice(begin + branch.start, begin + branch.stop)
                if branch.parent is not None:
                    matrix[own] = matrix[begin + branch.parent]
                length = branch.stop - branch.start
                matrix[own, own] = causal[:length, :length]
    return seen


def starts(row: Sequence[Tree]) -> list[int]:
    """Where in the row each tree begins."""
    return [0, *accumulate(len(tree) for tree in row[:-1])]


def width_of(batch: TreeBatch) -> int:
    return max(sum(map(len, row)) for row in batch)


def is_plain(batch: TreeBatch) -> bool:
    """Whether each row is one sequence, or beginnings of one: the model's own causal mask does."""
    return all(len(row) == len(row[0].branches) == 1 for row in batch)


def padded(rows: Iterable[Iterable[int]], width: int) -> torch.Tensor:
    """LongTensor [rows, width], zeros on the right."""
    filled = [list(row) for row in rows]
    return torch.tensor([row + [0] * (width - len(row)) for row in filled])
