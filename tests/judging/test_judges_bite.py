"""Judges against their contract written out: what is asked in which order, and how replies read."""

from __future__ import annotations

import asyncio
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cot_engine.core.chain import Chain, Step
from cot_engine.core.problem import Problem
from cot_engine.core.requests import GREEDY, Segment
from cot_engine.core.stages import DEFAULT_PLAN
from cot_engine.errors import ConfigError
from cot_engine.judging import prompts
from cot_engine.judging.judges import (
    JUDGES,
    LikelihoodScorer,
    OracleJudge,
    RandomJudge,
    RationaleJudge,
    ScorerJudge,
    SelfJudge,
    SelfLikelihoodJudge,
)
from cot_engine.judging.protocol import Case, Judge, Scorer
from cot_engine.testing import check_judge

PLAN = DEFAULT_PLAN.fit(0)


def step(text: str, logprob: float = -1.0, tokens: int = 1, stage: str = "SUMMARY") -> Step:
    return Step(text, (Segment(text, (1,)),), stage, logprob, tokens, "stop")


def chains(*texts: str, likelihood=lambda k: -1.0 - k, parent: Chain | None = None):
    parent = parent or Chain()
    return [parent.grow(k, step(t, likelihood(k)), False) for k, t in enumerate(texts)]


def case(about: str = "step", problem: str = "p") -> Case:
    return Case(Problem(problem, "Which?"), PLAN, about, None, ())


class Said:
    """An Ask that keeps what it is asked and answers each tail by a function of its text."""

    def __init__(self, of):
        self.of, self.asked = of, []

    async def choose(self, prompt, tails, choices, prefix=""):
        self.asked.append((prompt, tuple(tails), tuple(choices)))
        return [self.of(prompt, tail) for tail in tails]

    async def write(self, prompt, tails, until, length, sampling):
        self.asked.append((prompt, tuple(tails), until, length, sampling))
        return [self.of(prompt, tail) for tail in tails]


def compare(judge, pairs, ask=None, **more):
    return asyncio.run(judge.compare(pairs, case(**more), ask))


def shared_and_apart():
    """Pairs whose shared part differs, so that they go in several requests, mixed."""
    ends = ("<REASONING>x</REASONING>", "<REASONING>yy</REASONING>", "<REASONING>zzz</REASONING>")
    one, two = chains("<SUMMARY>a</SUMMARY>", "<SUMMARY>bb</SUMMARY>")
    a, b = chains(*ends, parent=one), chains(*ends, parent=two)
    return [(a[0], a[1]), (b[0], b[1]), (a[1], a[2]), (b[2], b[0]), (a[2], a[0]), (b[1], b[0])]


def number(prompt, tail) -> float:
    return random.Random(prompt.text + tail).uniform(-2, 2)


@pytest.mark.parametrize("form", prompts.FORMS)
def test_each_pair_gets_the_verdict_on_itself_however_they_are_asked_together(form):
    pairs, judge = shared_and_apart(), SelfJudge(prompt=form)
    ask = Said(lambda prompt, tail: (math.log(0.5) + number(prompt, tail), math.log(0.5)))
    given_ = compare(judge, pairs, ask)
    turns = [prompts.judge_turn(case(), pair, form) for pair in pairs]
    assert [v.margin for v in given_] == pytest.approx([number(*turn) for turn in turns])
    heads = [prompt for prompt, *_ in ask.asked]
    assert len(heads) == len(set(heads)) == 2, "one request for all that share a prompt"
    assert all(choices == ("1", "2") for *_, choices in ask.asked)


def test_so_does_the_judge_that_writes_and_it_writes_greedily():
    pairs, judge = shared_and_apart(), RationaleJudge(length=77)
    ask = Said(lambda p, t: f"I think so. Choice: {1 + (number(p, t) > 0)}")
    given_ = compare(judge, pairs, ask)
    turns = [prompts.judge_turn(case(), p, reply=prompts.REPLY_RATIONALE) for p in pairs]
    assert [v.margin for v in given_] == [-1.0 if number(*t) > 0 else 1.0 for t in turns]
    assert [v.text for v in given_] == [ask.of(*t) for t in turns]
    assert all(asked[3:] == (77, GREEDY) and not asked[2].strings for asked in ask.asked)
    assert RationaleJudge().length == 200


