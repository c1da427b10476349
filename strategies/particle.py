"""Particle filtering over stages: candidates are resampled by what a verifier gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from cot_engine import (
    Beam,
    Expand,
    Score,
    Search,
    Task,
    check_extra,
    check_range,
    conclusion,
    majority,
    spread,
)


@dataclass(frozen=True)
class Particle:
    """n candidates at a time; after each stage each lives on in proportion to its odds by the
    verifier, some several times and some not at all. At the end they vote.

    Particle filtering (arXiv 2502.01618): weights are odds, the softmax of the verifier's log-odds,
    and a candidate gets its share of n copies, rounded up or down (systematic resampling). The vote
    is weighted by the verifier's probabilities. `extra` is a fraction of n: that share of the
    stages, evenly spread, has one more.
    """

    n: int = 4
    verifier: str = "auto"
    extra: float = 0.0

    def __post_init__(self) -> None:
        check_range("n", self.n)
        check_extra(self.extra)

    def search(self, task: Task) -> Search:
        beam, copies = task.start, [spread(self.n, self.extra, 0)] * len(task.start)
        for k, stage in enumerate(task.plan):
            asked = tuple(
                Expand(
                    tuple(c for c, m in zip(beam, copies, strict=True) if m == many), stage, many
                )
                for many in sorted({m for m in copies if m})
            )
            grown: Beam = sum((yield asked), ())
            whole = stage is task.plan.last
            numbers = yield Score(grown, self.verifier, "whole" if whole else "step", True)
            if not whole:
                odds = [p / (1 - min(p, 1 - 1e-6)) for p in numbers]
                beam, copies = grown, resampled(odds, spread(self.n, self.extra, k + 1))
        texts = [conclusion(chain.text, task.plan) for chain in grown]
        agreeing = majority(texts, weights=numbers)
        return grown[max(agreeing, key=lambda i: numbers[i])]


def resampled(weights: Sequence[float], n: int) -> list[int]:
    """How many of n copies each gets: its share of the weight x n, rounded up or down.

    n points, evenly spaced along the weights laid end to end, each a copy of where it falls. Where
    the first one lies is commonly drawn. Here it is the middle of its space, always: a strategy has
    no random state, and the draws that matter are those of the text, which the run's seed decides.
    Where nothing has weight all have the same.
    """
    weights = list(weights) if sum(weights) > 0 else [1.0] * len(weights)
    ends = list(accumulate(weights))
    points = [(i + 0.5) / n * ends[-1] for i in range(n)]
    starts = [0.0, *ends[:-1]]
    return [sum(a <= p < b for p in points) for a, b in zip(starts, ends, strict=True)]
