"""SWIRES: stage-wise search that goes back where it got nowhere (arXiv 2411.10440, ICCV 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import Any

from cot_engine import (
    Beam,
    ConfigError,
    Expand,
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
class Swires:
    """One SUMMARY; n CAPTIONs, `keep` kept; `each` REASONINGs of each, `hold` kept; one CONCLUSION
    of each, the best of them. All by a verifier.

    Where the second best REASONING has less than `threshold`, it goes back to CAPTION, and adds
    to what it has, in at most `rounds` rounds; then it goes on with the best there are. The
    threshold is a probability (with `raw` a number on the verifier's own scale), or "online": the
    mean of the CAPTIONs seen so far, which is what another one promises. In another plan these are
    the last three stages, and those before are written once; with two the first is gone back to
    itself; one is sampled `hold` times. `extra` is a fraction of n: in that share of the rounds,
    evenly spread, there is one more.
    """

    n: int = 4
    keep: int = 2
    each: int = 2
    hold: int = 3
    rounds: int = 3
    verifier: str = "auto"
    threshold: float | str = "online"
    raw: bool = False
    extra: float = 0.0

    def __post_init__(self) -> None:
        for name in ("n", "keep", "each", "hold", "rounds"):
            check_range(name, getattr(self, name))
        check_extra(self.extra)
        if self.keep > self.n:
            raise ConfigError(f"keep is {self.keep}, n is {self.n}.", "keep can be n at most.")
        if self.hold > self.keep * self.each:
            raise ConfigError(
                f"hold is {self.hold}, and there are {self.keep * self.each} to hold of.",
                "It can be keep x each at most.",
            )
        if isinstance(self.threshold, str) and self.threshold != "online":
            raise ConfigError(
                f"threshold is {self.threshold!r}.", 'It must be a number, or "online".'
            )
        if not isinstance(self.threshold, str):
            low, high = (-1e6, 1e6) if self.raw else (0, 1)
            check_between("threshold", self.threshold, low, high)

    def search(self, task: Task) -> Search:
        *before, last = task.plan.stages
        at = before.pop() if before else None
        back = before.pop() if before else at
        start = task.start
        for stage in before:
            start = yield Expand(start, until=stage)
        if at is None or back is None:
            beam: Beam = yield Expand(start, until=last, n=self.hold)
            best: Beam = yield Select(beam, about="whole", by=self.verifier)
            return best[0]
        held: Beam = ()
        fresh: tuple[float, ...] = ()  # what another round may be expected to begin with
        numbers: dict[str, float] = {}  # by text: what is written twice is not two
        _, share = task.plan.span(at.tag)
        for attempt in range(1, self.rounds + 1):
            again: dict[str, Any] = {"upto": share, "optional": True} if attempt > 1 else {}
            kept, n = start, self.keep * self.each
            if back is not at:
                n = spread(self.n, self.extra, attempt - 1)
                grown: Beam = yield Expand(start, until=back, n=n, **again)
                if not grown:  # the budget does not pay another round
                    break
                fresh += yield Score(grown, self.verifier, probability=not self.raw)
                kept, n = (yield Select(grown, self.keep, by=self.verifier)), self.each
            grown = yield Expand(kept, until=at, n=n, **again)
            held += grown
            if grown:
                given = yield Score(grown, self.verifier, probability=not self.raw)
                numbers |= {c.text: number for c, number in zip(grown, given, strict=True)}
            seen = fresh or numbers.values()
            least = fmean(seen) if self.threshold == "online" else self.threshold
            second = sorted(numbers.values())[-2:][0]
            if second >= float(least) or attempt == self.rounds:
                break
            place = min(2, len(numbers))
            rounds = {"place": place, "attempt": attempt + 1, "of": self.rounds}
            start = yield Retrace(held, back, second, float(least), **rounds)
        beam = yield Select(held, self.hold, by=self.verifier)
        beam = yield Expand(beam, until=last)
        beam = yield Select(beam, about="whole", by=self.verifier)
        return beam[0]
