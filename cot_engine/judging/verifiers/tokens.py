"""Verifiers by tokens: the log-probabilities of given words at given places, nothing written."""

from __future__ import annotations

import math
from collections.abc import Mapping as Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any as Any
from typing import ClassVar, Literal

from cot_engine.core.chain import Chain
from cot_engine.core.match import Verdict
from cot_engine.core.parts import Scale
from cot_engine.errors import ConfigError, InputError, shown
from cot_engine.judging.protocol import Ask, Case, Pair
from cot_engine.judging.verifiers.asked import Asked, recent
from cot_engine.judging.verifiers.scale import Aggregate as Aggregate
from cot_engine.judging.verifiers.scale import finite, softmax, verdict
from cot_engine.judging.verifiers.words import Steps as Steps
from cot_engine.judging.verifiers.words import Turn as Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenVerifier(Asked):
    """A number for each candidate: how much likelier the model finds the first of `choices` than
    the others, at the marked places, or at the end. All places are measured at once.

    `number`: its probability among the choices, or the log of its odds ("logit"). With `values` the
    number is what the choices are worth on average ("1" to "5", say). Where the choices together
    have less than `least_mass` of all probability, the model was not answering: then likelihood
    stands in. Raises ConfigError for what will not do.
    """

    choices: tuple[str, ...] = ("yes", "no")
    number: Literal["probability", "logit"] = "probability"
    values: tuple[float, ...] = ()
    least_mass: float = 0.0

    def __post_init__(self) -> None:
        Asked.__post_init__(self)
        _check_choices(self.choices)
        if self.values and len(self.values) != len(self.choices):
            raise ConfigError(
                f"There are {len(self.values)} values for {len(self.choices)} choices.",
                "Give one for each, in order.",
            )
        if self.values and self.number == "logit":
            raise ConfigError("A verifier has values and number = logit.", "Leave one of them out.")
        self.reading.check(self._own)

    @property
    def _own(self) -> Scale:
        if self.number == "logit":
            return "logit"
        worth = self.values or (1.0, 0.0)
        return "probability" if min(worth) >= 0 and max(worth) <= 1 else "any"

    @property
    def scale(self) -> Scale:
        """What its numbers are."""
        return self.reading.scale(self._own)

    async def score(self, chains: Sequence[Chain], case: Case, ask: Ask) -> list[float]:
        """A number for each chain. Raises as `Scorer.score` does."""
        told = [self.script.of_one(chain, case) for chain in chains]
        own = await ask.verifying(self.binding)
        measured = await own.measure([dialogue for dialogue, *_ in told], self.choices)
        found = []
        for places, (_, new, steps) in zip(measured, told, strict=True):
            numbers = [self._number(logs) for logs in recent(places, new, case, steps)]
            found.append(self.reading.all(numbers))
        return found

    def _number(self, logs: Sequence[float]) -> float:
        mass = sum(map(math.exp, logs))
        if mass < self.least_mass:
            raise InputError(
                f"The verifier's choices have {mass:.2g} of the probability, less than"
                f" {self.least_mass:g}: it was not answering.",
                "Are its words those that the model was trained on, and the choices its own?",
            )
        first, *rest = map(finite, logs)
        if self.number == "logit":
            most = max(rest)
            return first - (most + math.log(sum(math.exp(value - most) for value in rest)))
        worth = self.values or (1.0, *(0.0 for _ in rest))
        return sum(p * v for p, v in zip(softmax(logs), worth, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenJudge(Asked):
    """A verdict on each ordered pair: which of two `choices`, for the first and the second, the
    model finds likelier at the end. The margin is the difference of their log-probabilities.

    Where both have less than `least_mass` of all probability the verdict is unreadable. Raises
    ConfigError for what will not do.
    """

    choices: tuple[str, ...] = ("1", "2")
    least_mass: float = 1e-3
    pairwise: ClassVar[bool] = True
    symmetric: ClassVar[bool] = False

    def __post_init__(self) -> None:
        Asked.__post_init__(self)
        _check_choices(self.choices)
        if len(self.choices) != 2:
            raise ConfigError(
                f"A pairwise verifier has {len(self.choices)} choices.",
                "Give two: for the first and for the second.",
            )
        if self.script.marked:
            raise ConfigError("A pairwise verifier has {mark} in its words.", "It has one place.")

    def _words(self) -> str:
        return "Which attempt is better? Reply with its number, 1 or 2, and nothing else."

    async def compare(self, pairs: Sequence[Pair], case: Case, ask: Ask) -> list[Verdict]:
        """A verdict for each pair, in order. Raises as `Judge.compare` does."""
        dialogues = [self.script.of_pair(a, b, case) for a, b in pairs]
        own = await ask.verifying(self.binding)
        verdicts = []
        for ((one, two),) in await own.measure(dialogues, self.choices):
            mass = math.exp(one) + math.exp(two)
            verdicts.append(verdict(one - two, mass >= self.least_mass, f"mass {mass:.2g}"))
        return verdicts


def _check_choices(choices: tuple[str, ...]) -> None:
    if len(choices) < 2 or len(set(choices)) < len(choices) or not all(choices):
        raise ConfigError(
            f"choices is {shown(choices)}.", "Give at least two words, all different, in order."
        )
