"""Beam search with a few more settings than ours has, for tests of the core."""

from __future__ import annotations

from dataclasses import dataclass

from cot_engine.core.events import Selected
from cot_engine.search.strategy import Expand, Select


@dataclass(frozen=True)
class Beam:
    n: int = 4
    keep: int = 1
    unit: str = "stage"

    def search(self, task):
        beam = task.start
        if self.unit == "stage":
            for stage in task.plan:
                grown = yield Expand(beam, until=stage, n=self.n)
                beam = yield Select(grown, keep=self.keep)
            return beam[0]
        while not all(chain.done for chain in beam):
            grown = yield Expand(beam, until=self.unit, n=self.n)
            about = "whole" if self.unit == "end" else "step"
            beam = yield Select(grown, keep=self.keep, about=about)
        return beam[0]


@dataclass(frozen=True)
class Lookahead:
    """Judges what would come after each stage, and keeps what that grew from."""

    n: int = 3

    def search(self, task):
        beam = task.start
        for stage, after in zip(task.plan.stages, task.plan.stages[1:], strict=False):
            grown = yield Expand(beam, until=stage, n=self.n)
            ahead = yield Select((yield Expand(grown, until=after)))
            beam = tuple(c for c in grown if f"{ahead[0].id}.".startswith(f"{c.id}."))
        return (yield Select((yield Expand(beam, until=task.plan.last, n=self.n))))[0]


@dataclass(frozen=True)
class Apart:
    """Two beams that go on for themselves, what they ask sent together; their best meet."""

    n: int = 2

    def search(self, task):
        grown = yield Expand(task.start, until=task.plan.stages[0], n=self.n)
        beams = yield Select(grown, keep=2)
        for stage in task.plan.stages[1:]:
            grown = yield tuple(Expand((chain,), until=stage, n=self.n) for chain in beams)
            kept = yield tuple(Select(beam) for beam in grown)
            beams = tuple(beam[0] for beam in kept)
        return (yield Select(beams, about="whole"))[0]


VARIANTS = [Beam(), Beam(1), Beam(3, 2), Beam(2, unit="sentence"), Beam(4, unit="end")]


def selections(answer):
    return [e for e in answer.trace if isinstance(e, Selected)]
