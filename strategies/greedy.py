"""Greedy: one response, always the most likely token."""

from __future__ import annotations

from dataclasses import dataclass

from cot_engine import Beam, Expand, Search, Task


@dataclass(frozen=True)
class Greedy:
    """One response, always the most likely token. Nothing is judged."""

    def search(self, task: Task) -> Search:
        beam: Beam = yield Expand(task.start, until="end", greedy=True)
        return beam[0]
