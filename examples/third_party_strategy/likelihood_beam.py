"""Stage beam search that asks no judge: the model's own likelihood decides."""

from __future__ import annotations

from dataclasses import dataclass

from cot_engine import Expand, Score, Search, Task, check_range


@dataclass(frozen=True)
class LikelihoodBeam:
    """Grow n candidates for each stage, go on from the one the model finds likeliest."""

    n: int = 4
    scorer: str = "likelihood"

    def __post_init__(self) -> None:
        check_range("n", self.n)

    def search(self, task: Task) -> Search:
        beam = task.start
        for stage in task.plan:
            grown = yield Expand(beam, until=stage, n=self.n)
            scores = yield Score(grown, self.scorer)
            best = max(range(len(grown)), key=lambda i: scores[i])
            beam = (grown[best],)
        return beam[0]
