"""Filling against its rules by trying everything: as many as fit, as long as fit, never more."""

from __future__ import annotations

import asyncio

import pytest
from attentive import Attentive
from hypothesis import given, settings
from hypothesis import strategies as st

from cot_engine.core.chain import Chain, Step
from cot_engine.core.events import Cut, Growing, Grown
from cot_engine.core.problem import Problem
from cot_engine.core.requests import Segment
from cot_engine.core.stages import DEFAULT_PLAN, Plan, Stage
from cot_engine.core.usage import Usage
from cot_engine.search.budget import Budget
from cot_engine.search.expand import Growth, Portion
from cot_engine.search.fill import fill, fitting
from cot_engine.search.session import Session, Settings
from cot_engine.search.strategy import Expand
from cot_engine.testing import staged_reply

PLAN = Plan(
    tuple(Stage(s.tag, "", "", n) for s, n in zip(DEFAULT_PLAN.fit(0), (30, 60, 20), strict=True))
)
UNITS = ("flops", "new tokens", "tokens", "calls")


def session(amount, unit="tokens", script=staged_reply, mode="trained"):
    events = []
    budget = None if amount is None else Budget(amount, unit)
    made = Session(
        *(Problem("p", "Which is it?"), Attentive(script)),
        *(Settings(plan=PLAN, budget=budget, mode=mode), events.append, "scope"),
    )
    return made, events


def parent(k, tokens):
    text = "<SUMMARY>" + " w" * tokens + "</SUMMARY>"
    step = Step(text, (Segment(text, tuple(range(tokens))),), "SUMMARY", -1.0, tokens, "stop")
    return Chain().grow(k, step, False)


def filled(growth, beam, until, n, upto, greedy=False):
    return asyncio.run(fill(growth, Expand(beam, until, n, greedy, upto)))


