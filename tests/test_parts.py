"""Other people's parts: whatever one raises or gives, its search fails with an error that names it,
the rest goes on, and a trace stays JSON.

Searches run in a thread of their own, as the engine runs them: an interrupt is never meant for it.
"""

from __future__ import annotations

import asyncio
import json
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import event as seen
from hypothesis import given, settings
from hypothesis import strategies as st
from test_search import Beam

from cot_engine import Engine, plugins
from cot_engine.boundaries import Until
from cot_engine.budget import Budget
from cot_engine.errors import ConfigError, InputError, ModelError, StrategyError, shown
from cot_engine.events import (
    Event,
    Failed,
    Finished,
    Notice,
    Progress,
    Scored,
    Selected,
    from_json,
    to_json,
)
from cot_engine.judges import OutOfBudget, RandomJudge, ScorerJudge, SelfJudge
from cot_engine.rejudge import rejudge
from cot_engine.search import Named, search
from cot_engine.session import Settings
from cot_engine.stages import Stage
from cot_engine.strategy import Expand, Score, Select
from cot_engine.testing import ScriptedBackend, solve_scripted
from cot_engine.types import GREEDY, Chain, Problem, Prompt, Usage, Verdict


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
    assert all(json.loads(to_json(event), parse_constant=pytest.fail) for event in heard)
    return str(error)


# --- whatever is raised --------------------------------------------------------------------------


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


@pytest.mark.parametrize("error", RAISED, ids=names)
def test_whatever_a_part_raises_names_it(error):
    said = f"raised {names(error)}"
    assert "The judge likelihood (Raising)" in broken(said, judge=Raising(error))
    scorer = {"strategy": Scoring(), "scorers": lambda name: Raising(error)}
    assert "The scorer mine (Raising)" in broken(said, **scorer)
    for late in (False, True):
        text = broken(said, strategy=Doing(throwing(error), late))
        assert "The strategy Doing" in text
    if isinstance(error, ConfigError):
        assert "no such" in text and "Hint." in text


@pytest.mark.parametrize("error", RAISED, ids=names)
@pytest.mark.parametrize("at", ["Started", "Grown", "Progress", "Judged", "Finished", "Failed"])
def test_whatever_a_listener_raises_names_it_and_hides_no_other_error(error, at):
    def hearing(event):
        if type(event).__name__ == at:
            raise error

    if at == "Failed":  # what went wrong first is what counts
        assert "yielded 3" in broken("The strategy", strategy=Doing(three), listen=hearing)
    else:
        assert f"The listener hearing raised {names(error)}" in broken("", listen=hearing)


def three(task):
    yield 3


def test_deep_recursion_and_a_loop_of_ones_own():
    class Deep(SelfJudge):
        async def compare(self, pairs, case, ask):
            recursing()

    class Own(SelfJudge):  # cancels a task of its own, and nobody cancelled the search
        async def compare(self, pairs, case, ask):
            task = asyncio.ensure_future(asyncio.sleep(60))
            task.cancel()
            await task

    broken("raised RecursionError", judge=Deep())
    broken("raised CancelledError", judge=Own())


def test_an_async_listener_is_refused():
    async def hearing(event):
        pass

    broken("The listener hearing is an async function", listen=hearing)


def test_real_cancellation_and_real_interrupts_pass():
    events: list[Event] = []

    class Waiting(SelfJudge):
        async def compare(self, pairs, case, ask):
            waiting.set()
            await asyncio.sleep(60)

    async def cancelled():
        nonlocal waiting
        waiting = asyncio.Event()
        part = Named("Beam", Beam(3))
        task = asyncio.ensure_future(
            search(
                Problem("p", "?"), part, Named("w", Waiting()), backend, Settings(),
                scorers=lambda name: None, listen=events.append,
            )
        )  # fmt: skip
        await waiting.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    waiting, backend = None, ScriptedBackend()
    asyncio.run(cancelled())
    assert isinstance(events[-1], Failed) and events[-1].error == "CancelledError"
    assert backend.released == ["p"]
    assert threading.current_thread() is threading.main_thread()
    with pytest.raises(KeyboardInterrupt):
        solve_scripted(Beam(3), judge=Raising(KeyboardInterrupt()), listen=events.append)
    assert isinstance(events[-1], Failed) and events[-1].error == "KeyboardInterrupt"


