"""Shared prefixes: a radix tree over tokens whose nodes own the keys and values of their tokens.

A key is a token id, or for an image placeholder a negative number made from the image's digest.
Inserting a sequence yields the node it ends in. New nodes are *pending*: they are planned but not
computed. Two sequences that are planned together share their pending nodes too, so nothing is
computed twice. A node is split where sequences part; splitting needs no copy.

A node owns its children and only knows its parent, so a tree goes with its root, at once, and does
not wait for the garbage collector. Whoever holds a node and needs its path holds the root as well.
"""

from __future__ import annotations

import heapq
import weakref
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from typing import Any

import torch

CHUNK = 4096
"""A longer prompt is read in parts of so many tokens: others go on meanwhile, and what one forward
pass takes is bounded."""

_clock = count()


class Node:
    """Tokens `keys`, ending at position `end`. `kv` is [layers, 2, heads, len(keys), dim].

    `hidden` [width of the model] is the final state at the last token, kept where a request ended;
    `redo` asks for the node to be computed again for its sake. `paid`: it was computed before, and
    charged; without `kv` it was let go of since. `marks` are positions within it whose final states
    are wanted as well: when it is computed it is split there.
    """

    __slots__ = (
        "__weakref__",
        "_parent",
        "children",
        "end",
        "hidden",
        "keys",
        "kv",
        "marks",
        "paid",
        "redo",
        "used",
    )

    def __init__(self, keys: Sequence[int], end: int, parent: Node | None) -> None:
        self.keys = tuple(keys)
        self.end = end
        self.kv: torch.Tensor | Any = None  # while it is pending
        self.hidden: torch.Tensor | Any = None
        self.redo = False
        self.paid = False
        self.marks: set[int] = set()
        self._parent = None if parent is None else weakref.ref(parent)
        self.children: dict[int, Node] = {}
        self.used = next(_clock)

    @property
    def parent(self) -> Node:
        """Of a node that is not the root."""
        found = None if self._parent is None else self._parent()
        if found is None:  # computing on without it would be silently wrong
            raise RuntimeError("A node of a prefix tree was used after its tree was dropped.")
        return found

    @property
    def state(self) -> torch.Tensor:
        """`hidden`, at the end of a request, which is prefilled."""
        assert self.hidden is not None
        return self.hidden

    @property
    def start(self) -> int:
        return self.end - len(self.keys)

    @property
    def pending(self) -> bool:
        return self._parent is not None and (self.kv is None or self.redo)

    def path(self) -> list[Node]:
        """From the first node below the root to this one."""
        nodes, node = [], self
        while node._parent is not None:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]

    def split(self, size: int) -> Node:
        """Give the first `size` tokens to a new parent, which is returned; self keeps the rest.

        Whoever holds self holds the end of the same sequence as before.
        """
        above = self.parent
        assert above is not None  # a root has no tokens to part
        upper = Node(self.keys[:size], self.start + size, above)
        upper.children = {self.keys[size]: self}
        above.children[self.keys[0]] = upper
        upper.paid = self.paid
        upper.marks = {mark for mark in self.marks if mark < upper.end}
        self.marks = {mark for mark in self.marks if mark > upper.end}
        if self.kv is not None:
            upper.kv, self.kv = self.kv.tensor_split((size,), dim=3)
        self.keys, self._parent = self.keys[size:], weakref.ref(upper)
        return upper


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many leading elements are equal: by halves, comparing slices."""
    size = min(len(first), len(second))
    if first[:size] == second[:size]:
        return size
    equal, unequal = 0, size
    while unequal - equal > 1:
        middle = (equal + unequal) // 2
        if first[equal:middle] == second[equal:middle]:
            equal = middle
        else:
            unequal = middle
    return equal


def insert(root: Node, keys: tuple[int, ...]) -> Node:
    """The node below `root` that ends exactly after `keys`; what is missing becomes pending."""
    node, at = root, 0
    while at < len(keys):
        child = node.children.get(keys[at])
        if child is None:
            child = Node(keys[at:], node.end + len(keys) - at, node)
            node.children[keys[at]] = child
            return child
        size = _common(child.keys, keys[at : at + len(child.keys)])
        node = child if size == len(child.keys) else child.split(size)
        node.used = next(_clock)
        at += size
    return node


def in_chunks(size: int) -> list[int]:
    """The parts that so many new tokens are read in."""
    return [CHUNK] * ((size - 1) // CHUNK) + [size - (size - 1) // CHUNK * CHUNK]


def cut(node: Node) -> None:
    """Give what was planned just now, and ends in `node`, to nodes of a chunk each."""
    if node.pending and not node.paid and not node.children:
        for size in in_chunks(len(node.keys))[:-1]:
            node.split(size)


def matched(root: Node, keys: tuple[int, ...]) -> int:
    """How many leading tokens of `keys` are computed, or planned, already."""
    node, at = root, 0
    while at < len(keys) and (child := node.children.get(keys[at])) is not None:
        size = _common(child.keys, keys[at : at + len(child.keys)])
        at += size
        if size < len(child.keys):
            break
        node = child
    return at


def unplan(node: Node, spare: set[int]) -> None:
    """Forget what was planned up to `node` and not computed, but for what others need, who end in
    one of `spare`: nobody will compute it, and an estimate would count it as held."""
    while node.pending and not (node.paid or node.redo or node.children or id(node) in spare):
        above = node.parent
        if above.children.get(node.keys[0]) is node:
            del above.children[node.keys[0]]
        node._parent = None  # whoever comes again with it finds nothing to do
        node = above


def mark(end: Node, place: int) -> bool:
    """Have the final state behind `place` tokens of the path to `end` kept, if all from there on is
    still to be computed; whether it is."""
    for node in end.path():
        if node.start < place < node.end:
            if node.paid or not node.pending:
                return False
            node.marks.add(place)
            return True
        if place == node.end:
            return node.pending and not node.paid
    return False


def part_at_marks(node: Node, hidden: torch.Tensor) -> None:
    """Split a node that was just computed where states are wanted: `hidden` [tokens, width]."""
    first = node.start
    for place in sorted(node.marks):
        upper = node.split(place - node.start)
        upper.hidden = hidden[place - first - 1].clone()


def recompute_end(node: Node) -> None:
    """Make `node`'s last token pending again: its final state is asked for but was not kept."""
    if len(node.keys) > 1:
        node.split(len(node.keys) - 1)
    node.redo = True  # its keys and values stay: rows may be about to copy them


