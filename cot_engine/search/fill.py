"""Filling a budget: optional growth, as much as still fits, for strategies that go on until it is
used up (`Expand.upto`). They see no meter; they ask until nothing comes back."""

from __future__ import annotations

from dataclasses import replace

from cot_engine.core.chain import Beam
from cot_engine.core.events import Cut
from cot_engine.search.expand import LEAST, Growth, Portion, largest
from cot_engine.search.strategy import Expand

_MOST_FILLS = 4000  # of one search: a budget may be large, and a model's texts few


async def fill(growth: Growth, request: Expand) -> Beam:
    """At most `n` new children for each chain of the beam that needs growing, as many as keep what
    the search spends within the fraction `upto` of its budget. Empty if none fit."""
    budget, parents = growth.session.meter.budget, growth.growable(request.beam, request.until)
    if budget is None or not parents or growth.fills >= _MOST_FILLS:
        return ()
    asked = growth.length(parents, request.until)
    whole = Portion(*(parents, request.until, request.n, asked, request.greedy), upto=request.upto)
    if (portion := fitting(growth, whole)) is None:
        return ()
    growth.fills += 1
    grown, usage = await growth.sample(portion)
    if budget.unit != "seconds" and not budget.of(usage):
        growth.fills = _MOST_FILLS  # replies that cost nothing would never end
    return tuple(chain for children in grown for chain in children)


def fitting(growth: Growth, whole: Portion) -> Portion | None:
    """As many as fit at the length of their longest sibling so far, with room to judge them.

    At an `upto` of 1, where nothing comes after that could use what is left, it buys a last one,
    shorter if it must be and even if it cannot be judged. Below, what is left is carried on.
    """
    session, budget = growth.session, growth.session.meter.budget
    assert budget is not None and whole.upto is not None
    parents, asked, upto = whole.parents, whole.length, whole.upto
    usual = max(growth.longest.get(chain.id, asked) for chain in parents) or 1

    def fits(portion: Portion) -> bool:
        each = session.match + session.scored  # of one more candidate
        judging = 0.0 if portion.last else each * portion.count * len(portion.parents)
        floor = growth.floor(portion.parents, portion.length)
        if portion.until != "end":  # what must be grown next holds back a floor too, and must fit
            floor += floor
        return budget.of(growth.cost(portion)) + judging <= session.meter.room(floor, upto)

    def longest(portion: Portion, shortest: int) -> Portion:
        length = largest(asked, lambda most: fits(replace(portion, length=most)))
        # What is left of seconds shrinks meanwhile: what was found to fit is taken.
        return replace(portion, length=max(shortest, length))

    usually = replace(whole, length=usual)
    if count := largest(whole.count, lambda count: fits(replace(usually, count=count))):
        return longest(replace(whole, count=count), usual)
    one = replace(usually, count=1)
    if many := largest(len(parents) - 1, lambda many: fits(replace(one, parents=parents[:many]))):
        return longest(replace(one, parents=parents[:many]), usual)
    if upto != 1:
        return None
    last = longest(replace(one, parents=parents[:1], last=True), 0)
    if last.length < min(usual, LEAST):
        return None
    if last.length < usual:
        session.emit(Cut("tokens", usual, last.length, session.meter.left or 0.0))
    return last
