"""Stage-level beam search, the method of LLaVA-CoT (arXiv 2411.10440)."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from cot_engine import (
    Beam,
    ConfigError,
    Expand,
    Plan,
    Score,
    Search,
    Select,
    Task,
    check_between,
    check_extra,
    check_range,
    conclusion,
    normalise_answer,
    read_widths,
    spread,
)


@dataclass(frozen=True)
class StageBeam:
    """Grow n candidates for each stage, keep the tournament's winner, go on from it.

    `keep` > 1 carries that many on, each growing n of its own; the last stage keeps one. A stage
    that declares a width grows that many instead of n. `extra` is a fraction of n: that share of
    the stages, evenly spread, grows one more. With `fill`, each stage then goes on, as
    many at a time, until its share of the budget is used up: in proportion to the lengths that the
    plan declares, what earlier stages left included.

    `widths` is one for each stage, such as "4,4,2,1", the last for the last stage; of a shorter
    plan the first ones count for nothing, of a longer one the first is repeated. With a `verifier`,
    its numbers decide in place of the tournament, and the judge only among those that are closer
    than `unsure` (probabilities). With `agree`, candidates that say the same are not judged against
    each other. With `stop`, a stage grows `round` at a time, and no more once the verifier
    ("auto"'s if none is named) gives `keep` of them that probability, or all say the same.
    """

    n: int = 4
    keep: int = 1
    fill: bool = False
    extra: float = 0.0
    verifier: str | None = None
    unsure: float = 0.0
    agree: bool = False
    stop: float | None = None
    round: int = 2
    widths: str = ""

    def __post_init__(self) -> None:
        check_range("n", self.n)
        check_extra(self.extra)
        check_range("keep", self.keep)
        check_range("round", self.round)
        check_between("unsure", self.unsure, 0, 1)
        if self.unsure and self.verifier is None:
            raise ConfigError(
                f"unsure is {self.unsure}, and there is no verifier.", "Name one: verifier=auto."
            )
        if self.stop is not None:
            check_between("stop", self.stop, 0, 1, above=True)
        if not read_widths(self.widths) and self.keep > self.n:
            raise ConfigError(f"keep is {self.keep}, n is {self.n}.", "keep can be n at most.")

    def search(self, task: Task) -> Search:
        beam = task.start
        for k, stage in enumerate(task.plan):
            n = self._width(task.plan, k)
            keep = 1 if stage is task.plan.last else self.keep
            parents, (_, share) = beam, task.plan.span(stage.tag)
            first = n if self.stop is None else min(n, max(self.round, keep))
            grown: Beam = yield Expand(parents, until=stage, n=first)
            enough = yield from self._enough(grown, keep, task)
            while first < n and not enough:
                more = min(self.round, n - first)
                new: Beam = yield Expand(parents, stage, n=more, upto=share, optional=True)
                first, grown = first + more, (*grown, *new)
                enough = not new or (yield from self._enough(grown, keep, task))
            beam = yield self._select(grown, keep)
            while (
                self.fill
                and not enough
                and (new := (yield Expand(parents, until=stage, n=n, upto=share)))
            ):
                beam = yield self._select((*beam, *new), keep)
        return beam[0]

    def _width(self, plan: Plan, k: int) -> int:
        """How many candidates the stage number k grows of each chain."""
        if widths := read_widths(self.widths):
            return widths[max(0, k - len(plan) + len(widths))]
        return plan.stages[k].width or spread(self.n, self.extra, k)

    def _select(self, beam: Beam, keep: int) -> Select:
        return Select(beam, keep, by=self.verifier, unsure=self.unsure, agree=self.agree)

    def _enough(self, grown: Beam, keep: int, task: Task) -> Generator[Score, Any, bool]:
        """Whether more candidates of this stage would hardly make a better one."""
        if self.stop is None:
            return False
        numbers = yield Score(grown, self.verifier or "auto", probability=True)
        said = {_said(chain, task.plan) for chain in grown}
        best = sorted({c.text: number for c, number in zip(grown, numbers, strict=True)}.values())
        good = len(best) >= keep and best[-keep] >= self.stop
        return good or len(grown) > len(said) == 1


def _said(chain: Any, plan: Plan) -> str:
    return normalise_answer(conclusion(chain.text, plan) if chain.done else chain.last.text)
