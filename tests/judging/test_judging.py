"""What matches say of a judge, on matches made by hand and at random; and on recorded searches."""

from __future__ import annotations

import asyncio
import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cot_engine import Engine, RunConfig
from cot_engine.ablation.records import SelectionRecord
from cot_engine.ablation.worth import selections
from cot_engine.core.match import Match, Verdict
from cot_engine.core.problem import Problem
from cot_engine.core.usage import Usage
from cot_engine.report.judging import (
    Contest,
    calibration,
    card,
    cards,
    cards_of,
    contests,
    leanings,
)
from cot_engine.search.select import combine
from cot_engine.testing import ScriptedBackend


def verdict(margin: float, readable: bool = True) -> Verdict:
    outcome = "tie" if not readable or margin == 0 else "first" if margin > 0 else "second"
    return Verdict(outcome, margin, readable)


def match(first: str, second: str, *margins: float, readable: bool = True) -> Match:
    """`margins` as each order's first sees it: (first, second), then (second, first)."""
    verdicts = tuple(verdict(m, readable) for m in margins)
    outcome = combine(verdicts)
    return Match(first, second, verdicts, outcome, second if outcome == "second" else first)


def contest(matches, worth, problem="p", lengths=None, **more) -> Contest:
    names = tuple(worth)
    known = {"worth": worth, "facts": {}}
    given = {"chosen": names[0]} | more
    return Contest(problem, "S", names, matches=tuple(matches), lengths=lengths or {},
                   outcomes=known, **given)  # fmt: skip


def carded(*held):
    return card("j", "S", "worth", "seen", held)


GOOD_BAD = {"a": 1.0, "b": 0.0}


def test_right_wrong_tie_and_unreadable():
    def of(*margins, **more):
        got = carded(contest([match("a", "b", *margins, **more)], GOOD_BAD))
        return got.right.estimate, got.strict.estimate, got.leaning.estimate

    assert of(2.0, -1.0) == (1, 1, 1)
    assert of(-2.0, 1.0) == (0, 0, 0)
    assert of(2.0, 1.0) == (0.5, 0, 1), "a flip is a tie; the mean margin still leans"
    assert of(1.0, 2.0) == (0.5, 0, 0)
    assert of(0.0, 0.0) == (0.5, 0, 0.5)
    assert of(2.0, -1.0, readable=False) == (0.5, 0, 1)
    assert of(3.0) == (1, 1, 1), "one order"


def test_flips_position_ties_and_unreadable_are_counted_over_all_matches():
    got = carded(
        contest(
            [
                match("a", "b", 2.0, 1.0),  # a flip, the first both times
                match("a", "c", 1.0, -1.0),  # of equal worth, and so no pair
                match("b", "c", -1.0, 1.0, readable=False),
                match("c", "d", 0.0, 0.0),
            ],
            {"a": 1.0, "b": 0.0, "c": 1.0, "d": 0.5},
        )
    )
    assert (got.matches, got.pairs, got.problems) == (4, 3, 1)
    assert got.flips == 0.25 and got.ties == 0.75 and got.unreadable == 0.25
    # a-b: 2 of 2 name the first; a-c and b-c: 1 of 2 each; c-d names nobody.
    assert got.first.estimate == pytest.approx(4 / 6 - 0.5)


def test_a_judge_that_names_the_first_knows_nothing():
    pairs = itertools.combinations("abcd", 2)
    worth = {"a": 1.0, "b": 0.0, "c": 1.0, "d": 0.0}
    got = carded(contest([match(x, y, 1.0, 1.0) for x, y in pairs], worth))
    assert (got.flips, got.ties, got.first.estimate) == (1, 1, 0.5)
    assert (got.right.estimate, got.strict.estimate, got.leaning.estimate) == (0.5, 0, 0.5)
    assert got.cycles is None and got.calibration == () and got.calibration_error is None


def test_a_judge_of_one_order_has_no_flips():
    got = carded(contest([match("a", "b", 1.0)], GOOD_BAD))
    assert got.flips is None


