"""Several stage beams that do not meet until the end."""

from __future__ import annotations

from dataclasses import dataclass

from cot_engine import (
    Beam,
    Expand,
    Score,
    Search,
    Select,
    Task,
    check_extra,
    check_range,
    conclusion,
    majority,
    spread,
)


@dataclass(frozen=True)
class Diverse:
    """`beams` stage beams of n candidates each, which do not meet until the end; then they vote.

    Diverse verifier tree search (Beeching et al. 2024): a beam is never dropped for another's sake,
    so that the answers are of different minds. Each goes on from its best by the verifier; the vote
    is weighted by the verifier's probabilities. Without one (verifier=none) tournaments decide, and
    at the end one among those that differ. `extra` is a fraction of n: that share of the stages,
    evenly spread, grows one more in each beam.
    """

    n: int = 2
    beams: int = 2
    verifier: str | None = "auto"
    extra: float = 0.0

    def __post_init__(self) -> None:
        check_range("n", self.n)
        check_range("beams", self.beams)
        check_extra(self.extra)

    def search(self, task: Task) -> Search:
        beam: Beam = task.start
        for k, stage in enumerate(task.plan):
            n = spread(self.n, self.extra, k)
            if beam is task.start:  # one beginning of all: dealt out
                grown: Beam = yield Expand(beam, until=stage, n=n * self.beams)
                parts = [grown[j :: self.beams] for j in range(self.beams)]
            else:
                grown = yield Expand(beam, until=stage, n=n)
                parts = [tuple(c for c in grown if b.id in (c.id, c.parent)) for b in beam]
            asked = tuple(Select(part, by=self.verifier) for part in parts if part)
            beam = sum((yield asked), ())
        if self.verifier is None:
            beam = yield Select(beam, about="whole", agree=True)
            return beam[0]
        numbers = yield Score(beam, self.verifier, about="whole", probability=True)
        agreeing = majority([conclusion(c.text, task.plan) for c in beam], weights=numbers)
        return beam[max(agreeing, key=lambda i: numbers[i])]