def test_a_search_that_nobody_awaits_any_longer_ends_quietly():
    class Waiting(SelfJudge):
        async def compare(self, pairs, case, ask):
            waiting.set()
            await asyncio.Event().wait()

    loop, waiting, backend = asyncio.new_event_loop(), asyncio.Event(), ScriptedBackend()
    made = search(
        Problem("p", "?"), Named("Beam", Beam(3)), Named("w", Waiting()), backend, Settings(),
        scorers=lambda name: None, listen=(events := []).append,
    )  # fmt: skip
    task = loop.create_task(made)
    loop.run_until_complete(waiting.wait())
    task._log_destroy_pending = False
    loop.close()
    made.close()  # raises if the end was taken for an error of the judge's
    assert isinstance(events[-1], Failed) and events[-1].error == "GeneratorExit"
    assert backend.released == ["p"]


class Some(SelfJudge):
    """Fails for some problems, in a way of its own for each."""

    async def compare(self, pairs, case, ask):
        failing = {"How many 1?": SystemExit(1), "How many 3?": KeyboardInterrupt()}
        if (error := failing.get(case.problem.question)) is not None:
            raise error
        if case.problem.question == "How many 5?":
            return [None] * len(pairs)
        return await SelfJudge.compare(self, pairs, case, ask)


def test_one_problem_fails_the_rest_goes_on_and_the_engine_answers_the_next():
    questions = [(None, f"How many {k}?") for k in range(7)]
    with Engine(ScriptedBackend()) as engine:
        answers = list(
            engine.solve_many(questions, judge=Some(), strategy="best-of-n", on_error="keep")
        )
        failed = {k: str(a) for k, a in enumerate(answers) if isinstance(a, StrategyError)}
        assert list(failed) == [1, 3, 5]
        assert all("The judge Some" in text for text in failed.values())
        assert all(a.text for k, a in enumerate(answers) if k not in failed)

        def leaving(event):
            raise SystemExit(1)

        def nested(event):
            engine.solve(*questions[0])

        with pytest.raises(StrategyError, match="The listener leaving raised SystemExit: 1"):
            engine.solve(*questions[0], on_event=leaving)
        with pytest.raises(StrategyError, match=r"listener nested raised Strat.*never"):
            engine.solve(*questions[0], on_event=nested)
        with pytest.raises(StrategyError, match="The strategy Doing raised KeyboardInterrupt"):
            engine.solve(*questions[0], strategy=Doing(throwing(KeyboardInterrupt())))
        assert engine.solve(*questions[0], judge=Some()).text


# --- whatever is given ---------------------------------------------------------------------------


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


@pytest.mark.parametrize("said", VERDICTS)
def test_whatever_a_judge_gives(said):
    assert "The judge likelihood (Giving)" in broken(said, judge=Giving(VERDICTS[said]))


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


@pytest.mark.parametrize("said", NUMBERS)
def test_whatever_a_scorer_gives(said):
    bad = Giving(NUMBERS[said])
    text = broken(said, strategy=Scoring(), scorers=lambda name: bad)
    assert "The scorer mine (Giving)" in text
    assert "The scorer Giving" in broken(said, judge=ScorerJudge(bad))  # not the judge's fault


def test_numbers_of_other_kinds_become_plain_ones():
    numbers = [np.float32(0.5), np.int64(2), 3, np.array(1.5)]
    strange = Giving(lambda n: [Verdict("first", numbers[k % 4]) for k in range(n)])
    error, heard, _, answer = solved(judge=strange)
    assert error is None
    margins = [v.margin for e in heard if isinstance(e, Selected) for m in e.matches
               for v in m.verdicts]  # fmt: skip
    assert margins and all(type(margin) is float for margin in margins)
    assert answer.trace.canonical()

    @dataclass(frozen=True)
    class More(Verdict):
        extra: Any = None

    error, _, _, answer = solved(judge=Giving(lambda n: [More("first", 1.0, extra=Nameless())] * n))
    assert error is None and answer.trace.canonical()


