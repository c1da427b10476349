"""What every judge and every scorer must keep to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from cot_engine.backends.scripted import ScriptedBackend
from cot_engine.core import parts
from cot_engine.core.boundaries import Until
from cot_engine.core.chain import Chain, Step
from cot_engine.core.match import Verdict
from cot_engine.core.parts import OutOfBudget
from cot_engine.core.problem import Problem
from cot_engine.core.requests import (
    BackendInfo,
    Choose,
    Dialogue,
    Measure,
    Prompt,
    Sampling,
    Segment,
)
from cot_engine.core.stages import DEFAULT_PLAN
from cot_engine.errors import InputError, ModelError
from cot_engine.images.load import Image, load_image
from cot_engine.judging.protocol import Case, Judge, Scorer
from cot_engine.search.asking import check_choose, check_measure, check_write
from cot_engine.testing.apart import apart

T = TypeVar("T")


def check_judge(judge: Judge) -> None:
    """Raises AssertionError, naming the rule, if a judge breaks its contract on made candidates.

    It is asked about a stage's text, about sentences and about whole responses, with and without
    a picture; one that a kind of them is nothing for may raise InputError there.
    """
    assert not isinstance(judge, type), "give an object of the judge, not its class"
    apart(lambda: _check_judge(judge))


def _check_judge(judge: Judge) -> None:
    symmetric = parts.symmetric(judge)
    judged = 0
    for case, chains in _cases():
        pairs = [(a, b) for a in chains for b in chains if a is not b]

        async def verdicts(some: Sequence[Any], ask: Any, case: Case = case) -> list[Verdict]:
            return await parts.verdicts(judge, some, case, ask)

        given = _same(verdicts, pairs, "verdict")
        if given is None:
            continue
        judged += 1
        for verdict in given:
            signs = {"first": verdict.margin > 0, "second": verdict.margin < 0, "tie": True}
            assert signs[verdict.outcome], "the margin's sign is the outcome"
        if symmetric:
            by_pair = dict(zip(((a.id, b.id) for a, b in pairs), given, strict=True))
            for (a, b), verdict in by_pair.items():
                assert by_pair[b, a].margin == -verdict.margin, "symmetric: (b, a) reverses (a, b)"
        _check_asking(verdicts, pairs)
    assert judged, "it judges something"


def check_scorer(scorer: Scorer) -> None:
    """Raises AssertionError, naming the rule, if a scorer breaks its contract on made
    candidates."""
    assert not isinstance(scorer, type), "give an object of the scorer, not its class"
    apart(lambda: _check_scorer(scorer))


def _check_scorer(scorer: Scorer) -> None:
    scored = 0
    for case, chains in _cases():

        async def scores(some: Sequence[Any], ask: Any, case: Case = case) -> list[float]:
            numbers = await parts.scores(scorer, some, case, ask)  # and its scale has them
            if parts.scale(scorer) != "any":
                parts.probabilities(scorer, numbers)
            return numbers

        scored += _same(scores, chains, "score") is not None
        _check_asking(scores, chains)
    assert scored, "it scores something"


Give = Callable[[Sequence[Any], Any], Coroutine[Any, Any, list[T]]]


def _same(give: Give[T], items: Sequence[Any], what: str) -> list[T] | None:
    """What is given for `items`, if it is the same again, at the same time and one by one; None
    if they are nothing for this part."""

    async def asked() -> list[T]:
        given = await give(items, MadeAsk())
        again = await asyncio.gather(*(give(items, MadeAsk()) for _ in range(2)))
        assert all(given == each for each in again), f"same input, same {what}"
        for item, value in zip(items, given, strict=True):
            [alone] = await give([item], MadeAsk())
            assert alone == value, f"a {what} does not depend on the others in its batch"
        return given

    try:
        return asyncio.run(asked())
    except InputError:
        return None


def _check_asking(give: Give[T], items: Sequence[Any]) -> None:
    """Whatever the model answers is no fault of the part; what the engine raises reaches it."""
    for ask in (MadeAsk(mass=-30.0), MadeAsk(reply=""), MadeAsk(reply="Choice: 1. Choice: 2.")):
        with suppress(InputError):
            asyncio.run(give(items, ask))
    for error in (OutOfBudget(), InputError("Too long."), ModelError("The model is gone.")):
        ask = MadeAsk(error=error)
        try:
            asyncio.run(give(items, ask))
        except (OutOfBudget, InputError) as raised:
            lost = isinstance(error, ModelError)
            assert not lost or not ask.asked, f"{raised!r} hides that the model is gone"
        except ModelError as raised:
            if raised is not error:
                raise
        else:
            lost = isinstance(error, ModelError) and ask.asked > 0
            assert not lost, "what the engine raises is not swallowed: the model is gone"


@dataclass
class MadeAsk:
    """An Ask of the scripted model. `mass` is added to its log-probabilities; `reply` is what it
    writes, if not a choice; `error` is raised instead. `asked` counts."""

    mass: float = 0.0
    reply: str | None = None
    error: BaseException | None = None
    asked: int = 0
    backend: ScriptedBackend = field(default_factory=ScriptedBackend)

    @property
    def info(self) -> BackendInfo:
        """The scripted model's."""
        return self.backend.info

    async def choose(
        self, prompt: Prompt, tails: Sequence[str], choices: Sequence[str], prefix: str = ""
    ) -> list[tuple[float, ...]]:
        check_choose(prompt, tails, choices, prefix)
        self._raise()
        request = Choose("s", prompt, tuple(tails), tuple(choices), prefix)
        rows = (await self.backend.choose(request)).logprobs
        return [tuple(value + self.mass for value in row) for row in rows]

    async def write(
        self, prompt: Prompt, tails: Sequence[str], until: Until, length: int, sampling: Sampling
    ) -> list[str]:
        check_write(prompt, tails, until, length, sampling)
        self._raise()
        if self.reply is not None:
            return [self.reply for _ in tails]
        return [f"The first is longer. Choice: {1 + len(tail) % 2}" for tail in tails]

    async def measure(
        self, dialogues: Sequence[Dialogue], choices: Sequence[str] = ()
    ) -> list[tuple[tuple[float, ...], ...]]:
        check_measure(dialogues, choices)
        self._raise()
        request = Measure("s", tuple(dialogues), tuple(choices))
        rows = (await self.backend.measure(request)).numbers
        more = self.mass if choices else 0.0
        return [tuple(tuple(v + more for v in place) for place in places) for places in rows]

    async def verifying(self, model: Any = None) -> MadeAsk:
        return self

    def _raise(self) -> None:
        self.asked += 1
        if self.error is not None:
            raise self.error


