"""Several requests at once: sent together, the same as one after the other, however long each
takes, and within the budget."""

from __future__ import annotations

import asyncio
import random
import threading
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cot_engine import Budget, Expand, Score, Select, StrategyError
from cot_engine.core.events import Failed, Grown, Notice, Progress, Selected
from cot_engine.core.requests import Prompt
from cot_engine.errors import BudgetError
from cot_engine.judging.judges import SelfJudge
from cot_engine.search.session import Settings
from cot_engine.testing import ScriptedBackend, check_strategy, solve_scripted

UNITS = ("flops", "new tokens", "tokens", "calls")


@dataclass(frozen=True)
class Groups:
    """Keeps the best of each of `groups` beams apart, stage by stage; all of them together, or one
    after the other."""

    groups: int = 3
    n: int = 2
    together: bool = True

    def search(self, task):
        first = yield Expand(task.start, until=task.plan.stages[0], n=self.groups * self.n)
        beams = [first[k :: self.groups] for k in range(min(self.groups, len(first)))]
        for stage in task.plan.stages[1:]:
            beams = yield from self.ask([Select(beam) for beam in beams])
            beams = yield from self.ask([Expand(beam, until=stage, n=self.n) for beam in beams])
        scores = yield from self.ask([Score(beam) for beam in beams])
        best = [b for _, b in sorted(zip(scores, beams, strict=True), key=lambda it: -max(it[0]))]
        beams = yield from self.ask([Select(beam) for beam in best])
        return (yield Select(tuple(beam[0] for beam in beams), about="whole"))[0]

    def ask(self, requests):
        if self.together:
            return (yield tuple(requests))
        replies = []
        for request in requests:
            replies.append((yield request))
        return replies


class Slow(ScriptedBackend):
    """Answers after a while that `draw` says, in steps of the loop; counts how often it stood idle
    before a request, and the most that were in flight."""

    def __init__(self, draw=lambda: 20, **script):
        super().__init__(**script)
        self.draw, self.idle, self.flying, self.most = draw, 0, 0, 0

    async def generate(self, request):
        return await self.later(super().generate, request)

    async def choose(self, request):
        return await self.later(super().choose, request)

    async def later(self, answer, request):
        self.idle += not self.flying
        self.flying += 1
        self.most = max(self.most, self.flying)
        reply = await answer(request)  # read in the order in which they came, written at its pace
        for _ in range(self.draw()):
            await asyncio.sleep(0)
        self.flying -= 1
        return reply


def solve(strategy, backend=None, **more):
    how = {name: more.pop(name) for name in ("budget", "mode", "tournament") if name in more}
    return solve_scripted(strategy, backend=backend, settings=Settings(**how), **more)


def test_conforms():
    check_strategy(Groups())


@pytest.mark.parametrize("mode", ["trained", "prompted"])
def test_together_is_as_one_after_the_other(mode):
    traces = [
        solve(Groups(together=together), judge=SelfJudge(), mode=mode).trace.canonical()
        for together in (True, False)
    ]
    for trace in traces:
        trace[0]["parameters"].pop("together")
    assert traces[0] == traces[1]
    rounds = [event["round"] for event in traces[0] if "round" in event]
    assert rounds == sorted(rounds) and {*rounds} == {*range(1, max(rounds) + 1)}


def test_they_are_sent_together():
    backends = [Slow(), Slow()]
    for backend, together in zip(backends, (True, False), strict=True):
        solve(Groups(5, 4, together), backend, judge=SelfJudge(), tournament="round-robin")
    assert [backend.most for backend in backends] == [5, 1]
    # SUMMARY, then select and expand twice, select, and the best of all: each once, where one after
    # the other the middle ones take five times as often (but for beams whose texts are all equal).
    assert backends[0].idle == 1 + 2 * 2 + 1 + 1
    assert 20 < backends[1].idle <= 1 + 2 * 2 * 5 + 5 + 1


class Twice(SelfJudge):
    """Asks again in other words, which the model reads once for all groups that come to it."""

    async def compare(self, pairs, case, ask):
        first = await super().compare(pairs, case, ask)
        await ask.choose(Prompt("Are you sure of what you have just said?"), ["", " "], ["1", "2"])
        return first


@given(st.integers(0, 2**30), st.sampled_from([None, *UNITS]), st.floats(0.2, 1.5))
@settings(max_examples=60)
def test_how_long_each_takes_changes_nothing(seed, unit, share):
    budget = None
    if unit is not None:
        budget = Budget(max(1, round(Budget(1, unit).of(WHOLE.total) * share)), unit)
    drawn, traces, rng = [], [], random.Random(seed)
    for draw in (lambda: 1, lambda: rng.randrange(40)):
        backend = Slow(draw, script=long)
        try:
            answer = solve(Groups(), backend, judge=Twice(), budget=budget)
        except BudgetError as error:
            drawn.append(str(error))
            continue
        traces.append(answer.trace.canonical())
        assert answer.trace.fold().usage == answer.usage
        if budget is not None:
            spent = budget.of(answer.total)
            assert spent <= budget.amount and answer.left == budget.amount - spent
            assert answer.chain.done
    assert len(traces) in (0, 2) and traces[:1] == traces[1:] and drawn[:1] == drawn[1:]