@given(st.floats(-20, 0), st.floats(-20, 0), st.sampled_from([0.0, 1e-3, 0.2, 1.0]))
def test_a_verdict_is_the_difference_where_enough_is_said_for_either(one, two, least):
    got = SelfJudge(least_mass=least).read(one, two)
    mass = math.exp(one) + math.exp(two)
    assert got.margin == one - two and got.readable == (mass >= least)
    sign = (one > two) - (one < two) if got.readable else 0
    assert got.outcome == {1: "first", -1: "second", 0: "tie"}[sign]
    assert got.text == f"mass {mass:.2g}"


def test_the_least_mass_itself_is_enough():
    assert SelfJudge().least_mass == 1e-3
    assert SelfJudge(least_mass=2.0).read(0.0, 0.0).readable
    assert not SelfJudge(least_mass=2.01).read(0.0, 0.0).readable


@pytest.mark.parametrize(
    ("reply", "chosen"),
    [
        *[("Choice: 1", 1), ("choice 2", 2), ("CHOICE: **2**", 2), ("My choice - 1.", 1)],
        *[("Choice: Attempt 2", 2), ("choice: number 1", 1), ("Choice: attempt\n2", 2)],
        *[("1", 1), (" 2. ", 2), ("Attempt 1!", 1), ("attempt2", 2)],
        *[("Choice: 1. I repeat, choice: 1", 1), ("2 is bad. Choice: 1", 1)],
        *[("Choice: 1. No, choice: 2", None), ("both", None), ("", None), ("3", None)],
        *[("Choice: 3", None), ("Choice: 12", None), ("1 or 2", None), ("Choice ----- 1", None)],
        *[("Choice: 10", None), ("the first", None), ("11", None), ("1 2", None)],
    ],
)
def test_how_a_written_choice_is_read(reply, chosen):
    got = RationaleJudge.parse(reply)
    assert got.text == reply and got.readable == (chosen is not None)
    assert got.outcome == {1: "first", 2: "second", None: "tie"}[chosen]
    assert got.margin == {1: 1.0, 2: -1.0, None: 0.0}[chosen]


# --- judges that know by themselves --------------------------------------------------------------


@given(
    st.lists(st.tuples(st.floats(-9, 0), st.integers(0, 5)), min_size=2, max_size=6),
    st.sampled_from(["step", "whole"]),
)
def test_likelihood_is_per_token_of_the_last_step_or_of_the_whole(parts, about):
    """Recomputed: sum of log-probabilities over sum of tokens, -99 where nothing was sampled."""
    first = Chain().grow(0, step("<SUMMARY>s</SUMMARY>", -8.0, 4), False)
    grown = [first.grow(k, step(f"{k}", lp, n), False) for k, (lp, n) in enumerate(parts)]

    if about == "whole":
        expected = [(lp - 8.0) / (n + 4) for lp, n in parts]
    else:
        expected = [lp / n if n else -99.0 for lp, n in parts]
    assert asyncio.run(LikelihoodScorer().score(grown, case(about), None)) == expected
    pairs = [(a, b) for a in grown for b in grown if a is not b]
    by_id = dict(zip((c.id for c in grown), expected, strict=True))
    for (a, b), verdict in zip(pairs, compare(ScorerJudge(), pairs, about=about), strict=True):
        assert verdict.margin == by_id[a.id] - by_id[b.id] and verdict.readable


def test_a_scorer_is_asked_once_for_each_candidate():
    class Scorer:
        async def score(self, chains, case, ask):
            self.asked = [chain.id for chain in chains]
            return [float(len(chain.text)) for chain in chains]

    grown, scorer = chains("a", "bb", "ccc"), Scorer()
    pairs = [(a, b) for a in grown for b in grown if a is not b]
    verdicts = compare(ScorerJudge(scorer), pairs)
    assert scorer.asked == ["r.0", "r.1", "r.2"]
    assert [v.margin for v in verdicts] == [len(a.text) - len(b.text) for a, b in pairs]


