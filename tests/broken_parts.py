"""Parts that break their contracts, each in a way that an error names, and searches with them.

Searches run in a thread of their own, as the engine runs them: an interrupt is never meant for it.
"""

from __future__ import annotations

import asyncio
import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from beams import Beam

from cot_engine.core.chain import Chain
from cot_engine.core.events import Event, Failed, event_to_json
from cot_engine.core.match import Verdict
from cot_engine.core.problem import Problem
from cot_engine.core.stages import Stage
from cot_engine.core.usage import Usage
from cot_engine.errors import ConfigError, ModelError, StrategyError, shown
from cot_engine.judging.judges import SelfJudge
from cot_engine.search.session import Settings
from cot_engine.search.strategy import Expand, Score, Select
from cot_engine.testing import ScriptedBackend, solve_scripted


class Nameless:
    def __repr__(self):
        raise RuntimeError("no repr")


class Speechless(Exception):
    def __str__(self):
        raise RuntimeError("no text")


def recursing(depth=0):
    return recursing(depth + 1)


RAISED = [
    *(ValueError("odd"), SystemExit(3), KeyboardInterrupt(), GeneratorExit(), OSError(5, "gone")),
    *(asyncio.CancelledError(), Speechless(), StopAsyncIteration(), AssertionError("x" * 10**6)),
    *(ModelError("not the engine's"), ConfigError("no such", "Hint."), StrategyError("own")),
    *(TimeoutError(), ExceptionGroup("many", [ValueError()])),
]


def names(value: Any) -> str:
    return type(value).__name__ if isinstance(value, BaseException) else shown(value, 30)


def solved(**given) -> tuple[BaseException | None, list[Event], ScriptedBackend, Any]:
    """One search in a thread: the error, the events, the backend, the answer."""
    backend = given.pop("backend", None) or ScriptedBackend()
    strategy = given.pop("strategy", Beam(3))
    heard: list[Event] = []
    listen = given.pop("listen", None)

    def both(event):
        heard.append(event)
        if listen is not None:
            return listen(event)

    both.__name__ = getattr(listen, "__name__", "both")

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(solve_scripted, strategy, backend=backend, listen=both, **given)
        error = done.exception(timeout=60)
    return error, heard, backend, None if error else done.result()


def broken(said: str, kind: type = StrategyError, **given) -> str:
    """The search fails as it should: its message, which holds `said`."""
    error, heard, backend, _ = solved(**given)
    assert type(error) is kind, error
    assert isinstance(heard[-1], Failed) and heard[-1].error == kind.__name__
    assert backend.released == ["p"]
    assert said in str(error), error
    assert len(str(error)) < 1000
    assert all(json.loads(event_to_json(event), parse_constant=pytest.fail) for event in heard)
    return str(error)


class Raising(SelfJudge):
    """As a judge and as a scorer."""

    def __init__(self, error):
        object.__setattr__(self, "error", error)

    __slots__ = ("error",)

    async def compare(self, pairs, case, ask):
        await asyncio.sleep(0)
        raise self.error

    score = compare


@dataclass(frozen=True)
class Scoring:
    def search(self, task):
        grown = yield Expand(task.start, until="end", n=2)
        scores = yield Score(grown, "mine")
        return max(zip(scores, grown, strict=True), key=lambda pair: pair[0])[1]


@dataclass(frozen=True)
class Doing:
    """A strategy that does something, before or after its first request."""

    act: Any
    late: bool = False

    def search(self, task):
        if self.late:
            yield Expand(task.start, until="end")
        return (yield from self.act(task))


def throwing(error):
    def act(*_):
        raise error
        yield

    return act


def three(task):
    yield 3


class Giving(SelfJudge):
    """A judge and a scorer that gives what it is told, made of the number that is due."""

    __slots__ = ("make",)

    def __init__(self, make):
        object.__setattr__(self, "make", make)

    async def compare(self, pairs, case, ask):
        return self.make(len(pairs))

    score = compare


def verdict(*args, **named):
    return lambda n: [Verdict(*args, **named)] * n


