"""From what a verifier measured to one number for a candidate, and what that stands for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cot_engine.core.match import Verdict
from cot_engine.core.parts import LARGEST, Scale
from cot_engine.errors import ConfigError, InputError, shown

Aggregate = Literal["mean", "min", "last", "product"]
"""How the numbers of several places become one."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How numbers are read. `aggregate`: of several places. `low` and `high` are the range that
    the model was told or trained to give: what is outside is refused, what is inside becomes a
    number from 0 to 1. `centre` and `spread` are those of a number without a range on other data:
    what is a spread above the centre is one logit.

    Raises ConfigError for what will not do.
    """

    aggregate: Aggregate = "mean"
    low: float | None = None
    high: float | None = None
    centre: float = 0.0
    spread: float | None = None

    def __post_init__(self) -> None:
        if (self.low is None) != (self.high is None):
            raise ConfigError("A range has two ends.", "Give both low and high, or neither.")
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ConfigError(
                f"The range is {self.low:g} to {self.high:g}.", "Give the smaller end as low."
            )
        if self.spread is not None and not 0 < self.spread < math.inf:
            raise ConfigError(f"spread is {self.spread:g}.", "It must be above 0.")
        if self.spread is not None and self.low is not None:
            raise ConfigError(
                "A verifier has a range and a spread.",
                "Give low and high of what is bounded, centre and spread of what is not.",
            )

    def scale(self, own: Scale) -> Scale:
        """What the numbers stand for that were `own` before."""
        if self.low is not None:
            return "probability"
        return "logit" if self.spread is not None else own

    def check(self, own: Scale) -> None:
        """Raises ConfigError for an aggregate that numbers of that scale do not have."""
        if self.aggregate == "product" and self.scale(own) != "probability":
            raise ConfigError(
                "The aggregate is product, and the numbers are no probabilities.",
                "Take mean, min or last, or give low and high.",
            )

    def number(self, value: float) -> float:
        """One place's number as what it stands for. Raises InputError for one outside its range."""
        if self.low is not None and self.high is not None:
            if not self.low <= value <= self.high:
                raise InputError(
                    f"The verifier gave {value:g}, and its range is {self.low:g} to {self.high:g}.",
                    "Is it asked for another range? Set low and high.",
                )
            return (value - self.low) / (self.high - self.low)
        return value if self.spread is None else (value - self.centre) / self.spread

    def all(self, values: Sequence[float]) -> float:
        """The numbers of several places as one."""
        each = [self.number(value) for value in values]
        match self.aggregate:
            case "min":
                return min(each)
            case "last":
                return each[-1]
            case "product":
                return math.prod(each)
            case "mean":
                return sum(each) / len(each)


def verdict(margin: float, readable: bool = True, text: str = "") -> Verdict:
    """The verdict that a margin is; what cannot be read is a tie."""
    if not readable or margin == 0:
        return Verdict("tie", margin, readable, text)
    return Verdict("first" if margin > 0 else "second", margin, True, text)


def softmax(logs: Sequence[float]) -> list[float]:
    """Probabilities among these alone."""
    most = max(logs)
    powers = [math.exp(value - most) for value in logs]
    return [power / sum(powers) for power in powers]


def finite(value: float) -> float:
    """The number. Raises InputError for none, and for one that no score can be."""
    if not abs(value) <= LARGEST:
        raise InputError(f"The verifier gave {shown(value)}, which is no score.")
    return value
