"""Filling a budget: optional growth, as much as still fits, for strategies that go on until it is
used up (`Expand.upto`). They see no meter; they ask until nothing comes back."""

from __future__ import annotations

from dataclasses import dataclass

from cot_engine.core.chain import Beam, Chain
from cot_engine.core.events import Cut, Growing, Grown
from cot_engine.core.stages import Stage
from cot_engine.search.expand import LEAST, Growth, has, largest, record

_MOST_FILLS = 4000  # of one search: a budget may be large, and a model's texts few


@dataclass(frozen=True, slots=True)
class _Portion:
    """What to sample: `count` children for each parent, of at most `length` tokens each.

    `last` stands for a single one that gets all that is left, judging and later tags not held back.
    """

    parents: list[Chain]
    count: int
    length: int
    last: bool = False


async def fill(
    growth: Growth, beam: Beam, until: Stage | str, n: int, upto: float, greedy: bool = False
) -> Beam:
    """At most `n` new children for each chain of `beam` that needs growing, as many as keep what
    the search spends within the fraction `upto` of its budget. Empty if none fit."""
    session = growth.session
    parents = [chain for chain in beam if not has(chain, until, session.plan)]
    if session.meter.budget is None or not parents or growth.fills >= _MOST_FILLS:
        return ()
    if (portion := _portion(growth, parents, until, n, upto)) is None:
        return ()
    growth.fills += 1
    unit = until.tag if isinstance(until, Stage) else until
    session.emit(Growing(tuple(chain.id for chain in portion.parents), unit, portion.count))
    grown, usage = await growth.sample(
        *(portion.parents, until, portion.count, portion.length, greedy, False),
        upto=upto,
        guarded=portion.last,
    )
    chains = tuple(chain for children in grown for chain in children)
    session.emit(Grown(unit, tuple(map(record, chains)), usage))
    if session.meter.budget.unit != "seconds" and not session.meter.budget.of(usage):
        growth.fills = _MOST_FILLS  # replies that cost nothing would never end
    return chains


def _portion(
    growth: Growth, parents: list[Chain], until: Stage | str, n: int, upto: float
) -> _Portion | None:
    """As many as fit at the length of their longest sibling so far, with room to judge them.

    At an `upto` of 1, where nothing comes after that could use what is left, it buys a last one,
    shorter if it must be and even if it cannot be judged. Below, what is left is carried on.
    """
    session, budget = growth.session, growth.session.meter.budget
    assert budget is not None
    asked = max(growth.length(chain, until) for chain in parents)
    usual = max(growth.longest.get(chain.id, asked) for chain in parents) or 1

    def fits(some: list[Chain], count: int, length: int, last: bool = False) -> bool:
        cost = growth.cost(some, until, count, length, forced=False)
        if growth.staged(until) and not last:
            cost += growth.later_tags(some, count)
        judging = 0.0 if last else session.match * count * len(some)
        floor = growth.floor(some, length)
        if until != "end":  # what must be grown next holds back a floor too, and must fit
            floor += floor
        return budget.of(cost) + judging <= session.meter.room(floor, upto)

    if count := largest(n, lambda count: fits(parents, count, usual)):
        # What is left of seconds shrinks meanwhile: what was found to fit is taken.
        length = largest(asked, lambda most: fits(parents, count, most))
        return _Portion(parents, count, max(usual, length))
    if many := largest(len(parents) - 1, lambda many: fits(parents[:many], 1, usual)):
        some = parents[:many]
        return _Portion(some, 1, max(usual, largest(asked, lambda most: fits(some, 1, most))))
    length = largest(asked, lambda most: fits(parents[:1], 1, most, last=True)) if upto == 1 else 0
    if length < min(usual, LEAST):
        return None
    if length < usual:
        session.emit(Cut("tokens", usual, length, session.meter.left or 0.0))
    return _Portion(parents[:1], 1, length, last=True)
