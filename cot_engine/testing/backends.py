"""What every backend must keep to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from cot_engine.backends.protocol import Backend
from cot_engine.core.boundaries import Until
from cot_engine.core.parts import Part, guard
from cot_engine.core.problem import Problem
from cot_engine.core.requests import (
    GREEDY,
    BackendInfo,
    Choose,
    Chosen,
    Generate,
    Generated,
    Prompt,
    Sampling,
    Segment,
)
from cot_engine.core.usage import Usage
from cot_engine.search import replies
from cot_engine.testing.apart import apart


def check_backend(backend: Backend, problem: Problem, tolerance: float = 1e-4) -> None:
    """Raises AssertionError, naming the rule, if a backend breaks what searches rely on.

    `problem` is any that the model can read. `tolerance` is on summed log-probabilities.
    """
    apart(lambda: asyncio.run(_check(_Checked(backend), problem, tolerance)))


class _Checked:
    """The backend, each of its answers held against the request. Raises ModelError."""

    def __init__(self, backend: Backend) -> None:
        self.backend, self.part = backend, Part("backend", backend)

    async def generate(self, request: Generate) -> Generated:
        given: Generated = await self._answer(request, self.backend.generate, replies.generated)
        for each in given.generations:
            assert bool(each.text) <= bool(each.ids), "text comes from tokens"
            assert each.logprob <= 1e-3, "a log-probability is not above 0"
        return given

    async def choose(self, request: Choose) -> Chosen:
        given: Chosen = await self._answer(request, self.backend.choose, replies.chosen)
        rows = given.logprobs
        assert all(value <= 1e-3 for row in rows for value in row), (
            "a log-probability is not above 0"
        )
        return given

    async def _answer(
        self, request: Any, ask: Callable[..., Any], check: Callable[..., None]
    ) -> Any:
        with guard(self.part):
            estimate = self.estimate(request)
            given = await ask(request)
            used = replies.usage(self.part, getattr(given, "usage", None))
            check(self.part, request, given)
        _within(used, estimate)
        return given

    def estimate(self, request: Generate | Choose) -> Usage:
        with guard(self.part):
            return replies.usage(self.part, self.backend.estimate(request))

    def release(self, scope: str) -> None:
        with guard(self.part):
            self.backend.release(scope)


def _within(used: Usage, estimate: Usage) -> None:
    for unit in ("flops", "decoded", "prefilled"):
        fine = getattr(used, unit) <= getattr(estimate, unit)
        assert fine, f"an estimate is an upper bound ({unit})"


async def _check(backend: _Checked, problem: Problem, tolerance: float) -> None:
    info = backend.backend.info
    assert isinstance(info, BackendInfo), "a backend says what it is: info is a BackendInfo"
    prompt = Prompt(problem.question, problem.images)
    until = Until()
    ask = Generate("a", prompt, (), until, (1, 2, 3), 8, Sampling(1.0, 1.0, 0))
    three = await backend.generate(ask)
    one = await backend.generate(replace(ask, scope="b", seeds=(2,)))
    mine, alone = three.generations[1], one.generations[0]
    assert mine.ids == alone.ids, "a candidate depends on its seed and prefix alone"
    assert abs(mine.logprob - alone.logprob) < tolerance, "and so does its log-probability"
    assert three.usage.encodes == len(problem.images), "each image is encoded once"
    again = await backend.generate(ask)
    assert again.usage.encodes == 0, "an image is encoded once per scope"
    assert again.usage.prefilled == 0, "no token is prefilled twice"
    assert [g.ids for g in again.generations] == [g.ids for g in three.generations]

    if mine.text:  # the boundary is its first character, which takes four tokens at most
        stopped = await backend.generate(replace(ask, seeds=(2,), until=Until((mine.text[0],))))
        cut = stopped.generations[0]
        fine = mine.text.startswith(cut.text) and len(cut.ids) <= 4 and cut.finish == "stop"
        assert fine, "a continuation ends with the token at its boundary, and says so"

    prefix = (Segment(mine.text, mine.ids), Segment(" <CONCLUSION>"))
    greedy = replace(ask, prefix=prefix, seeds=(0,), sampling=GREEDY)
    carried = await backend.generate(greedy)
    scratch = await backend.generate(replace(greedy, scope="c"))
    assert carried.generations[0].ids == scratch.generations[0].ids, "forked equals recomputed"
    difference = carried.generations[0].logprob - scratch.generations[0].logprob
    assert abs(difference) < tolerance, f"forked equals recomputed (differs by {difference})"
    assert carried.usage.prefilled < scratch.usage.prefilled, "a carried prefix is not prefilled"
    other = await backend.generate(replace(greedy, seeds=(5,)))
    assert other.generations[0].ids == carried.generations[0].ids, "greedy does not draw"

    tails = ("\nAttempt 1:\nred\nAttempt 2:\nblue\n", "\nAttempt 1:\nblue\nAttempt 2:\nred\n")
    question = Choose("a", prompt, tails, ("1", "2"))
    both = await backend.choose(question)
    single = await backend.choose(replace(question, scope="d", tails=tails[1:]))
    for x, y in zip(both.logprobs[1], single.logprobs[0], strict=True):
        assert abs(x - y) < tolerance, "a verdict does not depend on the others in its batch"
    assert both.usage.encodes == 0, "a judge reuses the encoded image"

    together = await asyncio.gather(
        backend.generate(replace(ask, scope="e")), backend.generate(replace(ask, scope="f"))
    )
    for reply in together:
        same = [g.ids for g in reply.generations] == [g.ids for g in three.generations]
        assert same, "searches at the same time do not touch each other"
    for scope in "abcdef":
        backend.release(scope)
    backend.release("never seen")
    fresh = await backend.generate(ask)
    assert fresh.usage.encodes == len(problem.images), "what was released is forgotten"
    assert fresh.usage.prefilled == three.usage.prefilled, "what was released is forgotten"
    backend.release("a")
