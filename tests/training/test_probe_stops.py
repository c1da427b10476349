"""What stopping is worth, and the rows of a profile: the simulation does what the strategy does."""

from __future__ import annotations

import numpy as np
import pytest

from cot_engine import plugins, settled
from cot_engine.training.probe_cost import costs_of
from cot_engine.training.probe_samples import Samples
from cot_engine.training.probe_stops import (
    SLACK,
    earned,
    ends,
    paying,
    policies,
    stopping,
    votes_of,
)


def made(problems=300, n=8, seed=0, sure=2.0):
    """Responses of problems that are easy or hard, the right answer being number 0, with chances
    that tell right from wrong the better the more `sure`."""
    rng = np.random.default_rng(seed)
    easy = np.repeat(rng.random(problems) < 0.6, n)
    right = rng.random(problems * n) < np.where(easy, 0.95, 0.4)
    answer = np.where(right, 0, 1 + rng.integers(0, 3, problems * n))
    chance = 1 / (1 + np.exp(-(sure * (right - 0.5) + rng.normal(size=problems * n))))
    problem = np.repeat(np.arange(problems), n)
    samples = Samples({"problem": problem, "answer": answer, "label": right.astype(float)}, ())
    return samples, np.split(np.arange(problems * n), problems), chance


def test_a_vote_ends_where_settled_says_so_and_earns_what_its_leader_does():
    samples, groups, chance = made(problems=80)
    votes, taken = votes_of(samples, groups, chance), []
    for policy in (*policies((1, 2, 3, 8)), *policies((1, 2, 3, 8), greedy=True)):
        count = ends(votes, policy)
        for own, got, score in zip(groups, count, earned(votes, count)[:, 0], strict=True):
            texts, k = [str(samples.answer[row]) for row in own], 0
            while True:  # as WeightedVote.search goes
                left = policy.n - k
                step = left if policy.stop is None else min(policy.round, left)
                k += 1 if policy.greedy and not k else step
                stop = policy.stop
                weights = list(chance[own[:k]])
                if k >= policy.n or (
                    stop is not None
                    and settled(texts[:k], stop, weights, policy.doubt, policy.n - k)
                ):
                    break
            assert k == got, policy
            weight = {}
            for row in own[:k]:
                weight[samples.answer[row]] = weight.get(samples.answer[row], 0) + chance[row]
            assert score == (max(weight, key=weight.get) == 0)
            taken.append(k)
    assert len(set(taken)) > 4, "the control: votes end at different lengths"


def test_the_curve_costs_less_where_it_stops_earlier_and_ends_at_the_whole_vote():
    samples, groups, chance = made()
    rows = stopping(votes_of(samples, groups, chance))
    responses = [row.responses for row in rows]
    assert responses == sorted(responses) and responses[0] < 4 and responses[-1] == 8
    last = rows[-1].difference.difference
    assert (last.low, last.estimate, last.high) == pytest.approx((0, 0, 0), abs=1e-9) or (
        last.estimate == 0 and last.low <= 0 <= last.high
    )
    assert rows[0].accuracy.low < rows[0].accuracy.estimate < rows[0].accuracy.high
    assert stopping(votes_of(samples, [], chance)) == ()


def test_rows_fit_their_budgets_and_give_little_away():
    samples, groups, chance = made()
    votes = votes_of(samples, groups, chance)
    for further in (1.0, 0.5):
        found = paying(votes, further)
        uptos = [each.row.upto for each in found]
        assert uptos == sorted(set(uptos)) and len(found) > 3
        for each in found:
            n = each.row.parameters["n"]
            assert 1 + (n - 1) * further <= each.row.upto, "a budget is for each question"
            assert each.samples <= each.row.upto
            whole = earned(votes, np.full(len(groups), n)).mean()
            assert each.accuracy.estimate >= whole - SLACK - 1e-9
        assert found[-1].accuracy.estimate > found[0].accuracy.estimate + 0.05
        assert found[-1].samples < 0.7 * (1 + 7 * further), "it stops when it knows"
        assert "stop" in found[-1].row.parameters
    assert found[0].row.parameters["n"] == 2, "two fit into one and a half at half the price"


def test_where_nothing_is_gained_by_more_the_cheapest_serves_every_budget():
    """The control: answers that are all the same are worth one response."""
    samples, groups, chance = made(problems=50)
    samples.arrays["answer"][:], samples.arrays["label"][:] = 0, 1.0
    (row,) = paying(votes_of(samples, groups, chance), 1.0)
    assert row.row.parameters == {"n": 1} and row.samples == 1 and row.row.upto == 8


def beginning(samples, groups, chance, right):
    """Votes that begin with one more response, of which that share is right, and as sure all."""
    count, arrays = len(groups), samples.arrays
    good = np.random.default_rng(1).random(count) < right
    whole = Samples(
        {
            "problem": np.concatenate([arrays["problem"], np.arange(count)]),
            "answer": np.concatenate([arrays["answer"], np.where(good, 0, 9)]),
            "label": np.concatenate([arrays["label"], good]),
        },
        (),
    )
    groups = [np.array([len(samples) + k, *own]) for k, own in enumerate(groups)]
    return votes_of(whole, groups, np.append(chance, np.full(count, 0.6)))


def test_a_vote_begins_with_the_likeliest_response_where_that_was_better():
    samples, groups, chance = made()
    votes = votes_of(samples, groups, chance)
    found = paying(votes, 1.0, beginning(samples, groups, chance, 0.85), 0.9)
    assert (found[0].row.strategy, found[0].row.parameters) == ("greedy", {})
    assert found[0].samples == 0.9 and found[0].responses == 1
    later = found[-1].row
    assert later.strategy == "weighted-vote" and later.parameters["greedy"] is True
    assert found[-1].accuracy.estimate > paying(votes, 1.0)[-1].accuracy.estimate
    for found in (paying(votes, 1.0, beginning(samples, groups, chance, 0.1)), paying(votes, 1.0)):
        assert not any(each.row.strategy == "greedy" for each in found)
        assert not any("greedy" in each.row.parameters for each in found)


def test_every_row_can_be_made():
    for policy in (*policies((1, 4)), *policies((1, 4), greedy=True)):
        strategy, parameters = policy.row
        assert plugins.make("strategy", strategy, parameters)


def test_costs_are_of_one_response_alone_and_of_one_more():
    units = {"flops": 100.0, "tokens": 80.0, "new tokens": 20.0, "calls": 1.0}
    two = {"flops": 130.0, "tokens": 100.0, "new tokens": 40.0, "calls": 2.0}
    likeliest = units | {"flops": 90.0}
    costs = costs_of([{"greedy": likeliest, "1": units, "2": two}, {"error": "x"}])
    assert costs.sample == units and costs.further == pytest.approx(0.3)
    assert costs.greedy == pytest.approx(0.9)
    free = {key: row | {"flops": 0.0} for key, row in (("greedy", units), ("1", units), ("2", two))}
    assert "flops" not in costs_of([free]).sample
    assert costs_of([free]).further == pytest.approx(0.25)
    assert costs_of([{"error": "x"}]) is None
