"""Requests packed into rows, so that shared prefixes are computed once.

A row is a small tree laid flat: a shared prefix, then branches, each seen only by its own tokens.

    slot      0 1 2 3 | 4 5 | 6 7 8        branch 0 is the shared prefix
    branch    0 0 0 0 | 1 1 | 2 2 2        positions continue from it in every branch
    position  0 1 2 3 | 4 5 | 4 5 6        branch 2 sees branches 0 and 2

The candidates of one question share their context this way, and short requests that share nothing still fill a row
together. An estimate of the work decides whether to merge, because attention grows with the square of a row's length.
Everything here is plain Python, and the row that a request goes to never changes its result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pangu_lab.evaluate.split import TokenPair, common_prefix

LONGEST_ROW = 1024  # slots; more only where the model's own window is longer
ATTENTION_COST = 5.0  # of a query-key pair, in products of hidden size; measured on a CPU, softmax included


@dataclass
class Row:
    """One row of a batch, and which of its outputs are needed.

    Attributes:
        ids, positions, branches: a value for each slot.
        wanted: (slot, target) pairs, each once: the probability of ``target`` after ``slot``.
        reads: for each request in the row its number and the indices into ``wanted`` of its scored tokens.
    """

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    branches: list[int] = field(default_factory=list)
    wanted: list[tuple[int, int]] = field(default_factory=list)
    reads: list[tuple[int, list[int]]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)


def bucket(length: int, longest: int) -> int:
    """The row length used for ``length`` slots: 64, 128, 192, 256, 384, 512, 768, 1024, 1536 … or ``longest``.

    There are few lengths, because each costs a compilation; they are close enough together that little is padding.
    """
    size = 64
    while size < length:
        step = 64 if size < 256 else 1 << (size.bit_length() - 2)
        size += step
    return min(size, max(longest, length))


def plan_rows(pairs: Sequence[TokenPair], hidden_size: int, window: int) -> list[Row]:
    """Put every request with something to score into a row; the longest rows come first.

    Args:
        hidden_size: of the model, for the estimate of the work.
        window: the longest input, in tokens, that a request may have.
    """
    longest = max(LONGEST_ROW, window)
    order = sorted((i for i in range(len(pairs)) if pairs[i].targets), key=lambda i: pairs[i].inputs)
    groups: list[_Group] = []
    for number in order:
        inputs = pairs[number].inputs
        merged = groups[-1].with_member(number, inputs) if groups else None
        if merged is not None and merged.length <= longest:
            separate = _work(groups[-1].length, hidden_size, longest) + _work(len(inputs), hidden_size, longest)
            if _work(merged.length, hidden_size, longest) <= separate:
                groups[-1] = merged
                continue
        groups.append(_Group([number], len(inputs), inputs, len(inputs)))
    rows = [_lay_out(group, pairs) for group in groups]
    return sorted(rows, key=len, reverse=True)


@dataclass(frozen=True)
class _Group:
    """Requests that will share a row. ``first`` is one member's input; all begin with its first ``shared`` tokens."""

    members: list[int]
    shared: int
    first: tuple[int, ...]
    tokens: int  # of all members, the shared ones counted for each

    @property
    def length(self) -> int:
        return self.tokens - self.shared * (len(self.members) - 1)

    def with_member(self, number: int, inputs: tuple[int, ...]) -> _Group:
        shared = common_prefix(self.first[: self.shared], inputs)
        return _Group([*self.members, number], shared, self.first, self.tokens + len(inputs))


def _work(length: int, hidden_size: int, longest: int) -> float:
    """Multiplications needed for a row of this many slots, up to a factor that all rows share."""
    slots = bucket(length, longest)
    return slots * (12.0 * hidden_size + ATTENTION_COST * slots)


def _lay_out(group: _Group, pairs: Sequence[TokenPair]) -> Row:
    row = Row(list(group.first[: group.shared]), list(range(group.shared)), [0] * group.shared)
    wanted: dict[tuple[int, int], int] = {}  # (slot, target) → index
    for branch, number in enumerate(group.members, 1):
        pair = pairs[number]
        own = pair.inputs[group.shared :]
        begin = len(row)
        row.ids += own
        row.positions += range(group.shared, group.shared + len(own))
        row.branches += [branch] * len(own)
        reads = []
        for index, target in enumerate(pair.targets, pair.start):
            previous = index - 1  # the token that predicts this one
            slot = previous if previous < group.shared else begin + previous - group.shared
            reads.append(wanted.setdefault((slot, target), len(wanted)))
        row.reads.append((number, reads))
    row.wanted = list(wanted)
    return row