def test_what_is_no_coroutine():
    class Plain(SelfJudge):
        def compare(self, pairs, case, ask):
            return [Verdict("tie")] * len(pairs)

        score = compare

    class Asynchronous(SelfJudge):
        async def compare(self, pairs, case, ask):
            yield Verdict("tie")

        score = compare

    for kind in (Plain, Asynchronous):
        assert "async def compare" in broken("is awaited", judge=kind())
        text = broken("is awaited", strategy=Scoring(), scorers=lambda name, kind=kind: kind())
        assert "async def score" in text


def test_a_class_in_place_of_an_object_and_what_has_no_method():
    assert "Give an object of it: SelfJudge()" in broken("is a class", judge=SelfJudge)
    assert "Give an object of it: Beam()" in broken("is a class", strategy=Beam)

    class Mute:
        symmetric = True

    broken("has no method compare()", judge=Mute())
    broken("has no method score()", strategy=Scoring(), scorers=lambda name: Mute())
    broken("has no method search()", strategy=Mute())


@pytest.mark.parametrize("value", [None, 1, "no", Nameless()], ids=names)
def test_a_judge_says_whether_it_is_symmetric(value):
    class Strange(SelfJudge):
        symmetric = value

    backend = ScriptedBackend()
    broken("as symmetric", judge=Strange(), backend=backend)
    assert not backend.requests  # refused before the model is asked


def test_a_judge_may_do_with_its_list_of_pairs_what_it_likes():
    class Clearing(SelfJudge):
        async def compare(self, pairs, case, ask):
            n = len(pairs)
            pairs.clear()
            return [Verdict("tie")] * n

    assert solved(judge=Clearing())[0] is None


# --- strategies ----------------------------------------------------------------------------------

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
    "yielded 'CAPTION'": lambda beam, plan: "CAPTION",
    "yielded None": lambda beam, plan: None,
    "yielded <Nameless": lambda beam, plan: Nameless(),
    "yielded (Expand(": lambda beam, plan: (Expand(beam, until="end"),),
    "raised AttributeError": lambda beam, plan: object.__new__(Expand),
}


@pytest.mark.parametrize("said", REQUESTS)
def test_what_a_strategy_asks_is_checked_before_the_model_is_asked(said):
    backend = ScriptedBackend()
    text = broken(said, strategy=Doing(asking(REQUESTS[said])), backend=backend)
    assert "The strategy Doing" in text
    assert len(backend.requests) == 1  # the sound one before it


RETURNED = {
    "returned None": lambda grown: None,
    "returned 'r.0'": lambda grown: "r.0",
    "returned (Chain(": lambda grown: grown,
    "returned Chain(id='r.5'": lambda grown: Chain("r.5"),
    "returned Chain(id='r.0.1.1": lambda grown: FOREIGN,
    "returned Chain(id='r.0', steps=()": lambda grown: Chain("r.0", (), True),
}


@pytest.mark.parametrize("said", RETURNED)
def test_what_a_strategy_returns_is_a_chain_of_its_search(said):
    def act(task):
        grown = yield Expand(task.start, until="end", n=2)
        return RETURNED[said](grown)

    broken(said, strategy=Doing(act))


def test_what_is_no_generator():
    class Plain:
        def search(self, task):
            return task.start[0]

    class Coroutine:
        async def search(self, task):
            return task.start[0]

    class Asynchronous:
        async def search(self, task):
            yield Expand(task.start, until="end")

    for kind in (Plain, Coroutine, Asynchronous):
        assert f"The strategy {kind.__name__}" in broken("as its search", strategy=kind())


def test_a_strategy_is_closed_when_its_search_fails_and_may_not_hide_why():
    ended = []

    def act(task):
        try:
            yield Expand(task.start, until="end")
            yield 3
        finally:
            ended.append(True)
            raise ValueError("from its clean-up")

    broken("yielded 3", strategy=Doing(act))
    assert ended


