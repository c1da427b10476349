"""Two candidates judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["first", "second", "tie"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge said of an ordered pair. `margin` > 0 favours the first (nats, if logits).

    `readable` is False where the reply could not be read: then the outcome is a tie.
    """

    outcome: Outcome
    margin: float = 0.0
    readable: bool = True
    text: str = ""


@dataclass(frozen=True, slots=True)
class Match:
    """Two candidates judged in both orders (or in one, if so configured).

    `verdicts[0]` saw (first, second), `verdicts[1]` saw (second, first). `outcome` is the combined
    one: a disagreement or an unreadable reply makes a tie. `winner` is the id that went on;
    `broken_by` says how a tie was decided: "likelihood" or "draw" ("" if there was no tie).
    """

    first: str
    second: str
    verdicts: tuple[Verdict, ...]
    outcome: Outcome
    winner: str
    broken_by: Literal["", "likelihood", "draw"] = ""

    @property
    def margin(self) -> float:
        """Half the difference of the two orders' margins: position bias cancels."""
        if len(self.verdicts) == 1:
            return self.verdicts[0].margin
        return (self.verdicts[0].margin - self.verdicts[1].margin) / 2

    @property
    def flipped(self) -> bool:
        """Both orders were readable, decided, and named different candidates."""
        outcomes = [v.outcome for v in self.verdicts if v.readable]
        return len(outcomes) == 2 and "tie" not in outcomes and outcomes[0] == outcomes[1]