def _cases() -> list[tuple[Case, list[Chain]]]:
    """What there is to judge, as searches have it."""
    from PIL import Image as Pillow

    picture = load_image(Pillow.new("RGB", (8, 8), (200, 30, 30)))
    found = []
    shown: tuple[tuple[Image, ...], ...] = ((), (picture,))
    for images in shown:
        plan = DEFAULT_PLAN.fit(len(images))
        problem, first, last = Problem("p", "Which?", images), plan.stages[0], plan.last
        told = [f"{first.open}{text}{first.close}" for text in ("one", "two two", "three 3 ≤ 3")]
        ends = [f"{last.open}{text}{last.close}" for text in ("1", "2", "")]
        some: list[tuple[Case, list[tuple[str, ...]]]] = [
            (Case(problem, plan, "step", first, images), [(text,) for text in told]),
            (
                Case(problem, plan, "step", None, images),
                [(f"{first.open}It begins.", text) for text in (" Red.", " Blue, I think.", "\n")],
            ),
            (
                Case(problem, plan, "whole", None, images),
                [(a + b,) for a, b in zip(told, ends, strict=True)],
            ),
        ]
        found += [(case, [_chain(k, *each) for k, each in enumerate(t)]) for case, t in some]
    return found


def _chain(index: int, *texts: str) -> Chain:
    chain = Chain()
    for text in texts:
        at = index if text is texts[-1] else 0
        ids = tuple(range(1 + at))
        segments, read = (Segment(text, ids),), {"SUMMARY": 0.5 - at, "whole": 0.25 * at}
        step = Step(text, segments, "SUMMARY", -1.0 - at, 1 + at, "stop", scores=read)
        chain = chain.grow(at, step, text.endswith(DEFAULT_PLAN.last.close))
    return chain
