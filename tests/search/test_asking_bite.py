"""The deadlines of requests, and what judges ask, against a second account."""

from __future__ import annotations

import asyncio

import pytest
from sessions import REASONING, SUMMARY, chain, expand, sample, session, words

from cot_engine.core.boundaries import Until
from cot_engine.core.chain import Chain
from cot_engine.core.events import Cut, Growing, Grown
from cot_engine.core.requests import GREEDY, Prompt, Sampling
from cot_engine.core.usage import Usage
from cot_engine.judging.judges import OutOfBudget
from cot_engine.search.asking import MeteredAsk
from cot_engine.search.budget import Budget, Meter
from cot_engine.search.expand import Growth
from cot_engine.testing import ScriptedBackend


@pytest.mark.parametrize("mode", ["trained", "prompted"])
@pytest.mark.parametrize("budget", [None, Budget(8, "seconds"), Budget(10**6, "tokens")], ids=str)
def test_every_request_has_its_deadline(budget, mode):
    made, backend, _ = session(budget=budget, mode=mode)
    now = [100.0]
    made.meter = Meter(budget, clock=lambda: now[0])
    growth = Growth(made)

    def deadlines():
        found = {
            r.deadline if r.deadline is None else round(r.deadline + Meter.HANDOVER, 9)
            for r in backend.requests
        }
        backend.requests.clear()
        return found

    clocked = budget is not None and budget.unit == "seconds"
    now[0] = 101.0
    asyncio.run(growth.conclude(Chain()))
    assert deadlines() == {108.0 if clocked else None}, "a conclusion may use what is kept for it"
    (grown,) = expand(growth, (Chain(),), SUMMARY, 1)
    assert deadlines() == {106.0 if clocked else None}, "a quarter is held back"
    sample(growth, [grown], REASONING, 1, 99, upto=0.5)
    assert deadlines() == {104.0 if clocked else None}
    made.safe = grown
    expand(growth, (grown,), "end", 2)
    assert deadlines() == {108.0 if clocked else None}, "nothing, once an answer is safe"
    ask = MeteredAsk(made, "judge", ())
    asyncio.run(ask.write(Prompt("q"), ["a", "b"], Until(), 9, GREEDY))
    assert deadlines() == {108.0 if clocked else None}


def test_what_a_judge_writes_is_seeded_by_its_words_and_charged_to_it():
    made, backend, _ = session(
        lambda request, seed: "yes " * (1 + seed % 5), budget=Budget(9e9, "flops")
    )
    ask, prompt = MeteredAsk(made, "score", ()), Prompt("Which?")
    asyncio.run(ask.write(prompt, ["a", "bb", "a"], Until(), 9, Sampling()))
    seeds = [request.seeds for request in backend.requests]
    assert seeds == [(made.seed("judge", "Which?", tail),) for tail in ("a", "bb", "a")]
    assert [r.prompt.text for r in backend.requests] == ["Which?a", "Which?bb", "Which?a"]
    assert {(r.scope, r.role, r.max_new_tokens, r.sampling) for r in backend.requests} == {
        ("scope", "score", 9, Sampling())
    }
    assert made.meter.usage == {"score": ask.usage} and ask.usage.calls == 3
    asyncio.run(ask.choose(prompt, ["a", "b"], ["1", "2"], "So: "))
    assert made.meter.usage == {"score": ask.usage} and ask.usage.calls == 5
    last = backend.requests[-1]
    assert (last.tails, last.choices, last.prefix, last.role) == (
        ("a", "b"),
        ("1", "2"),
        "So: ",
        "score",
    )


def test_what_a_judge_asks_is_reserved_as_a_whole_above_the_floor():
    made, backend, _ = session(budget=Budget(9e9, "tokens"))
    prefix = chain(words(9)).segments
    ask, tails = MeteredAsk(made, "judge", prefix), ["a", "b", "c"]
    asyncio.run(ask.write(Prompt("Which?"), tails, Until(), 9, GREEDY))
    full = ask.asked
    assert full == 3 * (9 + 1)
    made, backend, _ = session(budget=Budget(full + 56, "tokens"))
    made.meter.charge("generate", Usage(decoded=1))  # one short: the floor is 56
    ask = MeteredAsk(made, "judge", prefix)
    with pytest.raises(OutOfBudget):
        asyncio.run(ask.write(Prompt("Which?"), tails, Until(), 9, GREEDY))
    assert ask.asked == full and not backend.requests and ask.usage == Usage()
    made.safe = Chain()
    asyncio.run(ask.write(Prompt("Which?"), tails, Until(), 9, GREEDY))


def test_without_a_budget_nothing_is_estimated():
    class Never(ScriptedBackend):
        def estimate(self, request):
            raise AssertionError("estimating is not free")

    made, *_ = session(backend=Never())
    asyncio.run(MeteredAsk(made, "judge", ()).choose(Prompt("q"), ["a"], ["1", "2"]))
    expand(Growth(made), (Chain(),), SUMMARY, 1)


def test_what_cutting_says_is_left_is_what_is_left():
    made, _, events = session(budget=Budget(90, "new tokens"))
    made.meter.charge("generate", Usage(decoded=7))
    expand(Growth(made), (Chain(),), SUMMARY, 3)
    cuts = [e for e in events if isinstance(e, Cut)]
    assert cuts and {cut.left for cut in cuts} == {83}
    assert [type(e) for e in events][-2:] == [Growing, Grown]
