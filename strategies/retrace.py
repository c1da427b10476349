"""Stage-level beam search by a verifier that goes back where it got nowhere."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import Any

from cot_engine import (
    Beam,
    ConfigError,
    Expand,
    Plan,
    Retrace,
    Score,
    Search,
    Select,
    Task,
    check_between,
    check_extra,
    check_range,
    spread,
)


@dataclass(frozen=True)
class RetraceBeam:
    """Grow n candidates for each stage, go on from the `keep` best by a verifier; go back where
    they are not good enough.

    Once the stage `at` is written (the last but one, unless named), the `place`-th best of all that
    were written of it must have the `threshold`; else all is grown again from the stage `back` (the
    one before) on, in at most `rounds` rounds; then it goes on with the best there are. The
    threshold is a probability (with `raw` a number on the verifier's own scale), or "online": the
    mean of what the stage `back` was given so far, which is what another round promises.
    """

    n: int = 4
    keep: int = 1
    verifier: str = "auto"
    threshold: float | str = "online"
    rounds: int = 3
    place: int = 1
    at: str = ""
    back: str = ""
    raw: bool = False
    extra: float = 0.0

    def __post_init__(self) -> None:
        for name in ("n", "keep", "rounds", "place"):
            check_range(name, getattr(self, name))
        check_extra(self.extra)
        for name in ("keep", "place"):
            if getattr(self, name) > self.n:
                raise ConfigError(
                    f"{name} is {getattr(self, name)}, n is {self.n}.", f"{name} can be n at most."
                )
        if isinstance(self.threshold, str) and self.threshold != "online":
            raise ConfigError(
                f"threshold is {self.threshold!r}.", 'It must be a number, or "online".'
            )
        if not isinstance(self.threshold, str):
            low, high = (-1e6, 1e6) if self.raw else (0, 1)
            check_between("threshold", self.threshold, low, high)

    def search(self, task: Task) -> Search:
        stages, (back, at) = task.plan.stages, self._places(task.plan)
        start: Beam = task.start
        for k, stage in enumerate(stages[:back]):
            grown: Beam = yield Expand(start, until=stage, n=self._n(k))
            start = yield Select(grown, self.keep, by=self.verifier)
        held: Beam = ()
        numbers: dict[str, float] = {}  # by text: what is written twice is not two
        fresh: tuple[float, ...] = ()  # what another round may be expected to begin with
        _, share = task.plan.span(stages[at].tag)
        for attempt in range(1, self.rounds + 1):
            again: dict[str, Any] = {"upto": share, "optional": True} if attempt > 1 else {}
            beam: Beam = start
            for k in range(back, at + 1):
                grown = yield Expand(beam, until=stages[k], n=self._n(k), **again)
                if not grown:  # the budget does not pay another round
                    break
                given = yield Score(grown, self.verifier, probability=not self.raw)
                fresh += given if k == back else ()
                if k == at:
                    held += grown
                    numbers |= {c.text: number for c, number in zip(grown, given, strict=True)}
                else:
                    beam = yield Select(grown, self.keep, by=self.verifier)
            best = sorted(numbers.values(), reverse=True)[: self.place]
            least = float(fmean(fresh) if self.threshold == "online" else self.threshold)
            if not grown or best[-1] >= least or attempt == self.rounds:
                break
            rounds = {"place": len(best), "attempt": attempt + 1, "of": self.rounds}
            start = yield Retrace(held, stages[back], best[-1], least, **rounds)
        beam = yield Select(held, 1 if at == len(stages) - 1 else self.keep, by=self.verifier)
        for k, stage in enumerate(stages[at + 1 :], at + 1):
            grown = yield Expand(beam, until=stage, n=self._n(k))
            keep = 1 if stage is task.plan.last else self.keep
            beam = yield Select(grown, keep, by=self.verifier)
        return beam[0]

    def _n(self, k: int) -> int:
        return spread(self.n, self.extra, k)

    def _places(self, plan: Plan) -> tuple[int, int]:
        """The numbers of the stages `back` and `at` in a plan. Raises ConfigError."""
        tags = [stage.tag for stage in plan]
        for name, tag in (("at", self.at), ("back", self.back)):
            if tag and tag not in tags:
                raise ConfigError(
                    f"{name} is {tag!r}, and the stages of this problem are {', '.join(tags)}.",
                    "Name one of them, or leave it out: then it depends on the plan.",
                )
        at = tags.index(self.at) if self.at else max(0, len(tags) - 2)
        back = tags.index(self.back) if self.back else max(0, at - 1)
        if back > at:
            raise ConfigError(
                f"back is {tags[back]!r}, which comes after {tags[at]!r} (at).",
                "Go back to an earlier stage, or to the same one.",
            )
        return back, at
