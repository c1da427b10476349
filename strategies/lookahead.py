"""Stage-level beam search in which a stage is judged by where it leads."""

from __future__ import annotations

from dataclasses import dataclass

from cot_engine import (
    Beam,
    ConfigError,
    Expand,
    Search,
    Select,
    Task,
    check_extra,
    check_range,
    spread,
)


@dataclass(frozen=True)
class Lookahead:
    """Grow n candidates for each stage, finish each greedily, and go on from the `keep` whose
    whole responses are best.

    Lookahead search (arXiv 2408.03314): what a stage is worth shows in what comes of it. The
    verifier compares whole responses; without one (verifier=none) the judge does, in a tournament.
    With `agree`, those with the same conclusion are not judged against each other. `extra` is a
    fraction of n: that share of the stages, evenly spread, grows one more.
    """

    n: int = 4
    keep: int = 1
    verifier: str | None = "auto"
    agree: bool = False
    extra: float = 0.0

    def __post_init__(self) -> None:
        check_range("n", self.n)
        check_range("keep", self.keep)
        check_extra(self.extra)
        if self.keep > self.n:
            raise ConfigError(f"keep is {self.keep}, n is {self.n}.", "keep can be n at most.")

    def search(self, task: Task) -> Search:
        beam = task.start
        for k, stage in enumerate(task.plan):
            grown: Beam = yield Expand(beam, until=stage, n=spread(self.n, self.extra, k))
            ends: Beam = yield Expand(grown, until="end", greedy=True)  # those that are done stay
            keep = 1 if stage is task.plan.last else self.keep
            best: Beam = yield Select(ends, keep, "whole", by=self.verifier, agree=self.agree)
            ids = {id for end in best for id in (end.id, end.parent)}
            beam = tuple(chain for chain in grown if chain.id in ids)
        return beam[0]
