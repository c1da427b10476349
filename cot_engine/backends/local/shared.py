"""What rows share: prefixes, and pictures that cross-attention layers look at, each held once for
the group of rows that stand on it."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch

from cot_engine.backends.local.kv import KVShape, Slots


@dataclass(slots=True, eq=False)
class Group:
    """`rows` rows that share `length` columns, which are in `slot`; of pictures they see those that
    `seen` [length] says."""

    key: Hashable
    length: int
    slot: int
    rows: int = 0
    seen: torch.Tensor | None = None


class Shared:
    """Group i of `groups` has slot i of `slots`. One that nobody needs any more is replaced by the
    last one."""

    def __init__(self, shape: KVShape) -> None:
        self.shape = shape
        self.groups: list[Group] = []
        self.slots = Slots(shape)
        self._of: dict[Hashable, Group] = {}

    def clear(self) -> None:
        self.groups, self._of, self.slots = [], {}, Slots(self.shape)

    def join(self, key: Hashable, length: int) -> Group:
        """One more row stands on `key`. If it is the first, its group's slot is to be filled; there
        must be room for it."""
        group = self._of.get(key)
        if group is None:
            group = self._of[key] = Group(key, length, len(self.groups))
            self.groups.append(group)
        group.rows += 1
        return group

    def leave(self, group: Group) -> None:
        """One row less stands on it."""
        group.rows -= 1
        if group.rows:
            return
        del self._of[group.key]
        last = self.groups.pop()
        if last is not group:
            self.slots.move(last.slot, group.slot, last.length)
            last.slot = group.slot
            self.groups[last.slot] = last

    @property
    def longest(self) -> int:
        return max(group.length for group in self.groups)