@given(
    st.sampled_from(UNITS),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from(["REASONING", "sentence", "end"]),
    st.sampled_from(["trained", "prompted"]),
    st.sampled_from([0.5, 0.9, 1.0]),
    st.floats(0.02, 2.0),
    st.sampled_from([None, 0, 3, 40]),
    st.booleans(),
)
@settings(max_examples=120)
def test_what_is_filled_in_is_the_most_that_fits(
    unit, n, many, until, mode, upto, share, longest, safe
):
    made, events = session(1, unit, mode=mode)
    growth, parents = Growth(made), tuple(parent(k, 4 + 9 * (k % 2)) for k in range(many))
    until = PLAN[until] if until == "REASONING" else until
    asked = growth.length(parents, until)
    made.match, made.safe = (1.5 if unit == "calls" else 25.0), Chain() if safe else None
    if longest is not None:
        growth.longest = {chain.id: longest // (1 + k) for k, chain in enumerate(parents)}
    usual = asked if longest is None else max(1, longest)  # none was written: it may be one
    of = made.meter.budget.of

    def needs(some, count, length, last=False):
        """All that is spent or kept back for these, in the budget's unit."""
        cost = of(growth.cost(Portion(some, until, count, length, last=last)))
        judged = 0 if last else made.match * count * len(some)
        floor = of(growth.floor(some, length)) * (1 if until == "end" else 2)
        return cost + judged, floor

    amount = max(1, int(share * sum(needs(parents, n, usual)) / upto))
    spent = Usage(decoded=amount // 7, flops=amount // 7, calls=amount // 7)
    made.meter.budget = Budget(amount, unit)
    made.meter.charge("generate", spent)

    def fits(some, count, length, last=False):
        cost, floor = needs(some, count, length, last)
        return of(spent) + cost <= min(amount * upto, amount - floor)

    def most(some, count, last=False):
        return max((k for k in range(1, asked + 1) if fits(some, count, k, last)), default=0)

    # The most for each of all parents; else one for each of the first few; else a last, short one.
    count = next((c for c in range(n, 0, -1) if fits(parents, c, usual)), 0)
    several = next((k for k in range(many - 1, 0, -1) if fits(parents[:k], 1, usual)), 0)
    if count:
        expected = (parents, count, most(parents, count), False)
    elif several:
        expected = (parents[:several], 1, most(parents[:several], 1), False)
    else:
        length = most(parents[:1], 1, last=True) if upto == 1 else 0
        enough = length >= min(usual, 8)
        expected = (parents[:1], 1, length, True) if enough else None

    got = fitting(growth, Portion(parents, until, n, asked, upto=upto))
    assert (got and (got.parents, got.count, got.length, got.last)) == expected
    cut = bool(expected and expected[3] and expected[2] < usual)
    left = amount - of(spent)
    told = [("tokens", usual, expected[2], left)] if cut else []
    assert [(e.what, e.asked, e.granted, e.left) for e in events if isinstance(e, Cut)] == told


@pytest.mark.parametrize("mode", ["trained", "prompted"])
@pytest.mark.parametrize("until", ["REASONING", "sentence", "end"])
@pytest.mark.parametrize(
    ("unit", "upto"),
    [("flops", 1.0), ("flops", 0.7), ("new tokens", 0.8), ("tokens", 0.6), ("calls", 1.0)],
)
def test_filling_stays_within_its_part_and_leaves_what_concluding_takes(unit, until, upto, mode):
    made, events = session(1, unit, mode=mode)
    growth, parents = Growth(made), (parent(0, 5), parent(1, 20))
    unit_of = PLAN[until] if until == "REASONING" else until
    one = made.meter.budget.of(growth.cost(Portion((parents[1],), unit_of, 1, 60, last=True)))
    amount = 3 * one + 3 * made.meter.budget.of(growth.floor(parents, 60))
    made.meter.budget = Budget(amount, unit)
    rounds = 0
    while more := filled(growth, parents, unit_of, 2, upto):
        rounds += 1
        assert rounds < 200 and {c.parent for c in more} <= {"r.0", "r.1"}
        spent = made.meter.budget.of(made.meter.total)
        longest = max(more, key=lambda c: sum(s.tokens for s in c.steps))
        floor = 0 if made.safe else made.meter.budget.of(made.ending(longest.segments, 0))
        assert spent <= upto * amount and spent + floor <= amount
    assert rounds, "something was filled in"
    grown = [e for e in events if isinstance(e, Grown)]
    begun = [e for e in events if isinstance(e, Growing)]
    assert len(grown) == len(begun) == rounds == growth.fills
    assert sum((e.usage for e in grown), Usage()) == made.meter.total
    assert {e.unit for e in (*grown, *begun)} == {until} and not any(e.forced for e in grown)
    ids = [c.id for e in grown for c in e.chains]
    assert len(ids) == len(set(ids)), "no child is drawn twice"
    assert all(e.n * len(e.parents) == len(g.chains) for e, g in zip(begun, grown, strict=True))


def test_done_ones_get_no_children_and_without_parents_or_budget_nothing_is_filled_in():
    made, events = session(10**6)
    done = Chain("r.9", parent(9, 2).steps, True)
    (more,) = filled(Growth(made), (done, parent(1, 3)), "end", 1, 0.9)
    assert more.parent == "r.1"
    events.clear()
    assert filled(Growth(made), (done,), "end", 1, 1.0) == () and not events
    free, events = session(None)
    assert filled(Growth(free), (parent(1, 3),), "end", 1, 1.0) == () and not events


def test_a_search_fills_in_four_thousand_times_at_most():
    made, _ = session(10**6)
    growth = Growth(made)
    growth.fills = 3999
    assert filled(growth, (parent(1, 3),), "end", 1, 1.0) and growth.fills == 4000
    assert not filled(growth, (parent(1, 3),), "end", 1, 1.0)


@pytest.mark.parametrize("unit", ["new tokens", "calls", "tokens"])
def test_replies_that_cost_nothing_end_it_and_others_do_not(unit):
    made, _ = session(10**6, unit, script=lambda request, seed: "")
    growth = Growth(made)
    filled(growth, (parent(1, 3),), "end", 1, 1.0)
    first = growth.fills
    filled(growth, (parent(1, 3),), "end", 1, 1.0)
    if unit == "calls":  # a call was made, whatever came back
        assert (first, growth.fills) == (1, 2)
    else:
        assert growth.fills == 4000


def test_greedy_and_upto_reach_the_model():
    made, _ = session(10**6)
    asked = made.backend.requests
    filled(Growth(made), (parent(1, 3),), "end", 1, 1.0, greedy=True)
    assert asked[-1].sampling.greedy
    filled(Growth(made), (parent(1, 3),), "end", 1, 1.0)
    assert not asked[-1].sampling.greedy


@pytest.mark.parametrize(
    ("left", "granted", "cut"),
    [(7, 0, False), (8, 8, True), (19, 19, True), (20, 20, False), (24, 24, False)],
)
def test_a_last_one_of_eight_tokens_is_worth_it_and_a_short_one_is_said_to_be_cut(
    left, granted, cut
):
    made, events = session(left, "new tokens")
    growth, made.safe, made.match = Growth(made), Chain(), 5.0  # no room is left to judge it
    growth.longest = {"r.0": 20}
    assert len(filled(growth, (parent(0, 3),), "end", 1, 1.0)) == (granted > 0)
    assert [request.max_new_tokens for request in made.backend.requests] == [granted] * (
        granted > 0
    )
    told = [(e.asked, e.granted, e.left) for e in events if isinstance(e, Cut)]
    assert told == [(20, granted, left)] * cut


def test_where_siblings_wrote_nothing_one_token_is_enough_to_the_end_and_none_before():
    made, events = session(10, "new tokens")
    made.meter.charge("generate", Usage(decoded=9))
    growth, made.safe, made.match = Growth(made), Chain(), 5.0
    growth.longest = {"r.0": 0}
    assert filled(growth, (parent(0, 3),), "end", 1, 0.9) == ()
    assert filled(growth, (parent(0, 3),), "end", 1, 0.999) == ()
    assert len(filled(growth, (parent(0, 3),), "end", 1, 1.0)) == 1
    assert made.backend.requests[-1].max_new_tokens == 1
    assert not [e for e in events if isinstance(e, Cut)]


def test_no_tag_is_forced_nor_paid_for_that_the_model_opens_itself():
    made, events = session(7 + 20, "tokens")  # the question, what is written, and twenty more
    growth, made.safe = Growth(made), Chain()
    growth.longest = {"r.0": 20}
    filled(growth, (parent(0, 3),), "end", 1, 0.999999)
    assert not made.backend.requests, "not by a token"
    filled(growth, (parent(0, 3),), "end", 1, 1.0)
    (request,) = made.backend.requests
    assert request.prefix == parent(0, 3).segments and request.max_new_tokens == 20
    assert not [e for e in events if isinstance(e, Cut)]


def test_one_that_can_pay_for_no_further_stage_ends_with_the_budget():
    made, _ = session(1, "calls", mode="prompted")
    made.safe = Chain()
    (child,) = filled(Growth(made), (Chain(),), "end", 1, 1.0)
    assert made.meter.total.calls == 1 and child.last.stage == "SUMMARY"
    assert child.last.finish == "budget" and not child.done


@pytest.mark.parametrize("held", [0, 32 + 24])
def test_one_that_may_be_short_is_cut_stage_by_stage_to_what_is_left(held):
    def wordy(request, seed):
        return " ".join(["w"] * 99)

    made, events = session(45 + held, "new tokens", script=wordy, mode="prompted")
    made.safe = None if held else Chain()
    growth = Growth(made)
    (child,) = filled(growth, (parent(0, 3),), "end", 1, 1.0)
    lengths = [request.max_new_tokens for request in made.backend.requests]
    assert lengths == [45] and made.meter.total.decoded == 45
    assert child.last.finish == "budget" and child.last.tokens == 45
    assert [(e.asked, e.granted) for e in events if isinstance(e, Cut)] == [(80, 45)]