def walk(root: Node) -> Iterator[Node]:
    """Every node below `root`."""
    stack = list(root.children.values())
    while stack:
        node = stack.pop()
        stack.extend(node.children.values())
        yield node


def evict(root: Node, limit: int, spare: set[int]) -> None:
    """Drop the leaves used longest ago until at most `limit` tokens are held, and their memory.

    Nodes whose id() is in `spare` stay. The order depends on this tree's own history alone, so a
    search pays the same alone and among others.
    """
    held = sum(len(n.keys) for n in walk(root) if n.paid or n.kv is not None)
    if held <= limit:
        return

    def free(node: Node) -> bool:
        planned = node.pending and not node.paid
        return not (node.children or planned or id(node) in spare or node is root)

    leaves = [(node.used, node) for node in walk(root) if free(node)]  # `used` is nobody else's
    heapq.heapify(leaves)
    dropped = set()
    while held > limit and leaves:
        _, oldest = heapq.heappop(leaves)
        above = oldest.parent
        assert above is not None and oldest.kv is not None  # neither a root nor pending
        del above.children[oldest.keys[0]]
        held -= len(oldest.keys)
        if oldest.kv is not None:
            dropped.add(oldest.kv.untyped_storage().data_ptr())
        if free(above):
            heapq.heappush(leaves, (above.used, above))
    _apart(walk(root), dropped)


def let_go(nodes: Iterable[Node], spare: set[int], tokens: int) -> int:
    """Let go of the keys and values of all but those in `spare`, those used longest ago first,
    until `tokens` are free. They stay in their trees, to be computed again. Returns how many were
    freed."""
    held = [node for node in nodes if node.kv is not None]
    freed, dropped = 0, set()
    for node in sorted(held, key=lambda node: node.used):
        if freed >= tokens:
            break
        if id(node) not in spare:
            freed += len(node.keys)
            dropped.add(node.kv.untyped_storage().data_ptr())
            node.kv = None
    _apart(held, dropped)
    return freed


def _apart(nodes: Iterable[Node], dropped: set[int]) -> None:
    """What a node was split from holds the memory of all its parts until none looks at it."""
    for node in nodes:
        if node.kv is not None and node.kv.untyped_storage().data_ptr() in dropped:
            node.kv = node.kv.clone()