# --- what the engine itself raises ---------------------------------------------------------------


class Lost(ScriptedBackend):
    """Reads and writes, but cannot be asked to choose."""

    error: BaseException = ModelError("The model is gone.")

    async def choose(self, request):
        raise self.error


def test_an_error_of_the_model_is_not_the_judges():
    broken("The model is gone.", ModelError, backend=Lost(), judge=SelfJudge())

    class Wrapping(SelfJudge):
        async def compare(self, pairs, case, ask):
            try:
                return await SelfJudge.compare(self, pairs, case, ask)
            except Exception as error:
                raise RuntimeError("the judge gave up") from error

    broken("The model is gone.", ModelError, backend=Lost(), judge=Wrapping())


def test_what_a_judge_asked_wrongly_is_its_own_fault():
    class Wrong(Giving):
        async def compare(self, pairs, case, ask):
            return await self.make(ask)

    prompt, until = Prompt("?"), Until()
    for said, wrongly in {
        "tails is 3": lambda ask: ask.choose(prompt, 3, ("1", "2")),
        "tails is []": lambda ask: ask.choose(prompt, [], ("1", "2")),
        "choices is [1, 2]": lambda ask: ask.choose(prompt, ["a"], [1, 2]),
        "prompt is 'x'": lambda ask: ask.choose("x", ["a"], ["1", "2"]),
        "prefix is 3": lambda ask: ask.choose(prompt, ["a"], ["1", "2"], 3),
        "length is 0": lambda ask: ask.write(prompt, ["a"], until, 0, GREEDY),
        "None was given": lambda ask: ask.write(prompt, ["a"], None, 4, GREEDY),
        "missing 1 required": lambda ask: ask.write(prompt, ["a"], until, 4),
    }.items():
        assert "The judge" in broken(said, judge=Wrong(wrongly))


def test_a_judge_cannot_ask_after_its_answer():
    kept = []

    class Keeping(SelfJudge):
        async def compare(self, pairs, case, ask):
            kept.append(ask)
            if len(kept) > 1:
                await kept[0].choose(Prompt("?"), ["a"], ["1", "2"])
            return [Verdict("tie")] * len(pairs)

    broken("asked after it had given its answer", judge=Keeping())


def test_a_judge_that_runs_out_of_budget_or_cannot_judge_leaves_ties():
    for error in (OutOfBudget(), InputError("Too long.")):
        failed, _, _, answer = solved(judge=Raising(error))
        assert failed is None and answer.text
        failed, heard, _, answer = solved(
            strategy=Scoring(), scorers=lambda name, error=error: Raising(error)
        )
        assert failed is None and answer.text
        assert any("Scored by likelihood" in e.text for e in heard if isinstance(e, Notice))


def test_what_a_judge_spent_before_an_error_is_charged_and_in_the_trace():
    class Spending(SelfJudge):
        """Two of its three replies come, then it cannot go on."""

        async def compare(self, pairs, case, ask):
            await ask.choose(Prompt("?"), ["a", "b"], ["1", "2"])
            await ask.write(Prompt("?"), ["a", "b", "c"], Until(), 4, GREEDY)

    class Third(ScriptedBackend):
        async def generate(self, request):
            if request.role == "judge" and request.prompt.text.endswith("c"):
                for _ in range(5):
                    await asyncio.sleep(0)
                raise InputError("Too long.")
            return await super().generate(request)

    error, heard, _, answer = solved(judge=Spending(), backend=Third(), strategy=Beam(2))
    assert error is None
    judged = sum((e.usage for e in heard if isinstance(e, Selected)), Usage())
    held = [e for e in heard if isinstance(e, Selected) and e.matches]
    assert judged == answer.usage["judge"] and judged.calls == 4 * len(held) > 0


# --- backends ------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("said", REPLIES)
def test_what_a_backend_answers_is_checked(said):
    bad = {"backend": changed(*REPLIES[said]), "judge": SelfJudge()}
    text = broken(said, ModelError, strategy=Beam(3), **bad)
    assert "The backend Bad" in text


