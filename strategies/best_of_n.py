"""Best of N: whole responses, one tournament, or a verifier in its place."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from cot_engine import (
    Beam,
    ConfigError,
    Expand,
    Score,
    Search,
    Select,
    Task,
    check_between,
    check_range,
    conclusion,
    majority,
    settled,
)


@dataclass(frozen=True)
class BestOfN:
    """Sample n whole responses, keep the tournament's winner. n=1 is one plain sample.

    With `fill`, more are sampled, at most n at a time, until the budget is used up; the best so
    far meets them. With a `verifier`, its numbers decide, and the judge only among those whose
    probability is less than `unsure` below the best. With `agree`, responses with the same
    conclusion are not judged against each other. With `stop`, they are sampled `round` at a time
    until one conclusion has that share of the verifier's probabilities ("auto"'s if none is named),
    `doubt` added to them; then the best of those that give it is the answer, and nothing is judged.
    """

    n: int = 4
    fill: bool = False
    verifier: str | None = None
    unsure: float = 0.0
    agree: bool = False
    stop: float | None = None
    doubt: float = 0.35
    round: int = 2

    def __post_init__(self) -> None:
        check_range("n", self.n)
        check_range("round", self.round)
        check_between("unsure", self.unsure, 0, 1)
        if self.unsure and self.verifier is None:
            raise ConfigError(
                f"unsure is {self.unsure}, and there is no verifier.", "Name one: verifier=auto."
            )
        check_between("doubt", self.doubt, 0, 1000)
        if self.stop is not None:
            check_between("stop", self.stop, 0, 1, above=True)

    def search(self, task: Task) -> Search:
        n = self.n if self.stop is None else min(self.round, self.n)
        grown: Beam = yield Expand(task.start, until="end", n=n)
        while self.stop is not None:
            leading: Beam = yield from self._leading(grown, task)
            if leading:
                by = self.verifier or "auto"
                beam: Beam = yield Select(leading, about="whole", by=by, agree=True)
                return beam[0]
            n = min(self.round, self.n - len(grown))
            if n < 1 or not (more := (yield self._more(task, n))):
                break
            grown = (*grown, *more)
        beam = yield self._select(grown)
        while self.fill and (more := (yield Expand(task.start, until="end", n=self.n, upto=1.0))):
            beam = yield self._select((*beam, *more))
        return beam[0]

    def _more(self, task: Task, n: int) -> Expand:
        return Expand(task.start, until="end", n=n, optional=True)

    def _select(self, beam: Beam) -> Select:
        return Select(beam, 1, "whole", by=self.verifier, unsure=self.unsure, agree=self.agree)

    def _leading(self, grown: Beam, task: Task) -> Generator[Score, Any, Beam]:
        """Those of the leading answer, if that is settled; none if it is not."""
        weights = yield Score(grown, self.verifier or "auto", about="whole", probability=True)
        texts = [conclusion(chain.text, task.plan) for chain in grown]
        if self.stop is None or not settled(texts, self.stop, weights, self.doubt):
            return ()
        return tuple(grown[i] for i in majority(texts, weights))