def test_cycles_are_of_triples_that_were_all_decided():
    def circle(a, b, c):
        return [match(a, b, 1, -1), match(b, c, 1, -1), match(c, a, 1, -1)]

    worth = dict.fromkeys("abcdef", 0.0)
    got = carded(contest(circle(*"abc"), worth))
    assert (got.triples, got.cycles) == (1, 1)
    line = [match("d", "e", 1, -1), match("e", "f", 1, -1), match("d", "f", 1, -1)]
    got = carded(contest(circle(*"abc") + line, worth))
    assert (got.triples, got.cycles) == (2, 0.5)
    undecided = [match("d", "e", 1, 1), *line[1:]]
    assert carded(contest(circle(*"abc") + undecided, worth)).triples == 1
    assert carded(contest(line[:2], worth)).triples == 0
    apart = contest(line[:2], worth), contest(line[2:], worth)
    assert carded(*apart).triples == 0, "of one selection"


@given(st.permutations("abcdef"), st.lists(st.booleans(), min_size=15, max_size=15))
def test_triples_are_counted_as_by_hand(order, wins):
    pairs = list(itertools.combinations("abcdef", 2))
    beats = {p if w else p[::-1] for p, w in zip(pairs, wins, strict=True)}
    played = [
        match(x, y, *((1, -1) if (x, y) in beats else (-1, 1)))
        for x, y in (sorted(p, key=order.index) for p in pairs)
    ]
    got = carded(contest(played, dict.fromkeys("abcdef", 0.0)))
    circles = sum(
        {(a, b), (b, c), (c, a)} <= beats or {(b, a), (c, b), (a, c)} <= beats
        for a, b, c in itertools.combinations("abcdef", 3)
    )
    assert got.triples == 20 and got.cycles == circles / 20


def test_length():
    worth = {"a": 1.0, "b": 0.0, "c": 0.0}
    played = [
        match("a", "b", 1, -1),  # longer preferred, and right
        match("a", "c", -1, 1),  # longer preferred, and wrong
        match("b", "c", -1, 1),  # of equal worth
    ]
    got = carded(contest(played, worth, lengths={"a": 5, "b": 4, "c": 9}))
    assert (got.longer, got.longer_right) == (1.0, 0.5)
    same = carded(contest(played, worth, lengths={"a": 5, "b": 5, "c": 5}))
    assert (same.longer, same.longer_right) == (None, None)
    tied = carded(contest([match("a", "b", 1, 1)], worth, lengths={"a": 5, "b": 4}))
    assert tied.longer is None, "nothing was preferred"


def test_calibration_bins():
    pairs = [(1.0, True), (-1.0, True), (3.0, True), (-3.0, False), (0.0, True)]
    bins, error = calibration(pairs, bins=2)
    assert [(b.margin, b.right, b.pairs) for b in bins] == [(1.0, 0.5, 2), (3.0, 1.0, 2)]
    sure = [1 / (1 + math.exp(-m)) for m in (1, 3)]
    assert error == pytest.approx((abs(sure[0] - 0.5) + abs(sure[1] - 1.0)) / 2)
    assert calibration([]) == ((), None)
    # Of a margin of log 3 three in four should be right, and are.
    _, none = calibration([(math.log(3), k != 0) for k in range(4)])
    assert none == pytest.approx(0)


@given(st.lists(st.tuples(st.sampled_from([-2.0, -1.0, 0.0, 0.5, 3.0]), st.booleans())))
def test_bins_hold_every_margin_once_and_keep_equal_ones_together(pairs):
    bins, error = calibration(pairs)
    sizes = [abs(m) for m, _ in pairs if m]
    assert sum(b.pairs for b in bins) == len(sizes) and len(bins) <= min(5, len(set(sizes)) or 5)
    assert sum(b.margin * b.pairs for b in bins) == pytest.approx(sum(sizes))
    assert [b.margin for b in bins] == sorted({b.margin for b in bins})
    assert (error is None) == (not sizes) and (error is None or 0 <= error <= 1)