@pytest.mark.parametrize("error", [e for e in RAISED if not isinstance(e, ModelError)], ids=names)
def test_whatever_a_backend_raises_is_an_error_of_the_model(error):
    class Failing(Lost):
        pass

    Failing.error = error
    if isinstance(error, (ConfigError, StrategyError)):
        return  # raised on purpose, in our words
    broken(f"The backend Failing raised {names(error)}", ModelError, backend=Failing(),
           judge=SelfJudge())  # fmt: skip


def test_a_backend_whose_estimates_are_no_usage():
    class Guessing(ScriptedBackend):
        def estimate(self, request):
            return None

    settings = Settings(budget=Budget(1e12, "flops"))
    broken("gave None as usage", ModelError, backend=Guessing(), settings=settings)


def test_a_backend_that_cannot_forget_hides_no_other_error():
    class Holding(ScriptedBackend):
        def release(self, scope):
            super().release(scope)
            raise OSError("held")

    error, heard, _, _ = solved(backend=Holding(), judge=Raising(ValueError("odd")))
    assert isinstance(error, StrategyError) and "odd" in str(error)
    error, heard, _, _ = solved(backend=Holding())
    assert isinstance(error, ModelError) and isinstance(heard[-1], Failed)


def test_a_backend_that_breaks_at_the_first_question_of_all():
    """The one that finds out the mode, which no search has asked."""

    class Crashing(ScriptedBackend):
        async def generate(self, request):
            raise RuntimeError("a defect")

    empty = changed("generate", lambda r: replace(r, generations=()))
    for backend, said in ((Crashing(), "raised RuntimeError: a def"), (empty, "gave 0 replies")):
        with Engine(backend) as engine, pytest.raises(ModelError, match=said):
            engine.solve(None, "How many?")
        assert all(scope.startswith("probe") for scope in backend.released)


# --- a trace is JSON -----------------------------------------------------------------------------

ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**400), 10**400),
    st.floats(),
    st.text(max_size=4),
    st.binary(max_size=2),
    st.sampled_from([np.float32(1), np.float64("nan"), np.int8(3), np.bool_(True), object(), 1j]),
    st.lists(st.floats(), max_size=2),
)
SPOKEN = st.one_of(
    st.tuples(st.just("tie"), st.floats(), st.just(True), st.text(max_size=4)),
    st.tuples(st.just("first"), st.floats(0), st.booleans(), st.just("")),
    st.tuples(st.sampled_from(["second", "win", None, 3]), ANYTHING, ANYTHING, ANYTHING),
)


def strict(events):
    for event in events:
        body = json.loads(to_json(event), parse_constant=pytest.fail)
        assert json.loads(json.dumps(body, allow_nan=False)) == body


@given(
    st.lists(SPOKEN, min_size=1, max_size=3),
    st.sampled_from(["knockout", "round-robin", "swiss", "random-pairs"]),
)
@settings(max_examples=150, deadline=None)
def test_a_trace_is_json_whatever_a_judge_gives(given, tournament):
    judge = Giving(lambda n: [Verdict(*given[k % len(given)]) for k in range(n)])
    events: list[Event] = []
    try:
        answer = solve_scripted(
            Beam(4), judge=judge, listen=events.append, settings=Settings(tournament=tournament)
        )
        seen("answered")
        assert isinstance(events[-1], Finished)
        assert answer.trace.events == [e for e in events if not isinstance(e, Progress)]
        assert all(
            math.isfinite(m.margin) for e in events if isinstance(e, Selected) for m in e.matches
        )
    except StrategyError:
        assert isinstance(events[-1], Failed)
    strict(events)


@given(st.lists(ANYTHING, min_size=2, max_size=2))
@settings(max_examples=100, deadline=None)
def test_a_trace_is_json_whatever_a_scorer_gives(given):
    events: list[Event] = []
    scorer = Giving(lambda n: given)
    try:
        solve_scripted(Scoring(), scorers=lambda name: scorer, listen=events.append)
        assert any(isinstance(event, Scored) for event in events)
    except StrategyError:
        assert isinstance(events[-1], Failed)
    strict(events)


