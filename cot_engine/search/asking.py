"""How judges, scorers and verifiers reach a model: the search's own, or one of their own. What they
ask is held against the budget before it is sent, and metered."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from cot_engine.backends.protocol import Backend
from cot_engine.core.binding import Binding
from cot_engine.core.boundaries import Until
from cot_engine.core.parts import OutOfBudget, guard
from cot_engine.core.requests import (
    BackendInfo,
    Choose,
    Dialogue,
    Generate,
    Measure,
    Prompt,
    Sampling,
    Segment,
)
from cot_engine.core.usage import Role, Usage
from cot_engine.errors import shown
from cot_engine.search.session import Session

T = TypeVar("T")


@dataclass
class MeteredAsk:
    """A judge's or scorer's way to the model: holds, sends, settles, and adds up `usage`.

    What concluding behind `prefix` takes is left over. `asked` is the most that it could have cost,
    in the budget's unit, refused requests included; `verified` is what of `usage` verifiers cost.
    What was asked wrongly is a TypeError, before anything is sent: whoever asked is at fault.

    A verifier has one of its own (`verifying`), which adds up in the one it comes from (`whole`)
    too: its requests go by way of `via`, the search's dealings with the model that it asks.
    """

    session: Session
    role: Role
    prefix: tuple[Segment, ...]
    usage: Usage = Usage()
    asked: float = 0.0
    verified: Usage = Usage()
    via: Session | None = None
    whole: MeteredAsk | None = None

    @property
    def _dealings(self) -> Session:
        return self.session if self.via is None else self.via

    @property
    def info(self) -> BackendInfo:
        """What the model is. Raises ModelError if its backend does not say."""
        with guard(self._dealings.model):
            return self._dealings.backend.info

    async def verifying(self, model: Binding | Backend | None = None) -> MeteredAsk:
        """A verifier's way to the model: to another one, or to the search's own for None. Raises as
        opening that does."""
        if not (model is None or isinstance(model, Binding | Backend)):
            raise TypeError(f"{shown(model)} was given where a Binding or a backend is needed")
        via = await self.session.at(model)
        return MeteredAsk(self.session, "verify", self.prefix, via=via, whole=self)

    async def measure(
        self, dialogues: Sequence[Dialogue], choices: Sequence[str] = ()
    ) -> list[tuple[tuple[float, ...], ...]]:
        check_measure(dialogues, choices)
        request = Measure(self.session.scope, tuple(dialogues), tuple(choices), self.role)
        with self._holding(request) as most:
            measured = await self._timely(self._dealings.measure(request), most)
        self._spent(measured.usage)
        return list(measured.numbers)

    async def choose(
        self, prompt: Prompt, tails: Sequence[str], choices: Sequence[str], prefix: str = ""
    ) -> list[tuple[float, ...]]:
        check_choose(prompt, tails, choices, prefix)
        request = Choose(
            self.session.scope, prompt, tuple(tails), tuple(choices), prefix, self.role
        )
        with self._holding(request) as most:
            chosen = await self._timely(self._dealings.choose(request), most)
        self._spent(chosen.usage)
        return list(chosen.logprobs)

    async def write(
        self, prompt: Prompt, tails: Sequence[str], until: Until, length: int, sampling: Sampling
    ) -> list[str]:
        check_write(prompt, tails, until, length, sampling)
        requests = [
            Generate(
                self.session.scope,
                replace(prompt, text=prompt.text + tail),
                (),
                until,
                (self.session.seed("judge", prompt.text, tail),),
                length,
                sampling,
                self.role,
            )
            for tail in tails
        ]
        with self._holding(*requests):
            return await self.session.gather(map(self._written, requests))

    async def _written(self, request: Generate) -> str:
        reply = await self._dealings.generate(request)
        self._spent(reply.usage)  # of each as it comes: another one may fail
        return reply.generations[0].text

    async def _timely(self, asked: Awaitable[T], most: Usage) -> T:
        """What was asked, if it comes before the budget's seconds end: a server may take as long as
        it likes. What is given up counts as the `most` that it can have cost. Raises
        OutOfBudget."""
        meter = self.session.meter
        deadline = meter.deadline(Usage() if self.session.safe else Usage(calls=1))
        try:
            async with asyncio.timeout(None if deadline is None else deadline - meter.clock()):
                return await asked
        except TimeoutError:
            meter.charge(self.role, most)
            self._spent(most)
            raise OutOfBudget from None

    def _spent(self, usage: Usage) -> None:
        self.usage += usage
        if self.whole is not None:
            self.whole.usage += usage
            self.whole.verified += usage

    @contextmanager
    def _holding(self, *requests: Generate | Choose | Measure) -> Iterator[Usage]:
        """Hold what these can cost at most, which it gives, until they are answered. Raises
        OutOfBudget."""
        meter = self.session.meter
        if meter.budget is None:
            yield Usage()  # estimating is not free
            return
        cost = sum((self._dealings.cost(request) for request in requests), Usage())
        for ask in (self, self.whole):
            if ask is not None:
                ask.asked += meter.budget.of(cost)
        if not meter.affords(cost, self.session.floor(self.prefix, 0)):
            raise OutOfBudget
        with meter.holding(cost):
            yield cost


def check_choose(prompt: Any, tails: Any, choices: Any, prefix: Any) -> None:
    """Raises TypeError for what cannot be asked of `Ask.choose`."""
    _check_asked(prompt, tails=tails, choices=choices)
    if not isinstance(prefix, str):
        raise TypeError(f"prefix is {shown(prefix)}; it must be text")


def check_write(prompt: Any, tails: Any, until: Any, length: Any, sampling: Any) -> None:
    """Raises TypeError for what cannot be asked of `Ask.write`."""
    _check_asked(prompt, tails=tails)
    if type(length) is not int or length < 1:
        raise TypeError(f"length is {shown(length)}; it must be an integer of at least 1")
    for value, kind in ((until, Until), (sampling, Sampling)):
        if not isinstance(value, kind):
            raise TypeError(f"{shown(value)} was given where a {kind.__name__} is needed")


def check_measure(dialogues: Any, choices: Any) -> None:
    """Raises TypeError for what cannot be asked of `Ask.measure`."""
    if not isinstance(dialogues, (list, tuple)) or not dialogues:
        raise TypeError(f"dialogues is {shown(dialogues)}; it must be a list of at least one")
    for dialogue in dialogues:
        if not isinstance(dialogue, Dialogue) or not dialogue.turns:
            raise TypeError(f"{shown(dialogue)} was given where a Dialogue with turns is needed")
    if not isinstance(choices, (list, tuple)) or not all(isinstance(c, str) for c in choices):
        raise TypeError(f"choices is {shown(choices)}; each must be text")


def _check_asked(prompt: Prompt, **texts: Sequence[str]) -> None:
    if not isinstance(prompt, Prompt) or not isinstance(prompt.text, str):
        raise TypeError(f"prompt is {shown(prompt)}; it must be a Prompt")
    for name, given in texts.items():
        if not isinstance(given, (list, tuple)) or not given:
            raise TypeError(f"{name} is {shown(given)}; it must be a list of at least one text")
        if not all(isinstance(text, str) for text in given):
            raise TypeError(f"{name} is {shown(given)}; each must be text")
