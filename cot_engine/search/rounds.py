"""Rounds: each request of a strategy carried out, alone or several side by side.

Those of a tuple are sent together, in step (`lanes.py`), each with its part of the budget. Their
events are recorded one round after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from cot_engine.core import parts
from cot_engine.core.chain import Beam
from cot_engine.core.events import Cut, Notice, Retraced, Scored
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
from cot_engine.search.strategy import Expand, Request, Retrace, Score, Select

Known = dict[tuple[str, str, str], float]
"""What scorers gave in this search: by their name, what it was about, and the chain's id."""


@dataclass
class Rounds:
    """Carries out the requests of one search. `scorer` gives the one that a request names; what it
    gave is kept in `scores`, and asked once.

    Raises Exhausted where the budget pays for no further growth, StrategyError for a judge or
    scorer that breaks its contract, ModelError for such a backend.
    """

    growth: Growth
    arena: Arena
    scorer: Callable[[Request, str], Scorer]
    scores: Known = field(default_factory=dict)

    async def answer(self, asked: Request | tuple[Request, ...]) -> Any:
        """The reply to what a strategy yielded: to a tuple, a tuple."""
        if isinstance(asked, tuple):
            return await self._several(asked)
        self.growth.session.round += 1
        return await self._one(asked)

    async def _one(self, request: Request) -> Any:
        session = self.growth.session
        match request:
            case Expand(upto=None, optional=False):
                return await self.growth.expand(request)
            case Expand(optional=True) if session.meter.budget is None:
                grown = await self.growth.expand(request)
                return tuple(chain for chain in grown if chain not in request.beam)
            case Expand():
                grown = await fill(self.growth, replace(request, upto=request.upto or 1.0))
                needing = self.growth.growable(request.beam, request.until)
                if request.optional and len(grown) < (most := request.n * len(needing)):
                    left = session.meter.left or 0.0
                    session.emit(Cut("candidates", most, len(grown), left))
                return grown
            case Select(by=None):
                return await self.arena.select(request)
            case Select(beam, _, about, str(by)):
                asked = Score(beam, by, about, probability=request.unsure > 0)
                by, numbers = await self._score(asked, request, again=False)
                return await self.arena.select(replace(request, by=by), numbers)
            case Score():
                return (await self._score(request, request))[1]
            case Retrace():
                return retrace(self.growth, request)

    async def _score(
        self, asked: Score, of: Request, again: bool = True
    ) -> tuple[str, tuple[float, ...]]:
        scorer = self.scorer(of, asked.scorer)
        return await score(self.growth.session, asked, scorer, self.scores, again)

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


async def score(
    session: Session, request: Score, scorer: Scorer, known: Known, again: bool = True
) -> tuple[str, tuple[float, ...]]:
    """Who gave them, and a number for each chain: by likelihood, and a notice says so, where the
    scorer cannot. What is `known` is not asked again, and unless told `again` not recorded a second
    time.

    Raises StrategyError for a scorer that breaks its contract, or one whose numbers are of any
    scale where probabilities are asked for.
    """
    chains, name, about = request.beam, request.scorer, request.about
    by = name
    ask = MeteredAsk(session, "score", longest(chains).segments)
    case = case_of(session, chains, about)
    new = [chain for chain in chains if (name, about, chain.id) not in known]
    if request.probability:
        parts.probabilities(scorer, (), name)  # before it costs anything
    try:
        if new:
            with session.reporter.doing("scoring", name):
                given = await parts.scores(scorer, new, case, ask, name)
            known.update(((name, about, c.id), v) for c, v in zip(new, given, strict=True))
        scores = [known[name, about, chain.id] for chain in chains]
    except (OutOfBudget, InputError) as error:
        # Known to every scorer's user, and free: what the model itself thought of its text.
        scorer, by = LikelihoodScorer(), "likelihood"
        scores = await scorer.score(chains, case, ask)
        why = f"the budget left no room for {name}."
        if isinstance(error, InputError):
            why = f"{name} could not. {error}"
        session.emit(Notice(f"Scored by likelihood: {why}"))
    session.scored = max(session.scored, ask.asked / max(1, len(new)))
    if request.probability:
        scores = parts.probabilities(scorer, scores, name)
    by_id = {chain.id: value for chain, value in zip(chains, scores, strict=True)}
    if new or again:
        used, asked = ask.usage, request.probability
        session.emit(Scored(by, by_id, used, about=about, probability=asked, verified=ask.verified))
    return by, tuple(scores)


def retrace(growth: Growth, request: Retrace) -> Beam:
    """The chains that had not reached the stage `to` yet, on the way to these, each once."""
    tag, before = request.to.tag, {}
    for chain in request.beam:
        reached = (k for k, s in enumerate(chain.steps) if s.stage == tag or f"<{tag}>" in s.text)
        path, depth = chain.id.split("."), next(reached, len(chain.steps))
        # Where that was in another search (`Continuation`), it is the chain that this one began at.
        ids = (".".join(path[:k]) for k in range(1 + depth, 1 + len(path)))
        known = growth.known[next(id for id in ids if id in growth.known)]
        before[known.id] = known
    beam, parents = tuple(chain.id for chain in request.beam), tuple(before)
    numbers = (request.place, request.score, request.threshold, request.attempt, request.of)
    growth.session.emit(Retraced(tag, beam, parents, *numbers))
    return tuple(before.values())