def test_the_coin_belongs_to_seed_problem_and_pair_and_to_no_place():
    grown = chains(*"abcdefgh")
    pairs = [(a, b) for a in grown for b in grown if a.id < b.id]

    def coins(seed=0, problem="p", turned=False):
        asked = [pair[::-1] for pair in pairs] if turned else pairs
        return [v.margin for v in compare(RandomJudge(seed), asked, problem=problem)]

    assert coins() == coins() == [-m for m in coins(turned=True)]
    assert set(coins()) == {1.0, -1.0} and 5 < coins().count(1.0) < 23
    for other in (coins(seed=1), coins(problem="q")):
        assert 5 < sum(a != b for a, b in zip(coins(), other, strict=True)) < 23
    # Pinned: a trace made today can be made again tomorrow.
    assert "".join("+-"[m < 0] for m in coins()) == "++++--+++-+-++-+----+--++++-"


def test_an_oracle_knows_the_answer_and_nothing_before_the_last_stage():
    head = "<SUMMARY>s</SUMMARY><REASONING>r</REASONING><CONCLUSION>"
    right, wrong = chains(f"{head}The answer is Red.</CONCLUSION>", f"{head}blue</CONCLUSION>")
    early, other = chains("<SUMMARY>red</SUMMARY>", "<SUMMARY>blue</SUMMARY>")
    pairs = [(right, wrong), (wrong, right), (early, other), (early, wrong), (early, right)]
    verdicts = compare(OracleJudge("red"), pairs)
    assert [v.outcome for v in verdicts] == ["first", "second", "tie", "tie", "second"]
    assert [v.margin for v in verdicts] == [1.0, -1.0, 0.0, 0.0, -1.0]
    seen = []

    def quality(problem, chain, plan):
        seen.append((problem.id, chain.id, plan))
        return len(chain.text)

    (verdict,) = compare(OracleJudge(quality=quality), [(right, wrong)])
    assert verdict.margin == len(right.text) - len(wrong.text)
    assert seen == [("p", "r.0", PLAN), ("p", "r.1", PLAN)]


@given(st.lists(st.floats(-3, 3), min_size=2, max_size=2), st.floats(-4, 4))
def test_verdict_and_likelihood_together(margins, weight):
    a, b = chains("a", "b", likelihood=lambda k: (-0.5, -2.0)[k])
    left = list(margins)
    ask = Said(lambda p, t: (math.log(0.3) + left.pop(0), math.log(0.3)))
    verdicts = compare(SelfLikelihoodJudge(weight=weight), [(a, b), (b, a)], ask)
    expected = [margins[0] + weight * 1.5, margins[1] - weight * 1.5]
    assert [v.margin for v in verdicts] == pytest.approx(expected, abs=1e-9)
    assert all(v.text.startswith("mass ") for v in verdicts)


@pytest.mark.parametrize("weight", [math.nan, math.inf, -math.inf])
def test_a_weight_is_a_finite_number(weight):
    with pytest.raises(ConfigError, match=rf"weight is {weight}\."):
        SelfLikelihoodJudge(weight=weight)
    with pytest.raises(ConfigError, match="full or brief"):
        SelfLikelihoodJudge(weight=1.0, prompt="x")


def test_which_judges_are_asked_in_one_order():
    symmetric = {name: kind.symmetric for name, kind in JUDGES.items()}
    assert symmetric == {
        "self": False,
        "rationale": False,
        "likelihood": True,
        "self+likelihood": False,
        "random": True,
    }
    assert OracleJudge.symmetric and RandomJudge() == RandomJudge(0)
    assert all(isinstance(judge, Judge) for judge in (SelfJudge(), RandomJudge()))
    assert isinstance(LikelihoodScorer(), Scorer) and not isinstance(SelfJudge(), Scorer)
    for judge in (ScorerJudge(), RandomJudge(3), OracleJudge("x"), RationaleJudge()):
        check_judge(judge)
