"""Rounds: each request of a strategy carried out, alone or several side by side.

Those of a tuple are sent together, in step (`lanes.py`), each with its part of the budget. Their
events are recorded one round after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from cot_engine.core import parts
from cot_engine.core.events import Notice, Scored
from cot_engine.core.parts import OutOfBudget
from cot_engine.errors import InputError
from cot_engine.judging.judges import LikelihoodScorer
from cot_engine.judging.protocol import Scorer
from cot_engine.search.asking import MeteredAsk
from cot_engine.search.concurrency import gather
from cot_engine.search.expand import Exhausted, Growth
from cot_engine.search.fill import fill
from cot_engine.search.lanes import InOrder, Lanes
from cot_engine.search.progress import Reporter
from cot_engine.search.select import Arena, case_of
from cot_engine.search.session import Session, longest
from cot_engine.search.strategy import Expand, Request, Score, Select


@dataclass
class Rounds:
    """Carries out the requests of one search. `scorer` gives the one that a Score names.

    Raises Exhausted where the budget pays for no further growth, StrategyError for a judge or
    scorer that breaks its contract, ModelError for such a backend.
    """

    growth: Growth
    arena: Arena
    scorer: Callable[[Score], Scorer]

    async def answer(self, asked: Request | tuple[Request, ...]) -> Any:
        """The reply to what a strategy yielded: to a tuple, a tuple."""
        if isinstance(asked, tuple):
            return await self._several(asked)
        self.growth.session.round += 1
        return await self._one(asked)

    async def _one(self, request: Request) -> Any:
        match request:
            case Expand(upto=None):
                return await self.growth.expand(request)
            case Expand():
                return await fill(self.growth, request)
            case Select():
                return await self.arena.select(request)
            case Score():
                return await score(self.growth.session, request, self.scorer(request))

    async def _several(self, requests: tuple[Request, ...]) -> tuple[Any, ...]:
        session, count = self.growth.session, len(requests)
        order, lanes = InOrder(session.record, count), Lanes(count)
        rounds, selections = [], self.arena.selections
        for k, request in enumerate(requests):
            tell = session.reporter.listen
            own = session.beside(
                lanes.each[k],
                session.round + 1 + k,
                count,
                partial(order.record, k),
                Reporter(tell and partial(order.tell, k, tell)),
            )
            arena = self.arena.beside(own, selections)
            rounds.append(replace(self, growth=self.growth.beside(own), arena=arena))
            selections += isinstance(request, Select)

        async def carried_out(k: int) -> Any:
            try:
                return await rounds[k]._one(requests[k])
            except Exhausted as exhausted:
                return exhausted  # the others are under way, and paid for
            finally:
                lanes.each[k].over = True
                lanes.look_soon()
                order.over(k)

        replies = await gather(map(carried_out, range(count)))
        session.join([each.growth.session for each in rounds])
        self.growth.join([each.growth for each in rounds])
        self.arena.selections = selections
        for reply in replies:
            if isinstance(reply, Exhausted):
                raise reply
        return tuple(replies)


async def score(session: Session, request: Score, scorer: Scorer) -> tuple[float, ...]:
    """A number for each chain; by likelihood, and a notice says so, where the scorer cannot.

    Raises StrategyError for a scorer that breaks its contract, or one whose numbers are of any
    scale where probabilities are asked for.
    """
    chains, name, asked = request.beam, request.scorer, request.probability
    ask = MeteredAsk(session, "score", longest(chains).segments)
    case = case_of(session, chains, request.about)
    if asked:
        parts.probabilities(scorer, (), name)  # before it costs anything
    try:
        with session.reporter.doing("scoring", name):
            scores = await parts.scores(scorer, chains, case, ask, name)
    except (OutOfBudget, InputError) as error:
        # Known to every scorer's user, and free: what the model itself thought of its text.
        scorer = LikelihoodScorer()
        scores = await scorer.score(chains, case, ask)
        why = f"the budget left no room for {name}."
        if isinstance(error, InputError):
            why = f"{name} could not. {error}"
        session.emit(Notice(f"Scored by likelihood: {why}"))
    if asked:
        scores = parts.probabilities(scorer, scores, name)
    by_id = {chain.id: value for chain, value in zip(chains, scores, strict=True)}
    about, used = request.about, ask.usage
    session.emit(Scored(name, by_id, used, about=about, probability=asked, verified=ask.verified))
    return tuple(scores)