def test_calibration_bins_are_of_like_size():
    bins, _ = calibration([(float(k), True) for k in range(1, 101)])
    assert [b.pairs for b in bins] == [20] * 5


def test_gain():
    worth = {"a": 0.0, "b": 1.0, "c": 0.5, "d": 0.5}
    got = carded(contest([], worth, chosen="c"), contest([], worth, problem="q", chosen="b")).gain
    assert got.n == 4 and got.selections == 2
    assert got.random.estimate == 0.5 and got.oracle.estimate == 1
    assert got.selected.estimate == 0.75 and got.taken == pytest.approx(0.5)


def test_gain_is_of_selections_that_are_known_and_were_judged():
    whole = contest([], GOOD_BAD)
    unknown = replace(contest([], GOOD_BAD), candidates=("a", "b", "c"))
    unchosen = contest([], GOOD_BAD, chosen="")
    single = contest([], {"a": 1.0})
    assert carded(whole, unknown, unchosen, single).gain.selections == 1
    assert carded(unknown, unchosen, single).gain is None
    assert carded(contest([], {"a": 1.0, "b": 1.0})).gain.taken is None, "nothing to take"


def test_each_problem_counts_once():
    easy = [contest([match("a", "b", 1, -1)], GOOD_BAD, problem="p") for _ in range(9)]
    hard = [contest([match("a", "b", -1, 1)], GOOD_BAD, problem="q")]
    got = carded(*easy, *hard)
    assert (got.right.estimate, got.pairs, got.problems) == (0.5, 10, 2)
    assert got.right.low < 0.5 < got.right.high
    assert leanings(easy + hard, "worth") == {"p": 1.0, "q": 0.0}


def test_cost():
    held = contest(
        [match("a", "b", 1, -1)] * 2, GOOD_BAD,
        judging=Usage(prefilled=30, flops=300, calls=4), growing=Usage(flops=400), grown=4,
    )  # fmt: skip
    got = carded(held)
    assert (got.cost.prefilled, got.cost.flops, got.cost.calls) == (15, 150, 2)
    assert got.relative == 1.5
    assert carded(contest([], GOOD_BAD)).relative is None


def test_matches_that_were_not_asked_say_nothing_of_the_judge():
    silent = Verdict("tie", 0.0, False, "not judged: out of budget")
    unasked = Match("a", "b", (silent, silent), "tie", "a", "likelihood")
    got = carded(contest([unasked, match("a", "b", 1, -1)], GOOD_BAD))
    assert (got.matches, got.unjudged, got.pairs, got.ties) == (1, 1, 1, 0)
    assert got.right.estimate == 1


def test_without_pairs_there_is_no_share():
    got = carded(contest([match("a", "b", 1, -1)], {"a": 1.0, "b": 1.0}))
    assert got.pairs == 0 and math.isnan(got.right.estimate)
    assert (got.right.low, got.right.high) == (0, 1)
    assert cards_of("j", "S", "seen", [contest([], GOOD_BAD)]) == []


_PLAYED = st.lists(
    st.tuples(
        st.sampled_from("pqr"),
        st.sampled_from(list(itertools.combinations("abcd", 2))),
        st.sampled_from([-2.0, -0.5, 0.0, 0.5, 2.0]),
        st.sampled_from([-2.0, -0.5, 0.0, 0.5, 2.0]),
        st.booleans(),
    ),
    max_size=12,
)


def _held(played, swap=False, better=lambda worth: worth):
    worth = {name: better(value) for name, value in zip("abcd", (0, 0.25, 1, 0.25), strict=True)}
    lengths = {"a": 1, "b": 2, "c": 2, "d": 5}
    found = []
    for problem, (x, y), one, two, readable in played:
        if swap:
            m = match(y, x, two, one, readable=readable)
        else:
            m = match(x, y, one, two, readable=readable)
        found.append(contest([m], worth, problem=problem, lengths=lengths))
    return found


def _same(a, b):
    return a == b or (math.isnan(a) and math.isnan(b))


