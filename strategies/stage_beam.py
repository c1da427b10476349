"""Stage-level beam search, the method of LLaVA-CoT (arXiv 2411.10440)."""

from __future__ import annotations

from dataclasses import dataclass

from cot_engine import ConfigError, Expand, Search, Select, Task, check_extra, check_range, spread


@dataclass(frozen=True)
class StageBeam:
    """Grow n candidates for each stage, keep the tournament's winner, go on from it.

    `keep` > 1 carries that many on, each growing n of its own; the last stage keeps one. A stage
    that declares a width grows that many instead of n. `extra` is a fraction of n: that share of
    the stages, evenly spread, grows one more. With `fill`, each stage then goes on, as
    many at a time, until its share of the budget is used up: in proportion to the lengths that the
    plan declares, what earlier stages left included.
    """

    n: int = 4
    keep: int = 1
    fill: bool = False
    extra: float = 0.0

    def __post_init__(self) -> None:
        check_range("n", self.n)
        check_extra(self.extra)
        check_range("keep", self.keep)
        if self.keep > self.n:
            raise ConfigError(f"keep is {self.keep}, n is {self.n}.", "keep can be n at most.")

    def search(self, task: Task) -> Search:
        beam = task.start
        for k, stage in enumerate(task.plan):
            n = stage.width or spread(self.n, self.extra, k)
            keep = 1 if stage is task.plan.last else self.keep
            parents, (_, share) = beam, task.plan.span(stage.tag)
            grown = yield Expand(parents, until=stage, n=n)
            beam = yield Select(grown, keep=keep)
            while self.fill and (more := (yield Expand(parents, until=stage, n=n, upto=share))):
                beam = yield Select((*beam, *more), keep=keep)
        return beam[0]
