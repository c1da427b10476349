"""How a response is concluded, and what is held back for it while others are grown, against a
second account."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from attentive import Attentive
from hypothesis import given, settings
from hypothesis import strategies as st
from sessions import (
    PLAN,
    REASONING,
    SUMMARY,
    UNITS,
    R,
    S,
    chain,
    expand,
    sample,
    session,
    step,
    words,
)

from cot_engine.backends.scripted import _number
from cot_engine.core.boundaries import Until
from cot_engine.core.chain import Chain
from cot_engine.core.requests import GREEDY, Prompt, Sampling
from cot_engine.core.stages import Plan, Stage
from cot_engine.core.usage import Usage
from cot_engine.search.asking import MeteredAsk
from cot_engine.search.budget import Budget
from cot_engine.search.expand import Exhausted, Growth, Portion, largest
from cot_engine.search.session import FLOOR_TOKENS


@pytest.mark.parametrize(
    ("before", "mode", "forced"),
    [
        ((), "trained", "<CONCLUSION>"),
        ((S,), "trained", "<CONCLUSION>"),
        ((S,), "prompted", "\n\n<CONCLUSION>"),
        ((S, "<REASONING>r"), "trained", "</REASONING><CONCLUSION>"),
        ((S, "\n\n<REASONING>r"), "prompted", "</REASONING>\n\n<CONCLUSION>"),
        ((S, R, "<CONCLUSION>c"), "trained", ""),
    ],
)
def test_concluding_opens_the_last_stage_and_closes_what_is_open(before, mode, forced):
    made, backend, events = session(lambda request, seed: "4</CONCLUSION>", mode=mode, seed=3)
    growth, parent = Growth(made), chain(*before) if before else Chain()
    growth.children[parent.id] = 2
    told, doing = [], made.reporter.doing
    made.reporter.doing = lambda *what: told.append(what) or doing(*what)
    child, usage = asyncio.run(growth.conclude(parent))
    (request,) = backend.requests
    assert "".join(s.text for s in request.prefix) == parent.text + forced
    assert (request.seeds, request.sampling, request.max_new_tokens) == ((0,), GREEDY, 256)
    assert child.id == f"{parent.id}.2" and growth.children[parent.id] == 3 and child.done
    assert child.text == parent.text + forced + "4</CONCLUSION>"
    growing, grown = events
    assert (growing.parents, growing.unit, growing.n) == ((parent.id,), "CONCLUSION", 1)
    assert grown.forced and grown.usage == usage == made.meter.total
    assert told == [("growing", "CONCLUSION", 1)]
    (told_of,) = grown.chains
    assert (told_of.id, told_of.steps) == (child.id, child.steps[-1:]), "the new step alone"
    told.clear()
    sample(growth, [parent, chain(S, at=3)], "sentence", 4, 9)
    assert told == [("growing", "sentence", 8)]


@pytest.mark.parametrize("length", [0, -1, 1.0, True, "9", None])
def test_a_judge_that_asks_for_no_length_is_told_before_anything_is_sent(length):
    made, backend, _ = session()
    with pytest.raises(TypeError, match="length is"):
        asyncio.run(
            MeteredAsk(made, "judge", ()).write(Prompt("q"), ["a"], Until(), length, GREEDY)
        )
    assert not backend.requests
    asyncio.run(MeteredAsk(made, "judge", ()).write(Prompt("q"), ["a"], Until(), 1, GREEDY))
    assert backend.requests[-1].max_new_tokens == 1


@pytest.mark.parametrize(
    "wrong",
    [
        *({"prompt": "q"}, {"prompt": Prompt(5)}, {"tails": "ab"}, {"tails": ()}, {"tails": [1]}),
        *({"until": None}, {"sampling": None}),
    ],
    ids=str,
)
def test_a_judge_that_asks_wrongly_is_told_before_anything_is_sent(wrong):
    made, backend, _ = session()
    right = {"prompt": Prompt("q"), "tails": ["a"], "until": Until(), "sampling": GREEDY}
    with pytest.raises(TypeError):
        asyncio.run(MeteredAsk(made, "judge", ()).write(**right | wrong, length=9))
    if "prompt" in wrong or "tails" in wrong:
        asked = {name: (right | wrong)[name] for name in ("prompt", "tails")}
        with pytest.raises(TypeError):
            asyncio.run(MeteredAsk(made, "judge", ()).choose(**asked, choices=("1", "2")))
    assert not backend.requests


def test_a_scope_is_let_go_of_once():
    made, backend, _ = session()
    made.release()
    made.release()
    assert backend.released == ["scope"]


def test_what_a_session_begins_with():
    made, *_ = session(sampling=Sampling(0.5))
    assert (made.match, made.safe, made.settings.seed) == (0.0, None, 0)
    request = made.growing((), Until(), (1, 2), 7)
    assert (request.sampling, request.seeds, request.max_new_tokens) == (Sampling(0.5), (1, 2), 7)
    assert request.role == "generate" and request.prompt == made.prompt


def test_a_question_writes_no_tokens_and_a_continuation_those_it_has():
    made, *_ = session()
    told = []
    made.reporter.answered = lambda headway, tokens, rows, texts=(): told.append((tokens, rows))
    asyncio.run(MeteredAsk(made, "judge", ()).choose(Prompt("q"), ["a", "b"], ["1", "2"]))
    expand(Growth(made), (Chain(),), SUMMARY, 3)
    assert told == [(0, 2), (made.meter.usage["generate"].decoded, 3)]


@pytest.mark.parametrize(
    ("budget", "fault", "finish"),
    [(None, "unclosed-last:CONCLUSION", "length"), (40, "unclosed:CONCLUSION", "budget")],
)
def test_a_conclusion_that_ends_in_the_air_says_whether_the_budget_cut_it(budget, fault, finish):
    made, *_ = session(
        lambda request, seed: "w " * 999, budget=budget and Budget(budget, "new tokens")
    )
    child, _ = asyncio.run(Growth(made).conclude(chain(S)))
    assert (child.last.faults[-1], child.last.finish, child.done) == (fault, finish, True)


def test_the_floor_is_what_a_conclusion_costs_there_with_its_tags():
    made, *_ = session(backend=Attentive(), budget=Budget(1e9, "flops"))
    for length, grown in itertools.product((1, 5, 40), (0, 1, 30)):
        prefix = chain(words(length)).segments
        context = len("Which is it?".split()) + length
        floor = made.floor(prefix, grown)
        places = range(context + max(1, grown), context + max(1, grown) + floor.decoded)
        assert floor.flops == sum(1000 + 100 * place for place in places)
        assert (floor.calls, floor.prefilled, floor.decoded) == (1, 0, 32 + 24)
        # A token for each letter of the longest tags is more than any tokenizer takes.
        assert floor.decoded - FLOOR_TOKENS >= len("</REASONING><CONCLUSION>")
    made.safe = Chain()
    assert made.floor(prefix, 9) == Usage()
    assert session()[0].floor(prefix, 9) == Usage()


@pytest.mark.parametrize("turned", [False, True])
def test_the_floor_is_that_of_the_longest_parent_grown_by_what_is_asked(turned):
    made, *_ = session(backend=Attentive(), budget=Budget(1e9, "flops"))
    growth, parents = Growth(made), [chain(words(3), tokens=3), chain(words(30), tokens=30, at=1)]
    floor = growth.floor(parents[::-1] if turned else parents, 17)
    assert floor == made.ending(parents[1].segments, 17)
    assert floor.flops > made.ending(parents[0].segments, 17).flops
    assert floor.flops > made.ending(parents[1].segments, 0).flops


def test_opening_later_stages_by_force_is_reserved_for_each_candidate():
    made, *_ = session(backend=Attentive(), mode="prompted", budget=Budget(1e9, "flops"))
    growth, parents = Growth(made), [chain(words(3), tokens=3), chain(words(9), tokens=9, at=1)]
    one = made.ending(parents[1].segments, 1)
    later = growth.later_tags(Portion(tuple(parents), "end", 5, 9))
    assert later.calls == 2 * 2 * 5  # two stages behind the first, two parents
    assert (later.prefilled, later.flops) == (one.decoded * 20, one.flops * 20)


@given(
    st.sampled_from(UNITS),
    st.integers(1, 4),
    st.sampled_from([SUMMARY, "sentence", "end"]),
    st.sampled_from(["trained", "prompted"]),
    st.floats(0.01, 1.3),
    st.integers(1, 2),
)
@settings(max_examples=50)
def test_a_tight_budget_shortens_to_64_then_thins_then_shortens(unit, n, until, mode, share, many):
    """The number and the length are the largest that fit, by trying them all."""
    plan = Plan(tuple(Stage(s.tag, "", "", n) for s, n in zip(PLAN, (90, 130, 40), strict=True)))
    budget = Budget(1, unit)
    made, _, events = session(backend=Attentive(), mode=mode, budget=budget, plan=plan)
    growth = Growth(made)
    parents = tuple(
        chain(words(5 + 20 * k, "SUMMARY") + ".</SUMMARY>", tokens=5 + 20 * k, at=k)
        for k in range(many)
    )
    until = plan["REASONING"] if until is SUMMARY else until
    asked = growth.length(parents, until)

    def cost(count, length):
        return made.meter.budget.of(growth.cost(Portion(parents, until, count, length)))

    def floor(length):
        return made.meter.budget.of(growth.floor(parents, length))

    amount = max(1, int(share * (cost(n, asked) + floor(asked))))
    made.meter.budget = Budget(amount, unit)

    def fits(count, length):
        return cost(count, length) + floor(length) <= amount

    count = next((c for c in range(n, 1, -1) if fits(c, min(64, asked))), 1)
    length = max((k for k in range(1, asked + 1) if fits(count, k)), default=0)
    if length < 8:
        with pytest.raises(Exhausted):
            growth.within_budget(Portion(parents, until, n, asked))
        assert [(e.what, e.asked, e.granted, e.left) for e in events] == [
            ("search", n * many, 0, amount)
        ]
        return
    got = growth.within_budget(Portion(parents, until, n, asked))
    assert got == Portion(parents, until, count, length)
    assert [(e.what, e.asked, e.granted, e.left) for e in events] == [
        *[("candidates", n, count, amount)] * (count < n),
        *[("tokens", asked, length, amount)] * (length < asked),
    ]


@pytest.mark.parametrize("left", [0, 56 + 7, 56 + 8, 56 + 63, 56 + 127, 56 + 128])
def test_eight_tokens_are_worth_growing_and_sixty_four_are_worth_a_candidate(left):
    made, _, events = session(budget=Budget(1000, "new tokens"))
    made.meter.charge("generate", Usage(decoded=1000 - left))
    growth = Growth(made)
    if left < 56 + 8:
        with pytest.raises(Exhausted):
            growth.within_budget(Portion((Chain(),), SUMMARY, 2, 256))
        assert [(e.what, e.asked, e.granted, e.left) for e in events] == [("search", 2, 0, left)]
    else:
        count = 2 if left == 56 + 128 else 1
        got = growth.within_budget(Portion((Chain(),), SUMMARY, 2, 256))
        assert (got.count, got.length) == (count, (left - 56) // count)


def test_where_the_money_ends_what_is_finished_counts_and_else_the_likeliest():
    made, *_ = session(budget=Budget(1, "tokens"))
    parents = tuple(
        chain("<SUMMARY>a</SUMMARY>", at=k, logprob=lp) for k, lp in enumerate((-3.0, -1.0, -2.0))
    )
    with pytest.raises(Exhausted) as ended:
        expand(Growth(made), parents, REASONING, 1)
    assert ended.value.chain == parents[1]
    made.safe = Chain("r.9", (step("x", logprob=-9.0),), True)
    with pytest.raises(Exhausted) as ended:
        expand(Growth(made), parents, REASONING, 1)
    assert ended.value.chain == made.safe


def test_of_whole_responses_the_soundest_then_likeliest_makes_the_answer_safe():
    easy = next(f"<CONCLUSION>{k}</CONCLUSION>" for k in range(999) if _likely(k))
    hard = next(f"<CONCLUSION>{k}</CONCLUSION>" for k in range(999) if not _likely(k))
    left = [easy, S + R + hard, S + R + easy, S + R, S + R + hard]  # in this order, from the root
    made, *_ = session(lambda request, seed: left.pop(0))
    growth = Growth(made)
    grown = expand(growth, (Chain(),), "end", 5)
    assert made.safe == grown[2] and grown[0].done, "the likeliest of all skipped two stages"
    assert grown[0].likelihood() > grown[2].likelihood() > grown[1].likelihood()
    left.append(S + R + easy)
    expand(growth, (Chain(),), "end", 1)
    assert made.safe == grown[2], "once there is one it is the selection's to change"
    made, *_ = session()
    expand(Growth(made), (Chain(),), SUMMARY, 2)
    assert made.safe is None


def _likely(k):
    """Whether the scripted model finds this conclusion as likely as anything."""
    return _number(f"<CONCLUSION>{k}</CONCLUSION>") % 7 == 0


def test_the_longest_child_so_far_is_kept_in_mind_whichever_came_last():
    replies = ["<SUMMARY>" + " w" * n + "</SUMMARY>" for n in (3, 9, 5)]
    left = list(replies)
    made, *_ = session(lambda request, seed: left.pop(0))
    growth = Growth(made)
    for count, longest in ((2, 10), (1, 10)):
        expand(growth, (Chain(),), SUMMARY, count)
        assert growth.longest == {"r": longest}


@pytest.mark.parametrize(("left", "granted"), [(56, 56), (40, 40), (300, 256), (32, 32), (1, 1)])
def test_a_conclusion_gets_what_is_left_and_the_floor_at_least(left, granted):
    made, backend, _ = session(budget=Budget(1000, "new tokens"))
    made.meter.charge("generate", Usage(decoded=1000 - left))
    asyncio.run(Growth(made).conclude(chain(S)))
    assert backend.requests[-1].max_new_tokens == granted
    if left >= 32:  # so much is worth more than a finished chain that there is
        backend.requests.clear()
        made.meter.usage.clear()
        made.meter.charge("generate", Usage(decoded=1000 - left))
        made.safe = Chain("r.7", (step(S),), True)
        asyncio.run(Growth(made).conclude(chain(S)))
        assert backend.requests[-1].max_new_tokens == granted


@pytest.mark.parametrize(("left", "safe"), [(0, None), (31, Chain("r.7", (step(S),), True))])
def test_where_not_even_the_floor_is_left_what_there_is_is_the_answer(left, safe):
    made, backend, events = session(budget=Budget(1000, "new tokens"))
    made.meter.charge("generate", Usage(decoded=1000 - left))
    made.safe, begun = safe, chain(S)
    assert asyncio.run(Growth(made).conclude(begun)) == (safe or begun, Usage())
    assert not backend.requests and not events


def test_a_conclusion_is_shortened_to_what_is_left_rather_than_left_out():
    """Reading the chain again may cost more than the floor held back."""
    made, backend, _ = session(budget=Budget(1000, "new tokens"))
    made.meter.charge("generate", Usage(decoded=1000 - 7))
    concluded, _ = asyncio.run(Growth(made).conclude(chain(S)))
    assert concluded.done and backend.requests[-1].max_new_tokens == 7


@given(st.integers(0, 40), st.integers(0, 45))
def test_largest_is_the_largest(most, limit):
    asked = []

    def fits(k):
        asked.append(k)
        return k <= limit

    assert largest(most, fits) == min(most, limit)
    assert all(1 <= k <= most for k in asked) and len(asked) <= 6