VERDICTS = {
    "gave None": lambda n: None,
    "gave 3": lambda n: 3,
    "verdicts on": lambda n: [Verdict("tie")] * (n - 1),
    "gave 7 verdicts on 2 pairs": lambda n: [Verdict("tie")] * 7,
    "gave <generator": lambda n: (Verdict("tie") for _ in range(n)),
    "gave {0: None": lambda n: dict.fromkeys(range(n)),
    "gave 'first' as a verdict": lambda n: ["first"] * n,
    "gave <Nameless instance>": lambda n: Nameless(),
    "gave the outcome 'win'": verdict("win"),
    "gave the outcome None": verdict(None),
    "gave the outcome <Nameless": verdict(Nameless()),
    "gave the outcome array": verdict(np.array(["tie", "tie"])),
    "gave the margin nan": verdict("tie", math.nan),
    "gave the margin inf": verdict("first", math.inf),
    "gave the margin -inf": verdict("second", -math.inf),
    "gave the margin 1e+300": verdict("first", 1e300),
    "gave the margin 1000": verdict("first", 10**400),
    "gave the margin '1'": verdict("first", "1"),
    "gave the margin True": verdict("first", True),
    "gave the margin None": verdict("tie", None),
    "gave the margin array": verdict("tie", np.array([1.0, 2.0])),
    "gave 1 as readable": verdict("tie", 0.0, 1),
    "as a verdict's text": verdict("tie", 0.0, True, None),
    "contradicts itself": verdict("first", -1.0),
    "contradicts itself: Verdict(outcome='second'": verdict("second", 1.0),
    "contradicts itself: Verdict(outcome='first', margin=1.0, r": verdict("first", 1.0, False),
}
NUMBERS = {
    "gave None": lambda n: None,
    "gave 1.5": lambda n: 1.5,
    "numbers for": lambda n: [0.0] * (n + 1),
    "gave 0 numbers for 2": lambda n: [],
    "gave the score nan": lambda n: [math.nan] * n,
    "gave the score -inf": lambda n: [-math.inf] * n,
    "gave the score 1e+200": lambda n: [1e200] * n,
    "gave the score None": lambda n: [None] * n,
    "gave the score '1'": lambda n: ["1"] * n,
    "gave the score False": lambda n: [False] * n,
    "gave the score 1j": lambda n: [1j] * n,
    "gave the score <Nameless": lambda n: [Nameless()] * n,
    "gave array": lambda n: np.zeros(n),
}
FOREIGN = solve_scripted(Beam(2), problem=Problem("another", "?"), settings=Settings(seed=7)).chain
OTHER_STAGE = Stage("SUMMARY", "Something else.", "Which?")


def asking(request):
    """A strategy's act that makes one request of a beam and the plan."""

    def act(task):
        grown = yield Expand(task.start, until=task.plan.stages[0], n=2)
        yield request(grown, task.plan)
        return grown[0]

    return act


