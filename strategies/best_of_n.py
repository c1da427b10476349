"""Best of N: whole responses, one tournament."""

from __future__ import annotations

from dataclasses import dataclass

from cot_engine import Beam, Expand, Search, Select, Task, check_range


@dataclass(frozen=True)
class BestOfN:
    """Sample n whole responses, keep the tournament's winner. n=1 is one plain sample.

    With `fill`, more are sampled, at most n at a time, until the budget is used up; the best so
    far meets them.
    """

    n: int = 4
    fill: bool = False

    def __post_init__(self) -> None:
        check_range("n", self.n)

    def search(self, task: Task) -> Search:
        grown = yield Expand(task.start, until="end", n=self.n)
        beam: Beam = yield Select(grown, keep=1, about="whole")
        while self.fill and (more := (yield Expand(task.start, until="end", n=self.n, upto=1.0))):
            beam = yield Select((*beam, *more), keep=1, about="whole")
        return beam[0]
