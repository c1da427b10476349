"""What a search may spend, and what it has spent.

A budget is a hard contract: the search core holds the most a request can cost before sending it
and settles what it did cost, and always keeps back the floor, the cost of concluding at once, so
that an answer comes. Of requests side by side each has its part of what is left.
Seconds cannot be reserved: rows stop a step before the deadline, no forward pass is interrupted.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from cot_engine.core.usage import Role, Usage
from cot_engine.errors import ConfigError, shown

Unit = Literal["flops", "new tokens", "tokens", "seconds", "calls"]
_UNITS: dict[str, Unit] = {
    "flops": "flops",
    "flop": "flops",
    "new tokens": "new tokens",
    "new token": "new tokens",
    "new": "new tokens",
    "tokens": "tokens",
    "token": "tokens",
    "all tokens": "tokens",
    "seconds": "seconds",
    "second": "seconds",
    "s": "seconds",
    "calls": "calls",
    "call": "calls",
}
_SCALE = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
_AMOUNT = re.compile(r"\s*(\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)\s*([kMGTP]?)\s*([a-z ]+?)\s*")


@dataclass(frozen=True, slots=True)
class Budget:
    """An amount of one unit.

    flops: floating-point operations of the model; new tokens: decoded; tokens: prefilled and
    decoded (an image counts as the tokens it takes; cached ones were paid before); seconds: wall
    clock from the start of the search; calls: sampled continuations and judged orderings.
    """

    amount: float
    unit: Unit

    def __str__(self) -> str:
        return f"{self.amount:g} {self.unit}"

    def of(self, usage: Usage) -> float:
        """How much of this unit `usage` is (seconds are not counted from usage: see Meter)."""
        match self.unit:
            case "flops":
                return usage.flops
            case "new tokens":
                return usage.decoded
            case "tokens":
                return usage.tokens
            case "calls":
                return usage.calls
            case "seconds":
                return 0.0


def parse_budget(text: str) -> Budget:
    """Read "2e12 flops", "1.5T flops", "500 new tokens", "4000 tokens", "30 s", "12 calls".

    Raises ConfigError with the accepted forms.
    """
    match = _AMOUNT.fullmatch(text) if isinstance(text, str) else None
    unit = _UNITS.get(match.group(3)) if match else None
    amount = float(match.group(1)) * _SCALE[match.group(2)] if match else 0.0
    if unit is None or not 0 < amount < float("inf"):
        raise ConfigError(
            f"The budget is {shown(text)}.",
            'Give a positive amount and a unit, such as "2e12 flops", "500 new tokens",'
            ' "4000 tokens", "30 s" or "12 calls".',
        )
    return Budget(amount, unit)


def parse_unit(text: str) -> Unit:
    """ "flops", "new tokens", "tokens", "seconds" or "calls", by any of their names.

    Raises ConfigError.
    """
    if not isinstance(text, str) or text not in _UNITS:
        raise ConfigError(f"The unit is {shown(text)}.", f"It must be one of {', '.join(_UNITS)}.")
    return _UNITS[text]


@dataclass
class Meter:
    """What one search has spent, by role. `clock` gives seconds; tests pass their own. `pace` is
    the least time that a token took, 0 if none was written yet. `held` is kept for calls under way.

    One of several side by side may spend its `part`th of what was left after `before`, whatever
    the others do: see `beside`.
    """

    budget: Budget | None = None
    clock: Callable[[], float] = time.monotonic
    usage: dict[Role, Usage] = field(default_factory=dict)
    pace: float = 0.0
    held: float = 0.0
    before: float = 0.0
    parts: int = 1
    started: float = field(init=False)

    def __post_init__(self) -> None:
        self.started = self.clock()

    def charge(self, role: Role, usage: Usage) -> None:
        self.usage[role] = self.usage.get(role, Usage()) + usage

    @property
    def total(self) -> Usage:
        return sum(self.usage.values(), Usage())

    @property
    def seconds(self) -> float:
        """Wall-clock seconds since the search began."""
        return self.clock() - self.started

    @property
    def left(self) -> float | None:
        """What remains of the budget in its unit, never below 0; None without a budget."""
        if self.budget is None:
            return None
        if self.budget.unit == "seconds":
            return max(0.0, self.budget.amount - self.seconds)
        return max(0.0, self._part(self.budget.amount) - self.budget.of(self.total))

    # A clock cannot be reserved. A quarter of the time is held back for the conclusion instead;
    # what comes before it is not begun if it could not take so many steps; and handing over what
    # was written takes a moment.
    SECONDS_FLOOR = 0.25
    STEPS = 8
    HANDOVER = 0.002

    def timed(self, seconds: float, tokens: int) -> None:
        """Learn the pace from a request that took so long for so many tokens, one by one."""
        pace = seconds / max(1, tokens)
        self.pace = min(self.pace or pace, pace)

    def deadline(self, floor: Usage, upto: float = 1.0) -> float | None:
        """When rows must stop, as a `clock` value: see `room`."""
        if self.budget is None or self.budget.unit != "seconds":
            return None
        return self.clock() + self.room(floor, upto) - self.HANDOVER

    def room(self, floor: Usage, upto: float = 1.0) -> float:
        """What may be spent now, in the budget's unit, if `floor` must still be left afterwards
        (an empty one holds nothing back) and all spending kept within the fraction `upto`."""
        if self.budget is None:
            return float("inf")
        amount = self.budget.amount
        if self.budget.unit == "seconds":
            kept = amount * self.SECONDS_FLOOR if floor.calls else 0.0
            return min(amount - kept, amount * upto) - self.seconds
        most = min(self._part(amount) - self.budget.of(floor), self._part(amount * upto))
        return most - self.budget.of(self.total) - self.held

    def affords(self, cost: Usage, floor: Usage) -> bool:
        """Whether `cost` can be spent with `floor` still left afterwards, and what is held."""
        if self.budget is None:
            return True
        room = self.room(floor)
        if self.budget.unit != "seconds":
            return self.budget.of(cost) <= room
        return room > (self.STEPS * self.pace if floor.calls else 0.0)

    @contextmanager
    def holding(self, cost: Usage) -> Iterator[None]:
        """Keep `cost`, which was found affordable, for a call until it was charged."""
        amount = self.budget.of(cost) if self.budget else 0.0
        self.held += amount
        try:
            yield
        finally:
            self.held -= amount

    # --- several side by side ---

    def beside(self, parts: int) -> Meter:
        """A meter for one of `parts` that run side by side: what it may spend does not depend on
        when the others spend theirs. Time passes for all of them alike."""
        spent = self.budget.of(self.total) if self.budget else 0.0
        made = Meter(self.budget, self.clock, pace=self.pace, before=spent, parts=parts)
        made.started = self.started
        return made

    def join(self, other: Meter) -> None:
        """Count what one of several spent."""
        for role, usage in other.usage.items():
            self.charge(role, usage)
        self.pace = min(self.pace or other.pace, other.pace)

    def _part(self, amount: float) -> float:
        return (amount - self.before) / self.parts