DEEP = st.recursive(
    ANYTHING,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.sets(st.one_of(st.integers(), st.text(max_size=3)), max_size=3),
        st.dictionaries(st.one_of(st.integers(), st.text(max_size=3), st.none()), inner),
        st.tuples(inner, inner),
    ),
    max_leaves=8,
)


@dataclass(frozen=True)
class Holding:
    """A strategy whose parameters hold something."""

    what: Any = None
    more: list = field(default_factory=list)

    def search(self, task):
        beam = yield Expand(task.start, until="end")
        return beam[0]


@given(DEEP)
@settings(max_examples=100, deadline=None)
def test_a_trace_is_json_whatever_the_parameters_of_a_strategy(what):
    strict(solve_scripted(Holding(what)).trace)


def test_parameters_that_cannot_be_copied_or_have_no_end():
    endless: list = []
    endless.append([endless, endless])
    deep: Any = 0
    for _ in range(5000):
        deep = [deep]
    wide = {k: [0] * 1000 for k in range(1000)}
    odd = [threading.Lock(), (x for x in ()), Nameless(), test_what_is_no_generator, Verdict("tie")]
    for what in (endless, deep, wide, odd, {Nameless(): 1}, {frozenset(): {1, "a"}}):
        trace = solve_scripted(Holding(what)).trace
        strict(trace)
        assert len(to_json(trace.started)) < 50_000
    kept = solve_scripted(Holding(odd)).trace.started.parameters["what"]
    assert kept[1:3] == ["<generator object test_parameters_that_cannot_be_copied_or_have_no_end"
                         ".<locals>.<genexpr>>", kept[2]]  # fmt: skip
    assert kept[4] == {"outcome": "tie", "margin": 0.0, "readable": True, "text": ""}


def test_usual_parameters_are_kept_as_json_has_them():
    what = {"a": (1, 2.5, None, True), "b": Path("x"), "c": [np.int64(3), np.float64(0.5)]}
    started = solve_scripted(Holding(what)).trace.started
    kept = started.parameters["what"]
    assert kept == {"a": [1, 2.5, None, True], "b": repr(Path("x")), "c": [3, 0.5]}
    assert [type(value) for value in kept["c"]] == [int, float]
    assert from_json(to_json(started)) == started


# --- elsewhere -----------------------------------------------------------------------------------


def test_judging_a_record_again_guards_judge_and_listener():
    trace = solve_scripted(Beam(4), judge=RandomJudge()).trace
    named = Named("mine", Raising(SystemExit(2)))
    with pytest.raises(StrategyError, match=r"The judge mine \(Raising\) raised SystemExit: 2"):
        asyncio.run(rejudge(trace, named, "knockout"))
    with pytest.raises(StrategyError, match=r"The listener .* raised ValueError: odd"):
        asyncio.run(
            rejudge(trace, Named("r", RandomJudge()), "knockout", listen=throwing_at(ValueError))
        )


def throwing_at(kind):
    def hear(event):
        raise kind("odd")

    return hear


@pytest.mark.parametrize("error", ["SystemExit(3)", "GeneratorExit()", "asyncio.CancelledError()"])
def test_a_plug_in_that_ends_the_program_is_only_named(install, error):
    source = f"import asyncio\nclass Mine:\n  def __init__(self): raise {error}\n"
    install("ending", source, mine="ending:Mine")
    with pytest.raises(StrategyError, match="'mine' cannot be made"):
        plugins.make("strategy", "mine", {})
    install("leaving", f"import asyncio\nraise {error}", other="leaving:Mine")
    with pytest.raises(StrategyError, match="of package 'leaving' cannot be imported"):
        plugins.make("strategy", "other", {})


def test_a_value_that_is_refused_is_cut():
    with pytest.raises(ConfigError) as refused:
        plugins.make("strategy", "stage-beam", {"n": "x" * 10**6})
    assert len(str(refused.value)) < 200
