"""Self-consistency (Wang et al. 2022, arXiv 2203.11171): the answer that most responses give."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cot_engine import Chain, Expand, Search, Task, check_range, conclusion, majority


@dataclass(frozen=True)
class Majority:
    """Sample n whole responses, give the answer that most of them reach. Nothing is judged.

    Answers are compared normalised. Equal votes are decided by the summed likelihood of the
    responses, then by which came first. Of those that agree, the likeliest response is returned.
    One that the budget cut off has no vote, unless all are. With `fill`, more are sampled, at most
    n at a time, until the budget is used up.
    """

    n: int = 4
    fill: bool = False

    def __post_init__(self) -> None:
        check_range("n", self.n)

    def search(self, task: Task) -> Search:
        grown: Sequence[Chain] = yield Expand(task.start, until="end", n=self.n)
        while self.fill and (more := (yield Expand(task.start, until="end", n=self.n, upto=1.0))):
            grown = (*grown, *more)
        grown = [c for c in grown if c.last and c.last.finish != "budget"] or grown
        agreeing = majority(
            [conclusion(chain.text, task.plan) for chain in grown],
            weights=[chain.count for chain in grown],
            tie=[math.exp(chain.likelihood()) for chain in grown],
        )
        return max((grown[i] for i in agreeing), key=lambda chain: chain.likelihood())
