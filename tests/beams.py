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


VARIANTS = [Beam(), Beam(1), Beam(3, 2), Beam(2, unit="sentence"), Beam(4, unit="end")]


def selections(answer):
    return [e for e in answer.trace if isinstance(e, Selected)]
