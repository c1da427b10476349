"""What every backend must keep to, and what one that computes in this process promises besides."""

from __future__ import annotations

import asyncio
from collections import Counter
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
from cot_engine.errors import CotEngineError, InputError, ModelError
from cot_engine.search import replies
from cot_engine.testing.apart import apart

PATIENCE = 20.0
"""Seconds until a request that nobody answers counts as forgotten."""
_LONGEST = 32  # characters of a token: as many may stand behind the boundary that it crosses
_DROPPED = 3  # tokens left out where a continuation would end in half a character
_TAILS = ("\nAttempt 1:\nred\nAttempt 2:\nblue\n", "\nAttempt 1:\nblue\nAttempt 2:\nred\n")


def check_backend(backend: Backend, problem: Problem) -> None:
    """Raises AssertionError, naming the rule, if a backend breaks the contract: what all searches
    rely on, be it a server or in this process.

    One sound continuation for each seed, and not the same for all; boundaries found, and why each
    ended; usage that adds up, within what was estimated of it; InputError where nothing fits;
    requests at the same time that keep apart; scopes released; an end to everything when it is
    closed, which happens here in the end. `problem` is any that the model can read.
    """
    apart(lambda: asyncio.run(_contract(_Checked(backend, ("decoded",)), problem)))


def check_exact(backend: Backend, problem: Problem, tolerance: float = 1e-4) -> None:
    """Raises AssertionError, naming the rule, if a backend breaks what one that runs its model in
    this process promises besides the contract.

    A candidate depends on its seed and prefix alone: of two it is what it is of eight, alone and
    among others, on a carried prefix and on one read anew. Within a scope no image is encoded and
    no token prefilled twice. Estimates are upper bounds in every unit. `tolerance` is on summed
    log-probabilities, which rounding changes. The backend stays open.
    """
    units = ("flops", "decoded", "prefilled")
    apart(lambda: asyncio.run(_exactness(_Checked(backend, units), problem, tolerance)))


class _Checked:
    """The backend, each of its answers held against the request. Raises ModelError and
    AssertionError. Its estimates must be upper bounds in `units`."""

    def __init__(self, backend: Backend, units: tuple[str, ...]) -> None:
        self.backend, self.part, self.units = backend, Part("backend", backend), units

    async def generate(self, request: Generate) -> Generated:
        given: Generated = await self._answer(request, self.backend.generate, replies.generated)
        for each in given.generations:
            assert bool(each.text) <= bool(each.ids), "text comes from tokens"
            assert each.logprob <= 1e-3, "a log-probability is not above 0"
            end = request.until.end(each.text)
            fine = (end is not None) == (each.finish == "stop")
            assert fine, 'a continuation ends at its boundary, and says "stop" there alone'
            fine = end is None or len(each.text) - end <= _LONGEST
            assert fine, "a continuation ends with the token at its boundary"
            fine = each.finish != "length" or len(each.ids) + _DROPPED >= request.max_new_tokens
            assert fine, 'a continuation that says "length" is as long as it may be'
            fine = each.finish != "budget" or request.deadline is not None
            assert fine, 'a continuation without a deadline does not end for "budget"'
        written = sum(len(each.ids) for each in given.generations)
        assert given.usage.decoded >= written, "every token that is written is counted"
        return given

    async def choose(self, request: Choose) -> Chosen:
        given: Chosen = await self._answer(request, self.backend.choose, replies.chosen)
        fine = all(value <= 1e-3 for row in given.logprobs for value in row)
        assert fine, "a log-probability is not above 0"
        return given

    async def _answer(
        self, request: Any, ask: Callable[..., Any], check: Callable[..., None]
    ) -> Any:
        with guard(self.part):
            estimate = replies.usage(self.part, self.backend.estimate(request))
            given = await ask(request)
            used = replies.usage(self.part, getattr(given, "usage", None))
            check(self.part, request, given)
        assert used.prefilled + used.cached > 0, "what is read is counted"
        for unit in self.units:
            fine = getattr(used, unit) <= getattr(estimate, unit)
            assert fine, f"an estimate is an upper bound ({unit})"
        return given

    def release(self, scope: str) -> None:
        with guard(self.part):
            self.backend.release(scope)

    def close(self) -> None:
        with guard(self.part):
            self.backend.close()

    async def refused(self, request: Generate | Choose, kind: type[CotEngineError]) -> bool:
        """Whether the request is answered by an error of that kind."""
        ask: Any = self.backend.generate if isinstance(request, Generate) else self.backend.choose
        try:
            with guard(self.part):
                await asyncio.wait_for(ask(request), PATIENCE)
        except CotEngineError as error:
            return isinstance(error, kind)
        return False


