"""What there is room for now: the next pass over prompts, and the rows that are written.

Prompts and rows take turns. Where there is no room for what is due, prefixes of what waits give
way (`memory`), then slots that nobody uses, then rows, which wait again and lose nothing.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable

from cot_engine.backends.local.decode import Batch
from cot_engine.backends.local.jobs import DecodeRow, Job
from cot_engine.backends.local.kv import BLOCK
from cot_engine.backends.local.memory import Memory
from cot_engine.backends.local.prefill import Planned, Prefill, columns_of, plan


class Room:
    """`active` gives the requests in flight, whose prefixes stay. `lock` guards the trees."""

    def __init__(
        self,
        memory: Memory,
        batch: Batch,
        prefill: Prefill,
        lock: threading.Lock,
        active: Callable[[], set[Job]],
    ) -> None:
        self.memory, self.batch, self.prefill = memory, batch, prefill
        self.lock, self.active = lock, active

    def planned(self, jobs: list[Job], columns: int) -> list[Planned] | None:
        """What the next pass over prompts computes; None if rows must end before it has room."""
        rows = self.batch.tokens + _owed(self.batch.rows)

        def takes(parts: list[Planned]) -> int:
            return columns_of(parts) + sum(part.size for part in parts)

        wanted = plan(jobs, lambda parts: columns_of(parts) <= columns)
        if not wanted or self.memory.room(rows + self.prefill.tokens) >= takes(wanted):
            return wanted
        self.prefill.clear()
        with self.lock:
            self.memory.make_room(min(takes(wanted), self.memory.limit // 4), rows, self.active())
        room = self.memory.room(rows)
        parts = plan(
            jobs,
            lambda some: columns_of(some) <= columns and takes(some) <= room,
        )
        if takes(parts) <= room:
            return parts
        with self.lock:
            fits = self.memory.make_room(takes(parts), rows, self.active())
        if fits:
            return parts
        self.batch.trim()
        rows = self.batch.tokens + _owed(self.batch.rows)
        fits = self.memory.room(rows) >= takes(parts)
        return parts if fits or not self.batch.rows else None

    def seated(self, waiting: deque[DecodeRow], most: int) -> list[DecodeRow]:
        """The rows that join now. Those for which there is no room any more wait again."""
        batch = self.batch
        longest = max((row.own for row in batch.rows), default=0) + 1
        if not waiting and longest <= batch.slots.columns:
            return []
        rows = list(itertools.islice(itertools.chain(batch.rows, waiting), most))
        fitting = self._fitting(rows)
        if fitting < len(rows):
            self.prefill.clear()
            with self.lock:
                self.memory.make_room(self._slots(rows), 0, self.active())
            fitting = max(1, self._fitting(rows))
        seated, joining = len(batch.rows), rows[:fitting]
        batch.room = self.memory.room(self.prefill.tokens) - _owed(joining)
        grown = batch.takes(joining, beside=True)
        if fitting < seated or (grown > batch.tokens and grown + batch.tokens > batch.room):
            # Old and new slots do not fit beside each other, or not all rows do.
            waiting.extendleft(reversed(batch.park(0)))
            batch.clear()
            seated = 0
        return [waiting.popleft() for _ in range(fitting - seated)]

    def _slots(self, rows: list[DecodeRow]) -> int:
        """What slots for these take, and what they hand over to their trees before the slots are
        given back."""
        return self.batch.takes(rows) + _owed(rows)

    def _fitting(self, rows: list[DecodeRow]) -> int:
        """How many of the first of these there is room for."""
        room = self.memory.room(self.prefill.tokens)
        count = len(rows)
        while count and self._slots(rows[:count]) > room:
            count = min(count - 1, room // max(1, self._slots(rows[:count]) // count))
        return max(0, count)

    def let_go(self) -> bool:
        """Let go of all that nobody in flight stands on; whether there was anything."""
        before = self.memory.count()
        with self.lock:
            self.memory.make_room(self.memory.limit, 0, self.active())
        return self.memory.most < before


def _owed(rows: list[DecodeRow]) -> int:
    """What rows hand over to their trees before their slots are given back."""
    return sum(len(row.ids) + BLOCK for row in rows)
