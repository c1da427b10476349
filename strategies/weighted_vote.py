"""A vote over final answers in which a verifier's probabilities are the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cot_engine import (
    Beam,
    Chain,
    Expand,
    Score,
    Search,
    Task,
    check_between,
    check_range,
    conclusion,
    majority,
    settled,
)


@dataclass(frozen=True)
class WeightedVote:
    """Sample whole responses, give the answer with most weight: the verifier's probabilities.

    Weighted self-consistency (arXiv 2206.02336, 2408.03314). `verifier` is the name of any scorer
    that has a scale; "auto" is the one of the model's profile, "likelihood" the model's own
    confidence. With `stop`, responses are sampled `round` at a time, all of a round at once, until
    the leading answer has that share of all weight, `doubt` added to it, or is too far ahead to be
    overtaken; n at most. Of those that agree, the one of the highest weight is returned. One that
    the budget cut off has no vote, unless all are. With `fill`, more are sampled until the budget
    is used up or `stop` is reached. With `greedy`, the first response is the likeliest one, right
    more often than a sample: with `stop` it is often all that is needed.
    """

    n: int = 8
    verifier: str = "auto"
    stop: float | None = None
    doubt: float = 0.35
    round: int = 2
    fill: bool = False
    greedy: bool = False

    def __post_init__(self) -> None:
        check_range("n", self.n)
        check_range("round", self.round)
        check_between("doubt", self.doubt, 0, 1000)
        if self.stop is not None:
            check_between("stop", self.stop, 0, 1, above=True)

    def search(self, task: Task) -> Search:
        grown: Beam = ()
        weights: tuple[float, ...] = ()
        first = 1 if self.greedy else self._round(0)
        more: Beam = yield Expand(task.start, until="end", n=first, greedy=self.greedy)
        while more:
            grown += more
            weights += yield Score(more, self.verifier, about="whole", probability=True)
            left = self.n - len(grown)
            if self._settled(grown, weights, task, math.inf if self.fill else left):
                break
            if left > 0:
                n = self._round(len(grown))
                more = yield Expand(task.start, until="end", n=n, optional=True)
            elif self.fill:
                n = self.round if self.stop is not None else self.n
                more = yield Expand(task.start, until="end", n=n, upto=1.0)
            else:
                break
        votes = [i for i, c in enumerate(grown) if c.last and c.last.finish != "budget"]
        votes = votes or list(range(len(grown)))
        agreeing = majority(
            [conclusion(grown[i].text, task.plan) for i in votes],
            weights=[weights[i] for i in votes],
            tie=[math.exp(grown[i].likelihood()) for i in votes],
        )
        best: Chain = grown[max((votes[k] for k in agreeing), key=lambda i: weights[i])]
        return best

    def _round(self, so_far: int) -> int:
        return self.n - so_far if self.stop is None else min(self.round, self.n - so_far)

    def _settled(self, grown: Beam, weights: tuple[float, ...], task: Task, left: float) -> bool:
        texts = [conclusion(chain.text, task.plan) for chain in grown]
        return self.stop is not None and settled(texts, self.stop, weights, self.doubt, left)