async def _contract(backend: _Checked, problem: Problem) -> None:
    info = backend.backend.info
    assert isinstance(info, BackendInfo), "a backend says what it is: info is a BackendInfo"
    prompt = Prompt(problem.question, problem.images)
    ask = Generate("a", prompt, (), Until(), tuple(range(8)), 16, Sampling(2.0, 1.0, 0))
    question = Choose("a", prompt, _TAILS, ("1", "2"))

    found = (await backend.generate(ask)).generations
    assert len({each.text for each in found}) > 1, "seeds decide what is sampled"
    letters = Counter(letter for each in found for letter in each.text if not letter.isspace())
    if letters:
        until = Until((letters.most_common(1)[0][0],))
        cut = await backend.generate(replace(ask, until=until))
        fine = any(each.finish == "stop" for each in cut.generations)
        assert fine, "a boundary that is often written is found"
    prefix = (Segment(found[0].text, found[0].ids), Segment(" <CONCLUSION>"))
    await backend.generate(replace(ask, prefix=prefix, seeds=(0,), sampling=GREEDY))
    await backend.choose(question)

    long = Prompt(problem.question + " and" * info.context, problem.images)
    for much in (replace(ask, prompt=long), replace(question, prompt=long)):
        fine = await backend.refused(much, InputError)
        assert fine, "what leaves no room for a single token is an InputError"

    given_up = asyncio.ensure_future(backend.backend.generate(replace(ask, scope="b")))
    several = [
        backend.generate(replace(ask, scope=s, seeds=ask.seeds[: ord(s) - 96])) for s in "cd"
    ]
    more = [backend.choose(replace(question, scope="e", tails=_TAILS[:1], choices=("A", "B", "C")))]
    together = asyncio.gather(*several, backend.choose(question), *more)
    await asyncio.sleep(0)
    given_up.cancel()
    await asyncio.wait_for(together, PATIENCE)
    await asyncio.wait([given_up], timeout=PATIENCE)
    assert given_up.done(), "a request that is given up ends"

    for scope in ("a", "b", "a", "never seen"):
        backend.release(scope)
    await backend.generate(ask)

    flying = asyncio.ensure_future(backend.backend.generate(replace(ask, max_new_tokens=256)))
    await asyncio.sleep(0)
    backend.close()
    backend.close()
    await asyncio.wait([flying], timeout=PATIENCE)
    fine = flying.done() and isinstance(flying.exception() or ModelError(""), CotEngineError)
    assert fine, "what is in flight when it is closed is answered"
    for late in (ask, question):
        fine = await backend.refused(late, ModelError)
        assert fine, "a closed backend answers with a ModelError"
    backend.release("a")


async def _exactness(backend: _Checked, problem: Problem, tolerance: float) -> None:
    prompt, images = Prompt(problem.question, problem.images), len(problem.images)
    ask = Generate("a", prompt, (), Until(), tuple(range(1, 9)), 8, Sampling(1.0, 1.0, 0))
    first = await backend.generate(ask)
    eight = first.generations
    pair = (await backend.generate(replace(ask, scope="b", seeds=(1, 2)))).generations
    for mine, other in zip(pair, eight, strict=False):
        assert mine.ids == other.ids, "a candidate depends on its seed and prefix alone"
        assert abs(mine.logprob - other.logprob) < tolerance, "and so does its log-probability"
    assert first.usage.encodes == images, "each image is encoded once"
    again = await backend.generate(ask)
    assert again.usage.encodes == 0, "an image is encoded once per scope"
    assert again.usage.prefilled == 0, "no token is prefilled twice"
    assert [g.ids for g in again.generations] == [g.ids for g in eight]

    mine = eight[1]
    if mine.text:  # the boundary is its first character, which takes four tokens at most
        stopped = await backend.generate(replace(ask, seeds=(2,), until=Until((mine.text[0],))))
        one = stopped.generations[0]
        fine = mine.text.startswith(one.text) and len(one.ids) <= 4
        assert fine, "what is cut at a boundary is the beginning of what is not"

    prefix = (Segment(mine.text, mine.ids), Segment(" <CONCLUSION>"))
    greedy = replace(ask, prefix=prefix, seeds=(0,), sampling=GREEDY)
    carried = await backend.generate(greedy)
    scratch = await backend.generate(replace(greedy, scope="c"))
    assert carried.generations[0].ids == scratch.generations[0].ids, "forked equals recomputed"
    difference = carried.generations[0].logprob - scratch.generations[0].logprob
    assert abs(difference) < tolerance, f"forked equals recomputed (differs by {difference})"
    assert carried.usage.prefilled < scratch.usage.prefilled, "a carried prefix is not prefilled"
    seeded = await backend.generate(replace(greedy, seeds=(5,)))
    assert seeded.generations[0].ids == carried.generations[0].ids, "greedy does not draw"

    question = Choose("a", prompt, _TAILS, ("1", "2"))
    both = await backend.choose(question)
    single = await backend.choose(replace(question, scope="d", tails=_TAILS[1:]))
    for x, y in zip(both.logprobs[1], single.logprobs[0], strict=True):
        assert abs(x - y) < tolerance, "a verdict does not depend on the others in its batch"
    assert both.usage.encodes == 0, "a judge reuses the encoded image"

    together = await asyncio.gather(*(backend.generate(replace(ask, scope=s)) for s in "ef"))
    for reply in together:
        same = [g.ids for g in reply.generations] == [g.ids for g in eight]
        assert same, "searches at the same time do not touch each other"
    for scope in "abcdef":
        backend.release(scope)
    fresh = (await backend.generate(ask)).usage
    assert fresh.encodes == images, "what was released is forgotten"
    assert fresh.prefilled == first.usage.prefilled, "what was released is forgotten"
    backend.release("a")