REQUESTS = {
    "Expand(until='nope')": lambda beam, plan: Expand(beam, until="nope"),
    "Expand(until='SUMMARY')": lambda beam, plan: Expand(beam, until="SUMMARY"),
    "Expand(until=None)": lambda beam, plan: Expand(beam, until=None),
    "Expand(until=Stage(": lambda beam, plan: Expand(beam, until=OTHER_STAGE),
    "Expand(until=<Nameless": lambda beam, plan: Expand(beam, until=Nameless()),
    "Expand(n=1.5)": lambda beam, plan: Expand(beam, until="end", n=1.5),
    "Expand(n=True)": lambda beam, plan: Expand(beam, until="end", n=True),
    "Expand(n=0)": lambda beam, plan: Expand(beam, until="end", n=0),
    "Expand(n=-3)": lambda beam, plan: Expand(beam, until="end", n=-3),
    "Expand(n=1000000000)": lambda beam, plan: Expand(beam, until="end", n=10**9),
    "Expand(n='4')": lambda beam, plan: Expand(beam, until="end", n="4"),
    "Expand(n=None)": lambda beam, plan: Expand(beam, until="end", n=None),
    "Expand(n=<int": lambda beam, plan: Expand(beam, until="end", n=10**5000),
    "Expand(greedy=1)": lambda beam, plan: Expand(beam, until="end", greedy=1),
    "Expand(upto=nan)": lambda beam, plan: Expand(beam, until="end", upto=math.nan),
    "Expand(upto=0)": lambda beam, plan: Expand(beam, until="end", upto=0),
    "Expand(upto=-0.5)": lambda beam, plan: Expand(beam, until="end", upto=-0.5),
    "Expand(upto=1.01)": lambda beam, plan: Expand(beam, until="end", upto=1.01),
    "Expand(upto=inf)": lambda beam, plan: Expand(beam, until="end", upto=math.inf),
    "Expand(upto=True)": lambda beam, plan: Expand(beam, until="end", upto=True),
    "Expand(upto='1')": lambda beam, plan: Expand(beam, until="end", upto="1"),
    "Expand(beam=())": lambda beam, plan: Expand((), until="end"),
    "Expand(beam=None)": lambda beam, plan: Expand(None, until="end"),
    "Expand(beam=Chain(": lambda beam, plan: Expand(beam[0], until="end"),
    "Expand(beam=<generator": lambda beam, plan: Expand((c for c in beam), until="end"),
    "Expand with 'r.0' in its beam": lambda beam, plan: Expand(("r.0",), until="end"),
    "Expand with None in its beam": lambda beam, plan: Expand((*beam, None), until="end"),
    "Expand with Chain(id='r.0.1.1": lambda beam, plan: Expand((FOREIGN,), until="end"),
    "Expand with Chain(id='r.9'": lambda beam, plan: Expand((Chain("r.9"),), until="end"),
    "Expand with Chain(id='r.0', steps=(Step(": lambda beam, plan: Expand(
        (replace(beam[0], done=True),), until="end"
    ),
    "Expand with Chain(id=7": lambda beam, plan: Expand((Chain(7),), until="end"),
    "Expand with the chain r.0 twice": lambda beam, plan: Expand((beam[0],) * 2, until="end"),
    "Select(about='x')": lambda beam, plan: Select(beam, about="x"),
    "Select(about=None)": lambda beam, plan: Select(beam, about=None),
    "Select(keep='x')": lambda beam, plan: Select(beam, keep="x"),
    "Select(keep=0)": lambda beam, plan: Select(beam, keep=0),
    "Select(keep=True)": lambda beam, plan: Select(beam, keep=True),
    "Select(keep=1.0)": lambda beam, plan: Select(beam, keep=1.0),
    "Select(beam=[])": lambda beam, plan: Select([]),
    "Select with Chain(id='r.0.1.1": lambda beam, plan: Select((*beam, FOREIGN)),
    "Select with the chain r.1 twice": lambda beam, plan: Select((*beam, beam[1])),
    "Score(scorer='nope')": lambda beam, plan: Score(beam, "nope"),
    "Score(scorer=None)": lambda beam, plan: Score(beam, None),
    "Score(beam=())": lambda beam, plan: Score(()),
    "Score(about='x')": lambda beam, plan: Score(beam, about="x"),
    "Score(probability=1)": lambda beam, plan: Score(beam, probability=1),
    "yielded 'CAPTION'": lambda beam, plan: "CAPTION",
    "yielded None": lambda beam, plan: None,
    "yielded <Nameless": lambda beam, plan: Nameless(),
    "yielded a tuple of 0": lambda beam, plan: (),
    "yielded a tuple of 4,097": lambda beam, plan: (Select(beam),) * 4097,
    "yielded Chain(": lambda beam, plan: beam,
    "yielded (Select(": lambda beam, plan: (Select(beam), (Select(beam),)),
    "yielded Select(keep=0)": lambda beam, plan: (Select(beam), Select(beam, keep=0)),
    "raised AttributeError": lambda beam, plan: object.__new__(Expand),
}
RETURNED = {
    "returned None": lambda grown: None,
    "returned 'r.0'": lambda grown: "r.0",
    "returned (Chain(": lambda grown: grown,
    "returned Chain(id='r.5'": lambda grown: Chain("r.5"),
    "returned Chain(id='r.0.1.1": lambda grown: FOREIGN,
    "returned Chain(id='r.0', steps=()": lambda grown: Chain("r.0", (), True),
}


class Lost(ScriptedBackend):
    """Reads and writes, but cannot be asked to choose."""

    error: BaseException = ModelError("The model is gone.")

    async def choose(self, request):
        raise self.error


def changed(method, change):
    class Bad(ScriptedBackend):
        pass

    async def altered(self, request):
        return change(await getattr(ScriptedBackend, method)(self, request))

    setattr(Bad, method, altered)
    return Bad()


def first(**changes):
    def change(reply):
        one, *rest = reply.generations
        return replace(reply, generations=(replace(one, **changes), *rest))

    return change


REPLIES = {
    "gave 2 replies to 3 seeds": ("generate", lambda r: replace(r, generations=r.generations[:2])),
    "gave None to 3 seeds": ("generate", lambda r: replace(r, generations=None)),
    "the log-probability nan to a continuation": ("generate", first(logprob=math.nan)),
    "the log-probability -inf to a continuation": ("generate", first(logprob=-math.inf)),
    "finish='why'": ("generate", first(finish="why")),
    "as a generation": ("generate", first(text=None)),
    "gave ids=None": ("generate", first(ids=None)),
    "tokens where 256 were asked for": ("generate", first(ids=tuple(range(9999)))),
    "gave None as usage": ("generate", lambda r: None),
    "gave 7 as usage": ("generate", lambda r: replace(r, usage=7)),
    "flops=nan": ("generate", lambda r: replace(r, usage=Usage(flops=math.nan))),
    "decoded=-1": ("generate", lambda r: replace(r, usage=Usage(decoded=-1))),
    "gave 0 replies to 2 questions": ("choose", lambda r: replace(r, logprobs=())),
    "gave 1 replies to 2 choices": (
        "choose",
        lambda r: replace(r, logprobs=tuple(row[:1] for row in r.logprobs)),
    ),
    "the log-probability nan to a choice": (
        "choose",
        lambda r: replace(r, logprobs=tuple((math.nan, -1.0) for _ in r.logprobs)),
    ),
    "as usage": ("choose", lambda r: "choices"),
}
