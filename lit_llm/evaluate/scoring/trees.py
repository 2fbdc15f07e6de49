"""Requests as prefix trees, and the forward passes that compute them.

A request is a context and a continuation whose tokens are scored. All its tokens but the last are
input. Requests with common beginnings form a tree: few-shot examples, question, choices. Each token
of a tree is computed once. Unlike the trees of training (`lit_llm.data.trees`), a token may have
several next tokens here, so one-token choices are read from one position.

A forward pass takes one row, which is a forest (`Forest`). A row has at most ``capacity`` tokens.
The beginning of a tree that does not fit into a row is computed once into a key/value cache, and
the rest of the tree is cut into rows that continue it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

SHORTEST_PREFIX = 64
"""Fewest tokens of a common beginning that get a cache of their own.

A shorter one is repeated in each row: a forward pass costs about as much as that.
"""


class Request(NamedTuple):
    """What to score: all tokens of a text, of which the last ``scored`` ones are the continuation.

    Attributes:
        ids: token ids, at least scored + 1 of them.
        scored: number of tokens of the continuation, at least 1.
    """

    ids: Sequence[int]
    scored: int


@dataclass(frozen=True)
class Targets:
    """Tokens to score after places of a row: int64 arrays of one length.

    Attributes:
        places: place in the row whose next token is scored.
        labels: that next token.
        owners: number of the request that the score belongs to.
    """

    places: np.ndarray
    labels: np.ndarray
    owners: np.ndarray


@dataclass(frozen=True)
class Row:
    """The input of one forward pass; the arrays are int64 (n,).

    Attributes:
        ids: tokens.
        until: place in the row where each token's subtree ends, see `Forest`.
        position: distance of each token from the root of its tree, the prefix included.
        targets: what to score.
        prefix: number of the `Prefix` that the row continues. None: its trees are whole.
    """

    ids: np.ndarray
    until: np.ndarray
    position: np.ndarray
    targets: Targets
    prefix: int | None = None

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Prefix:
    """A beginning that several rows continue; ``ids`` int64 (n,).

    ``targets`` has places in ``ids``.
    """

    ids: np.ndarray
    targets: Targets


@dataclass(frozen=True)
class Plan:
    """The forward passes for all requests.

    Attributes:
        rows: rows; those of one prefix follow each other.
        prefixes: what the rows continue.
    """

    rows: list[Row]
    prefixes: list[Prefix]

    @property
    def tokens(self) -> int:
        """Input tokens of all forward passes."""
        return sum(map(len, self.rows)) + sum(len(prefix.ids) for prefix in self.prefixes)


def plan(requests: Sequence[Request], capacity: int, with_prefixes: bool = True) -> Plan:
    """Arrange the requests in as few tokens as one pass over them finds.

    Args:
        requests: what to score.
        capacity: most tokens in a row.
        with_prefixes: whether rows may continue a prefix. Without, a common beginning is repeated
            in each row, and a request of more than ``capacity`` tokens has a longer row of its own.
    """
    return _Planner(requests, capacity, with_prefixes).plan()


class _Range(NamedTuple):
    """Inputs ``begin`` .. ``end`` - 1 in sorted order; their first ``depth`` tokens are elsewhere.

    ``size`` is the number of tokens of their tree from there on.
    """

    begin: int
    end: int
    depth: int
    size: int


class _Planner:
    """The inputs in sorted order, where each shares most with its predecessor."""

    def __init__(self, requests: Sequence[Request], capacity: int, with_prefixes: bool):
        self._requests, self._capacity, self._with_prefixes = requests, capacity, with_prefixes
        owners: dict[tuple[int, ...], list[int]] = {}
        for number, request in enumerate(requests):
            owners.setdefault(tuple(request.ids[:-1]), []).append(number)
        order = sorted(owners)
        self._owners = [owners[ids] for ids in order]
        self._inputs = [np.array(ids, np.int64) for ids in order]
        self._lengths = np.array([len(ids) for ids in order], np.int64)
        # Tokens that each input has in common with the one before it.
        self._shared = np.zeros(len(order), np.int64)
        for i in range(1, len(order)):
            self._shared[i] = _common(self._inputs[i - 1], self._inputs[i])
        self._new = np.concatenate(([0], (self._lengths - self._shared).cumsum()))

    def plan(self) -> Plan:
        loose: list[_Range] = []  # trees that fit into a row
        groups: list[tuple[_Range, list[_Range]]] = []  # a prefix and its rows
        stack = [self._range(0, len(self._inputs), 0)] if self._inputs else []
        while stack:
            here = stack.pop()
            common = self._common_of(here)
            if here.size <= self._capacity:
                loose.append(here)
                continue
            parts = self._children(here, common)
            large = [part for part in parts if part.size > self._capacity]
            if self._with_prefixes and common >= SHORTEST_PREFIX and not self._deeper(here, large):
                rest, alone = self._cut(self._range(here.begin, here.end, common))
                if rest:
                    groups.append((here._replace(depth=common), rest))
                stack += alone
            elif here.end - here.begin == 1:
                loose.append(here)
            else:
                small = [part for part in parts if part.size <= self._capacity]
                loose += self._joined(small, here.depth)
                stack += large
        rows: list[Row] = [self._row(some) for some in _packed(loose, self._capacity)]
        prefixes = []
        for number, (group, ranges) in enumerate(groups):
            prefixes.append(self._prefix(group, ranges))
            rows += [self._row(some, number) for some in _packed(ranges, self._capacity)]
        return Plan(rows, prefixes)

    def _range(self, begin: int, end: int, depth: int) -> _Range:
        first = int(self._lengths[begin]) - depth
        return _Range(begin, end, depth, first + int(self._new[end] - self._new[begin + 1]))

    def _common_of(self, here: _Range) -> int:
        """Number of tokens at the beginning of all inputs of a range."""
        inner = self._shared[here.begin + 1 : here.end]
        return int(min(self._lengths[here.begin], inner.min(initial=np.iinfo(np.int64).max)))

    def _children(self, here: _Range, common: int) -> list[_Range]:
        """The ranges that part after the ``common`` tokens."""
        if here.end - here.begin == 1:
            return []
        cuts = np.flatnonzero(self._shared[here.begin + 1 : here.end] == common) + here.begin + 1
        bounds = [here.begin, *cuts.tolist(), here.end]
        return [self._range(a, b, here.depth) for a, b in itertools.pairwise(bounds)]

    def _deeper(self, here: _Range, large: list[_Range]) -> bool:
        """Whether most of a tree lies in branches that have much longer prefixes of their own."""
        common = self._common_of(here)
        long = [part for part in large if self._common_of(part) >= 2 * common]
        return sum(part.size for part in long) > here.size / 2

    def _joined(self, parts: list[_Range], depth: int) -> list[_Range]:
        """Join neighbours to ranges of at most the capacity."""
        found: list[_Range] = []
        for part in parts:
            if found and found[-1].end == part.begin:
                both = self._range(found[-1].begin, part.end, depth)
                if both.size <= self._capacity:
                    found[-1] = both
                    continue
            found.append(part)
        return found

    def _cut(self, whole: _Range) -> tuple[list[_Range], list[_Range]]:
        """Cut what continues a prefix into ranges of at most the capacity.

        Also returns single inputs of more tokens, as ranges from the root: they need a prefix of
        their own.
        """
        found: list[_Range] = []
        alone: list[_Range] = []
        stack = [whole]
        while stack:
            here = stack.pop()
            if here.size <= self._capacity:
                found.append(here)
            elif here.end - here.begin == 1:
                alone.append(self._range(here.begin, here.end, 0))
            else:
                stack += self._children(here, self._common_of(here))[::-1]
        return self._joined(found, whole.depth), alone

    def _prefix(self, group: _Range, ranges: list[_Range]) -> Prefix:
        """The common beginning of a group, with what is scored in it."""
        ids = self._inputs[group.begin][: group.depth]
        inside = [i for part in ranges for i in range(part.begin, part.end)]
        targets = _Collected()
        for i in inside:
            for number in self._owners[i]:
                self._score(targets, number, np.arange(group.depth), 0)
        return Prefix(ids, targets.arrays())

    def _row(self, ranges: list[_Range], prefix: int | None = None) -> Row:
        """The trees of some ranges, in depth-first order."""
        ids: list[np.ndarray] = []
        positions: list[np.ndarray] = []
        until = np.zeros(sum(part.size for part in ranges), np.int64)
        targets, size = _Collected(), 0
        for part in ranges:
            path = np.empty(0, np.int64)  # places of the tokens from ``part.depth`` on
            for i in range(part.begin, part.end):
                begin = part.depth if i == part.begin else max(int(self._shared[i]), part.depth)
                until[path[begin - part.depth :]] = size
                new = self._inputs[i][begin:]
                places = np.arange(size, size + len(new))
                path = np.concatenate((path[: begin - part.depth], places))
                ids.append(new)
                positions.append(np.arange(begin, begin + len(new)))
                size += len(new)
                for number in self._owners[i]:
                    self._score(targets, number, path, part.depth)
            until[path] = size
        assert size == len(until)
        none = np.empty(0, np.int64)
        return Row(
            np.concatenate(ids or [none]),
            until,
            np.concatenate(positions or [none]),
            targets.arrays(),
            prefix,
        )

    def _score(self, targets: _Collected, number: int, path: np.ndarray, depth: int) -> None:
        """Add the targets of a request whose input tokens ``depth`` and on lie at ``path``."""
        request = self._requests[number]
        length = len(request.ids)
        first = max(length - request.scored - 1, depth)
        last = min(length - 1, depth + len(path))
        if first < last:
            labels = np.array(request.ids[first + 1 : last + 1], np.int64)
            targets.add(path[first - depth : last - depth], labels, number)


class _Collected:
    """Targets, as they are found."""

    def __init__(self) -> None:
        self._places: list[np.ndarray] = [np.empty(0, np.int64)]
        self._labels = [np.empty(0, np.int64)]
        self._owners = [np.empty(0, np.int64)]

    def add(self, places: np.ndarray, labels: np.ndarray, owner: int) -> None:
        self._places.append(places)
        self._labels.append(labels)
        self._owners.append(np.full(len(labels), owner))

    def arrays(self) -> Targets:
        return Targets(*map(np.concatenate, (self._places, self._labels, self._owners)))


def _packed(ranges: list[_Range], capacity: int) -> list[list[_Range]]:
    """Fill rows of ``capacity`` tokens, the longest range first; each goes where it first fits."""
    rows: list[list[_Range]] = []
    rooms: list[int] = []
    for part in sorted((part for part in ranges if part.size), key=lambda p: (-p.size, p.begin)):
        row = next((i for i, room in enumerate(rooms) if room >= part.size), None)
        if row is None:
            rows.append([])
            rooms.append(capacity)
            row = len(rows) - 1
        rows[row].append(part)
        rooms[row] -= part.size
    return rows


def _common(one: np.ndarray, other: np.ndarray) -> int:
    length = min(len(one), len(other))
    differ = np.flatnonzero(one[:length] != other[:length])
    return int(differ[0]) if len(differ) else length
