"""The values: they add up, grow, and cannot be changed."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cot_engine.core import answers, chain, match, problem, requests, usage
from cot_engine.core.answers import Answer
from cot_engine.core.chain import Chain, Step
from cot_engine.core.match import Match, Verdict
from cot_engine.core.problem import Problem
from cot_engine.core.requests import GREEDY, Sampling, Segment
from cot_engine.core.usage import Usage

VALUES = [
    kind
    for home in (answers, chain, match, problem, requests, usage)
    for kind in vars(home).values()
    if isinstance(kind, type)
    and dataclasses.is_dataclass(kind)
    and kind.__module__ == home.__name__
]
USAGES = st.builds(Usage, *[st.integers(0, 10**12)] * 6, st.integers(0, 100).map(float))


def step(text: str, logprob: float, tokens: int, *faults: str) -> Step:
    return Step(text, (Segment(text, (1,) * tokens),), "A", logprob, tokens, "stop", faults)


@pytest.mark.parametrize("kind", VALUES, ids=lambda kind: kind.__name__)
def test_values_are_frozen_and_without_a_dict(kind):
    assert kind.__dataclass_params__.frozen
    assert "__slots__" in vars(kind)


def test_there_are_values():
    assert {Problem, Chain, Step, Usage, Match, Answer} <= set(VALUES)


@given(USAGES, USAGES, USAGES)
def test_usage_adds_up_field_by_field(a, b, c):
    total = a + b
    for f in dataclasses.fields(Usage):
        assert getattr(total, f.name) == getattr(a, f.name) + getattr(b, f.name)
    assert (a + b) + c == a + (b + c)
    assert a + Usage() == a
    assert sum([a, b, c], Usage()) == a + b + c
    assert a.tokens == a.prefilled + a.decoded


def test_sampling():
    assert GREEDY.greedy and not Sampling().greedy
    assert Sampling() == Sampling(0.6, 0.9, 50)


def test_a_chain_grows_by_new_chains():
    root = Chain()
    child = root.grow(2, step("one ", -1.0, 2, "stray:A"), False)
    grandchild = child.grow(0, step("two", -3.0, 2), True)
    assert (root.id, child.id, grandchild.id) == ("r", "r.2", "r.2.0")
    assert (root.parent, child.parent, grandchild.parent) == (None, "r", "r.2")
    assert grandchild.text == "one two" and child.text == "one " and root.text == ""
    assert grandchild.done and not child.done
    assert grandchild.segments == (Segment("one ", (1, 1)), Segment("two", (1, 1)))
    assert grandchild.last == grandchild.steps[-1] and root.last is None
    assert grandchild.faults == ("stray:A",)
    assert root == Chain()


def test_likelihood_is_the_mean_over_tokens_not_over_steps():
    chain = Chain().grow(0, step("a", -1.0, 1), False).grow(0, step("b", -9.0, 4), False)
    assert chain.likelihood() == -2.0
    assert chain.likelihood(1) == -2.25
    assert chain.likelihood(2) == chain.likelihood(5) == chain.likelihood()
    assert Chain().likelihood() == -99.0  # nothing written is never the likeliest


def test_a_merged_chain_keeps_its_count_but_its_children_start_anew():
    chain = Chain("r.1").counted(3)
    assert (chain.count, chain.id) == (3, "r.1")
    assert chain.grow(0, step("a", -1.0, 1), False).count == 1


def match(*verdicts: Verdict) -> Match:
    return Match("a", "b", verdicts, "tie", "a")


def test_the_margin_of_both_orders_cancels_position_bias():
    bias, better = 5.0, 2.0
    both = match(Verdict("first", better + bias), Verdict("first", bias - better))
    assert both.margin == better
    assert both.flipped
    assert match(Verdict("first", 3.0)).margin == 3.0


@pytest.mark.parametrize(
    ("first", "second", "flipped"),
    [
        (Verdict("first"), Verdict("second"), False),  # both prefer a
        (Verdict("first"), Verdict("first"), True),
        (Verdict("second"), Verdict("second"), True),
        (Verdict("tie"), Verdict("tie"), False),
        (Verdict("first"), Verdict("tie"), False),
        (Verdict("first"), Verdict("first", readable=False), False),
    ],
)
def test_a_flip_is_the_same_position_preferred_twice(first, second, flipped):
    assert match(first, second).flipped is flipped


def test_an_answer_is_its_text():
    usage = {"generate": Usage(decoded=3), "judge": Usage(prefilled=4)}
    answer = Answer("Red.", Chain(), Problem("p", "?"), usage)
    assert str(answer) == "Red."
    assert answer.total == Usage(prefilled=4, decoded=3)
    assert Answer("Red.", Chain(), Problem("p", "?")).total == Usage()
