"""What the reference spent, given to the others: beams by a larger n, the rest by filling up."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cot_engine import scenes, spread
from cot_engine.ablation.matching import STEPS, largest, levelled, matched, next_level, spent
from cot_engine.core.problem import Problem
from cot_engine.engine.facade import Engine
from cot_engine.errors import BudgetError
from cot_engine.images.load import load_image
from cot_engine.options.config import RunConfig
from cot_engine.testing import ScriptedBackend

HOT = RunConfig(temperature=1.0, top_p=1.0, top_k=0)


@pytest.fixture(scope="module")
def engine():
    with Engine.from_pretrained() as engine:
        yield engine


@pytest.fixture(scope="module")
def references(engine):
    config = replace(HOT, strategy="stage-beam", parameters={"n": 4})
    return list(engine.solve_many([problem(index) for index in range(3)], config=config))


def problem(index):
    scene = scenes.sample(2, index, "val")
    return Problem(scene.id, scene.question, (load_image(scene.image),))


def give(engine, index, config, allotted, unit="flops"):
    return asyncio.run(matched(engine, problem(index), config, allotted, unit))


@given(st.integers(1, 20), st.integers(0, STEPS - 1), st.integers(1, 100))
def test_fractions_are_spread_evenly(n, eighths, length):
    extra = eighths / STEPS
    grown = [spread(n, extra, k) for k in range(length)]
    assert set(grown) <= {n, n + 1}
    assert abs(sum(grown) - length * (n + extra)) <= 0.5 + 1e-9
    assert sum(grown[:STEPS]) == STEPS * n + eighths if length >= STEPS else True


def tries(cost, allotted, most=12):
    """What is tried where n, in eighths, costs `cost(n)`."""
    tried, level = {}, STEPS
    while level is not None and len(tried) < most:
        assert level not in tried and level >= STEPS
        tried[level] = cost(level)
        level = next_level(tried, allotted)
    return tried


@given(st.integers(STEPS, 40 * STEPS), st.floats(0.1, 10), st.floats(0, 100))
def test_the_largest_that_fits_is_found_where_cost_only_grows(level, slope, start):
    allotted = start + slope * level
    tried = tries(lambda n: start + slope * n, allotted)
    assert tried[largest(tried, allotted)] >= 0.98 * allotted or largest(tried, allotted) == level


def test_a_dear_search_on_the_way_is_not_the_end():
    """Where judging costs, another n writes other candidates, of which more may differ."""
    rng, used = random.Random(0), []
    for _ in range(400):
        noise = [rng.uniform(0.7, 1.3) for _ in range(2000)]
        wanted = rng.randint(2 * STEPS, 12 * STEPS)

        def cost(n, noise=noise):
            return n * noise[n]

        allotted = cost(wanted)
        tried = tries(cost, allotted)
        found = largest(tried, allotted)
        assert tried[found] <= allotted
        used.append(tried[found] / allotted)
    assert sum(used) / len(used) > 0.82


def test_which_are_given_a_larger_n():
    assert levelled(replace(HOT, strategy="stage-beam"))
    assert levelled(replace(HOT, strategy="sentence-beam"))
    assert not levelled(replace(HOT, strategy="stage-beam", parameters={"fill": True}))
    assert not levelled(replace(HOT, strategy="best-of-n"))
    assert not levelled(replace(HOT, strategy="greedy"))


# Two are given a larger n and two are filled up: each of these ways in each unit.
@pytest.mark.parametrize(
    ("strategy", "unit"),
    [
        ("stage-beam", "flops"),
        ("stage-beam", "calls"),
        ("sentence-beam", "tokens"),
        ("sentence-beam", "new tokens"),
        ("best-of-n", "flops"),
        ("best-of-n", "new tokens"),
        ("majority", "tokens"),
        ("majority", "calls"),
    ],
)
def test_nothing_is_overspent_and_little_is_left(engine, references, strategy, unit):
    config = replace(HOT, strategy=strategy)
    if not levelled(config):
        config = replace(config, parameters={"n": 2, "fill": True})
    allotted = [spent(reference, unit) for reference in references]

    async def all_of_them():  # in one batch: what a search costs does not depend on others
        return await asyncio.gather(
            *(matched(engine, problem(k), config, most, unit) for k, most in enumerate(allotted))
        )

    used = []
    for (answer, _), most in zip(asyncio.run(all_of_them()), allotted, strict=True):
        assert spent(answer, unit) <= most
        used.append(spent(answer, unit) / most)
    # Of so few problems; the preset's report has a thousand. A call is a large part of sixteen.
    assert sum(used) / len(used) > (0.8 if unit == "calls" else 0.9)


def test_a_beam_given_its_own_spending_does_as_much_again(engine):
    """The reference itself fits exactly: nothing smaller may come out, where judging is free.

    (Else a search with a smaller n may cost more than one with a larger.)"""
    config = replace(HOT, strategy="stage-beam", parameters={"n": 3}, judge="likelihood")
    reference = engine.solve(problem(1), config=config)
    answer, how = give(engine, 1, config, reference.total.flops)
    assert how.parameters["n"] + how.parameters["extra"] >= 3 - 1 / STEPS
    assert answer.total.flops > 0.95 * reference.total.flops


def test_the_search_is_the_one_that_solve_does(engine):
    config = replace(HOT, strategy="sentence-beam")
    answer, how = give(engine, 3, config, 3e9)
    again = engine.solve(problem(3), config=how)
    assert (again.text, again.total.flops) == (answer.text, answer.total.flops)
    assert how.budget is None


def test_a_beam_that_cannot_afford_one_candidate_keeps_to_the_budget(engine):
    config = replace(HOT, strategy="stage-beam")
    one = engine.solve(problem(0), config=config, n=1).total.flops
    answer, how = give(engine, 0, config, allotted := round(0.95 * one))
    assert how.budget == f"{allotted} flops"
    assert answer.total.flops <= allotted and answer.text
    with pytest.raises(BudgetError):
        give(engine, 0, config, 1e6)


def test_fractions_change_how_many_are_grown(engine):
    counts = Counter()
    for extra in (0.0, 0.5):
        answer = engine.solve(problem(0), config=HOT, n=2, extra=extra)
        grown = [e for e in answer.trace if type(e).__name__ == "Growing"]
        counts[extra] = sum(e.n for e in grown)
    assert counts[0.5] == counts[0.0] + 2


@pytest.mark.parametrize(
    "strategy", ["weighted-vote", "swires", "retrace", "particle", "diverse", "lookahead"]
)
def test_the_strategies_of_a_verifier_are_matched_too(strategy):
    """From the least n on that they can have, which is what they keep. Another n of one that goes
    back is another story, so what fits may be much less."""
    config = replace(RunConfig(), strategy=strategy, parameters={"n": 2})
    if not levelled(config):
        config = replace(config, parameters={"n": 2, "fill": True})
    problem = Problem("p", "How many are there?")
    with Engine(ScriptedBackend()) as engine:
        answer, used = asyncio.run(matched(engine, problem, config, 40, "calls"))
    least = 0.3 if strategy in ("swires", "retrace") else 0.7
    assert least * 40 < answer.total.calls <= 40
    assert used.budget is None or not levelled(config)
