"""Best of N: whole responses, one tournament."""

from __future__ import annotations

from dataclasses import dataclass

from cot_engine import Expand, Search, Select, Task, check_range


@dataclass(frozen=True)
class BestOfN:
    """Sample n whole responses, keep the tournament's winner. n=1 is one plain sample."""

    n: int = 4

    def __post_init__(self) -> None:
        check_range("n", self.n)

    def search(self, task: Task) -> Search:
        grown = yield Expand(task.start, until="end", n=self.n)
        beam = yield Select(grown, keep=1, about="whole")
        return beam[0]