@given(_PLAYED)
def test_which_stands_first_changes_nothing(played):
    a, b = carded(*_held(played)), carded(*_held(played, swap=True))
    for name in ("matches", "pairs", "ties", "flips", "unreadable", "longer", "longer_right"):
        assert getattr(a, name) == getattr(b, name)
    for name in ("right", "strict", "leaning", "first"):
        x, y = getattr(a, name), getattr(b, name)
        assert all(_same(getattr(x, f), getattr(y, f)) for f in ("estimate", "low", "high"))
    assert a.calibration == b.calibration and a.calibration_error == b.calibration_error


@given(_PLAYED)
def test_turning_the_truth_round_turns_right_into_wrong(played):
    a, b = carded(*_held(played)), carded(*_held(played, better=lambda worth: 1 - worth))
    assert a.pairs == b.pairs
    if a.pairs:
        assert a.right.estimate == pytest.approx(1 - b.right.estimate)
        assert a.leaning.estimate == pytest.approx(1 - b.leaning.estimate)
        decided = a.strict.estimate + b.strict.estimate
        assert decided <= 1 + 1e-9
        assert a.right.estimate == pytest.approx((1 + a.strict.estimate - b.strict.estimate) / 2)


# --- recorded searches ---------------------------------------------------------------------------


class _Item:
    id, answer = "p", "0"

    def problem(self):
        return Problem("p", "How many?")

    def grade(self, answer):
        return float(answer == "0")

    def facts(self, stage, text):
        return float("2" in text) if stage == "SUMMARY" else None


def searched(seed=0, **options):
    engine = Engine(ScriptedBackend())
    config = RunConfig(mode="trained", judge="self", seed=seed, **options)

    async def both():
        answer = await engine.asolve(_Item().problem(), config=config)
        known = await selections(answer.trace, _Item(), engine=engine, config=config, rollouts=2)
        return answer.trace, known

    return asyncio.run(both())


def test_cards_are_grouped_by_stage_judge_image_and_measure():
    six = {"n": 6}
    runs = [searched(seed, parameters=six) for seed in range(4)]
    runs += [searched(9, parameters=six, judge_image="blank")]
    runs += [searched(7, strategy="best-of-n", parameters=six)]
    found = cards(runs)
    keys = [(c.stage, c.image, c.measure) for c in found]
    assert len(set(keys)) == len(keys)
    assert ("SUMMARY", "seen", "worth") in keys and ("SUMMARY", "seen", "facts") in keys
    assert ("whole", "seen", "worth") in keys and ("SUMMARY", "blank", "worth") in keys
    stages = [stage for stage, _, _ in keys]
    assert stages == sorted(stages, key=["SUMMARY", "REASONING", "CONCLUSION", "whole"].index)
    assert {c.judge for c in found} == {"self"}
    [one] = [c for c in found if (c.stage, c.image, c.measure) == ("SUMMARY", "seen", "facts")]
    assert one.cost.calls == 2 and one.relative > 0
    assert one.gain.n == 6 and one.gain.selections == 4


def test_a_match_held_before_is_counted_once():
    trace, known = searched(parameters={"n": 6, "keep": 2}, tournament="round-robin")
    for held in contests(trace, known):
        met = [frozenset((m.first, m.second)) for m in held.matches]
        assert len(met) == len(set(met))
        assert {name for pair in met for name in pair} <= set(held.lengths)
    total = sum((held.judging for held in contests(trace, known)), Usage())
    assert replace(total, seconds=0) == replace(trace.finished.usage["judge"], seconds=0)


def test_where_all_are_kept_nobody_chose():
    trace, known = searched(parameters={"n": 3, "keep": 3})
    assert next(held.chosen for held in contests(trace, known)) == ""


def test_the_stored_selections_belong_to_the_trace():
    trace, known = searched(parameters={"n": 4})
    empty = tuple(SelectionRecord(s.stage, s.candidates, s.kept) for s in known)
    assert cards([(trace, empty)]) == (), "nothing known, nothing to say"