def long(request, seed):
    from cot_engine.testing import staged_reply

    return staged_reply(request, seed).replace("About", "Well " * (1 + seed % 9) + "about")


WHOLE = solve(Groups(), ScriptedBackend(long), judge=Twice())


def test_each_has_its_part_of_the_budget():
    """The first of two is not given what the second needs."""

    @dataclass(frozen=True)
    class Two:
        def search(self, task):
            beam = yield Expand(task.start, until=task.plan.stages[0], n=2)
            one, two = yield tuple(Expand((c,), until="end", n=4) for c in beam)
            return (yield Select((*one, *two), about="whole"))[0]

    answer = solve(Two(), ScriptedBackend(long), budget=Budget(400, "new tokens"))
    one, two = (e for e in answer.trace if isinstance(e, Grown) and e.unit == "end")
    assert len(one.chains) == len(two.chains) > 0


def test_the_error_of_one_is_that_of_the_search_and_the_others_end():
    class Fails(SelfJudge):
        async def compare(self, pairs, case, ask):
            if pairs[0][0].id == "r.1":
                raise ZeroDivisionError
            await asyncio.sleep(30)

    heard = []
    with pytest.raises(StrategyError, match="raised ZeroDivisionError"):
        solve(Groups(), judge=Fails(), listen=heard.append)
    assert isinstance(heard[-1], Failed) and not [e for e in heard if isinstance(e, Selected)]


def test_listeners_hear_of_the_first_round_that_is_not_over_and_the_events_in_order():
    heard = []
    slow = Slow(lambda: 400)
    answer = solve(Groups(3, 4), slow, judge=SelfJudge(), listen=heard.append)
    events = [event for event in heard if not isinstance(event, Progress)]
    assert events == answer.trace.events
    told = [e.round for e in events if not isinstance(e, Notice) and hasattr(e, "round")]
    assert told == sorted(told)
    assert {e.doing for e in heard if isinstance(e, Progress)} >= {"growing", "judging"}


def test_the_same_chain_may_be_grown_and_judged_in_several_of_them():
    @dataclass(frozen=True)
    class Twofold:
        def search(self, task):
            one, two = yield Expand(task.start, "end", n=2), Expand(task.start, "end", n=3)
            best, _ = yield Select((*one, *two), about="whole"), Select(two, about="whole")
            return best[0]

    answer = solve(Twofold(), judge=SelfJudge(), tournament="round-robin")
    one, two = (event for event in answer.trace if isinstance(event, Grown))
    assert [c.id for c in (*one.chains, *two.chains)] == [f"r.{k}" for k in range(5)]
    check_strategy(Twofold())


class Gathers(SelfJudge):
    """Asks of each pair apart, all at once, in tasks that nobody else counts."""

    async def compare(self, pairs, case, ask):
        one = SelfJudge.compare
        return [v for [v] in await asyncio.gather(*(one(self, [p], case, ask) for p in pairs))]


class Locked(SelfJudge):
    """Lets one in at a time, as who spares a remote judge does."""

    def __init__(self):
        object.__setattr__(self, "least_mass", 1e-3)
        object.__setattr__(self, "prompt", "full")
        self.__dict__["lock"] = asyncio.Semaphore(1)

    async def compare(self, pairs, case, ask):
        async with self.lock:
            return await SelfJudge.compare(self, pairs, case, ask)


@dataclass(frozen=True)
class Selects:
    many: int = 1

    def search(self, task):
        beam = yield Expand(task.start, until=task.plan.stages[0], n=5)
        picked = yield tuple(Select(beam[k:]) for k in range(self.many))
        return (yield Expand(picked[0], until="end"))[0]


@pytest.mark.parametrize("many", [1, 3])
@pytest.mark.parametrize("judge", [Gathers, Locked])
def test_a_judge_that_gathers_or_locks_does_not_hang(many, judge):
    apart = solve(Selects(1), judge=SelfJudge(), tournament="round-robin")

    found = []

    def search():
        more = {"judge": judge(), "tournament": "round-robin"}
        found.append(solve(Selects(many), Slow(), **more).text)

    thread = threading.Thread(target=search, daemon=True)  # one that hangs must not hold us up
    thread.start()
    thread.join(20)
    assert found == [apart.text]
