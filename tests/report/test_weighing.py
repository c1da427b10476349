"""The weight of likelihood beside the verdict: found again in simulated pairs, refused without."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cot_engine.core.match import Match, Verdict
from cot_engine.errors import InputError
from cot_engine.report.judging import Contest
from cot_engine.report.weighing import Margins, fit_weight, margins


def simulated(rng, scale=0.8, weight=1.5, problems=100, each=4, together=0.0):
    """Pairs whose outcomes follow the model; `together` is what a problem's pairs share."""
    shape = (problems, each)
    own, likelihood = rng.normal(size=shape) * 2, rng.normal(size=shape) * 0.7
    shared = together * rng.normal(size=(problems, 1))
    odds = scale * (own + weight * likelihood) + shared
    better = rng.random(shape) < 1 / (1 + np.exp(-odds))
    names = tuple(f"p{k // each}" for k in range(problems * each))
    return Margins(names, own.ravel(), likelihood.ravel(), better.ravel().astype(float))


@pytest.mark.parametrize("weight", [-0.5, 0.0, 1.5, 6.0])
def test_a_known_weight_is_found_within_its_interval(weight):
    fit = fit_weight(simulated(np.random.default_rng(5), weight=weight, problems=1000))
    assert fit.weight.low < weight < fit.weight.high
    assert fit.weight.high - fit.weight.low < 1.0 + 0.2 * weight
    assert fit.scale == pytest.approx(0.8, rel=0.2)
    assert (fit.pairs, fit.problems) == (4000, 1000)


@pytest.mark.parametrize("together", [0.0, 2.0])
def test_the_interval_covers_as_often_as_it_says(together):
    """Also where the pairs of a problem depend on each other. Then the margins, which do not know
    of it, are worth less: compare with what very many pairs say."""
    rng = np.random.default_rng(1)
    truth = fit_weight(simulated(rng, together=together, problems=20_000)).weight.estimate
    fits = [fit_weight(simulated(rng, together=together)).weight for _ in range(300)]
    covered = np.mean([fit.low < truth < fit.high for fit in fits])
    assert 0.91 < covered < 0.985


def test_equal_pairs_twice_say_no_more_than_once():
    """Copies within a problem narrow no interval; that is what the sandwich is for."""
    pairs = simulated(np.random.default_rng(2))
    twice = Margins(
        pairs.problems * 2,
        *(np.tile(column, 2) for column in (pairs.own, pairs.likelihood, pairs.better)),
    )
    a, b = fit_weight(pairs).weight, fit_weight(twice).weight
    assert (a.estimate, a.low, a.high) == pytest.approx((b.estimate, b.low, b.high))


def test_which_of_a_pair_stands_first_and_its_units_mean_nothing():
    rng = np.random.default_rng(3)
    pairs = simulated(rng)
    turn = np.where(rng.random(len(pairs.own)) < 0.5, -1.0, 1.0)
    better = np.where(turn > 0, pairs.better, 1 - pairs.better)
    turned = Margins(pairs.problems, pairs.own * turn, pairs.likelihood * turn, better)
    scaled = Margins(pairs.problems, pairs.own, pairs.likelihood * 1e-3, pairs.better)
    fit = fit_weight(pairs)
    assert fit_weight(turned).weight.estimate == pytest.approx(fit.weight.estimate)
    assert fit_weight(scaled).weight.low == pytest.approx(fit.weight.low * 1e3)


def test_the_fit_is_the_maximum():
    """Against a grid of (scale, weight) about it: no library has the sandwich and Fieller's, so
    the estimate is held against what defines it."""
    pairs = simulated(np.random.default_rng(4))
    fit = fit_weight(pairs)

    def loss(scale, weight):
        sign = np.where(pairs.better > 0, 1.0, -1.0)
        odds = scale * (pairs.own + weight * pairs.likelihood)
        return np.logaddexp(0, -sign * odds).sum()

    best = loss(fit.scale, fit.weight.estimate)
    for a in (0.98, 1.0, 1.02):
        for b in (-0.05, 0.0, 0.05):
            assert best <= loss(fit.scale * a, fit.weight.estimate + b) + 1e-9


def refused(pairs, *words):
    with pytest.raises(InputError) as error:
        fit_weight(pairs)
    for word in words:
        assert word in str(error.value)


def test_too_few_pairs_or_problems():
    rng = np.random.default_rng(6)
    refused(margins((), ()), "0 pairs", "at least 40 on 20", "--problems")
    refused(simulated(rng, problems=39, each=1), "39 pairs")
    refused(simulated(rng, problems=19, each=50), "19 problems")


def test_pairs_told_apart_without_a_fault():
    rng = np.random.default_rng(7)
    sure = simulated(rng, scale=100.0)
    refused(sure, "without a fault", "more problems")


def test_a_judge_that_knows_nothing_or_the_contrary():
    rng = np.random.default_rng(8)
    pairs = simulated(rng, weight=2.0)
    idle = Margins(pairs.problems, rng.normal(size=400) * 2, pairs.likelihood, pairs.better)
    refused(idle, "nothing clear", "likelihood alone")
    refused(Margins(pairs.problems, -pairs.own, pairs.likelihood, pairs.better), "nothing clear")
    nothing = np.zeros(400)
    refused(Margins(pairs.problems, nothing, pairs.likelihood, pairs.better), "self-judge", "zero")
    refused(Margins(pairs.problems, pairs.own, nothing, pairs.better), "likelihood", "zero")
    refused(Margins(pairs.problems, pairs.own, pairs.own * 2, pairs.better), "same of every pair")


# --- from what was judged ------------------------------------------------------------------------


def contest(worth, *matches):
    return Contest("p", "CAPTION", tuple(worth), "", matches, {}, {"worth": worth})


def both(first, second, margin, back=None, readable=True):
    back = -margin if back is None else back
    verdicts = tuple(Verdict("tie", m, readable) for m in (margin, back))
    return Match(first, second, verdicts, "tie", first)


def test_pairs_are_matched_by_their_names_whichever_stands_first():
    worth = {"a": 1.0, "b": 0.0, "c": 0.0}
    own = contest(worth, both("a", "b", 2.0, -1.0), both("c", "a", 0.5), both("b", "c", 9.0))
    one = Match("b", "a", (Verdict("tie", 0.25),), "tie", "a")
    two = Match("c", "a", (Verdict("tie", -0.75),), "tie", "a")
    found = margins([own], [contest(worth, one, two)])
    assert found.problems == ("p", "p")
    assert found.own.tolist() == [1.5, 0.5]  # the mean of both orders
    assert found.likelihood.tolist() == [-0.25, -0.75]
    assert found.better.tolist() == [1, 0]


def test_what_cannot_be_read_and_what_was_never_written_do_not_count():
    worth = {"a": 1.0, "b": 0.0}
    fine = contest(worth, both("a", "b", 1.0))
    assert len(margins([fine], [fine]).own) == 1
    assert len(margins([contest(worth, both("a", "b", 1.0, readable=False))], [fine]).own) == 0
    unwritten = contest(worth, both("a", "b", 98.0))  # Chain.likelihood of nothing is -99
    assert len(margins([fine], [unwritten]).own) == 0
    assert not math.isnan(margins([fine], [fine]).likelihood[0])
