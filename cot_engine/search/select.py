"""Selections: merge equal candidates, set faulty ones aside, hold the tournament, break ties."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from cot_engine.core import parts
from cot_engine.core.answers import normalise_answer
from cot_engine.core.chain import Beam, Chain
from cot_engine.core.events import Cut, Judged, Judging, Notice, Selected
from cot_engine.core.grammar import conclusion, tier
from cot_engine.core.match import Match, Outcome, Verdict
from cot_engine.core.parts import OutOfBudget
from cot_engine.core.stages import Plan
from cot_engine.errors import InputError
from cot_engine.judging.protocol import Case, Judge
from cot_engine.search.asking import MeteredAsk
from cot_engine.search.session import Session, longest
from cot_engine.search.strategy import Select
from cot_engine.search.tournament import TOURNAMENTS, matches_of


@dataclass
class Arena:
    """Carries out Select requests for one search. All tournaments share one cache of matches.

    Raises StrategyError for a judge, called `name`, that does not say whether it is symmetric."""

    session: Session
    judge: Judge
    name: str = ""
    both: bool = field(init=False)  # whether each pair is judged in both orders
    held: dict[tuple[str, str, str], Match] = field(default_factory=dict)
    selections: int = 0

    def __post_init__(self) -> None:
        symmetric = parts.symmetric(self.judge, self.name)
        self.both = self.session.settings.orders == "both" and not symmetric

    async def select(self, request: Select, numbers: Sequence[float] | None = None) -> Beam:
        """The best `keep` of the beam, best first. `numbers` are a scorer's, which decide in place
        of the judge, but for who is `unsure`.

        Raises StrategyError if the judge breaks its contract. The request must be sound (see
        `yielded`).
        """
        self.selections += 1
        number = dict(zip((c.id for c in request.beam), numbers or (), strict=False))
        plan = self.session.plan if request.agree else None
        candidates, merged = merge(request.beam, request.about, plan, number)
        entrants, aside = self._entrants(candidates, request.about)
        case = case_of(self.session, entrants, request.about)
        tag = case.stage.tag if case.stage else ""
        ask = MeteredAsk(self.session, "judge", longest(candidates).segments)
        above, meeting, below = contested(entrants, request, number)
        ranking, places = meeting, request.keep - len(above)
        matches: tuple[Match, ...] = ()
        if len(meeting) > 1 and places < len(candidates) - len(above):
            ids = tuple(chain.id for chain in meeting)
            self.session.emit(Judging(request.about, tag, ids))
            with self._judging(tag, len(meeting), places):
                ranking, matches = await self._tournament(meeting, places, case, ask)
            self.session.match = max(self.session.match, ask.asked / (len(meeting) - 1))
        ranking = (*above, *ranking, *below)
        kept = (*ranking, *aside)[: request.keep]
        if kept[0].done:
            self.session.safe = kept[0]
        self.session.emit(
            Selected(
                request.about,
                tag,
                tuple(chain.id for chain in request.beam),
                merged,
                {c.id: _worst(c, request.about) for c in aside},
                matches,
                tuple(chain.id for chain in ranking),
                tuple(chain.id for chain in kept),
                ask.usage,
                verified=ask.verified,
                by=request.by or "",
            )
        )
        return kept

    def beside(self, session: Session, selections: int) -> Arena:
        """The arena for one of several rounds side by side, after so many `selections`."""
        made = copy(self)
        made.session, made.selections = session, selections
        return made

    def _judging(self, stage: str, n: int, keep: int) -> AbstractContextManager[None]:
        """What listeners are told meanwhile."""
        most, exact = matches_of(self.session.settings.tournament, n, keep)
        return self.session.reporter.doing(
            "judging", stage, most, at_most=not exact, orders=2 if self.both else 1
        )

    def _entrants(self, candidates: Beam, about: str) -> tuple[Beam, Beam]:
        """Those of the best tier, and the rest in the order in which they would be taken."""
        tiers = {chain.id: tier(_faults(chain, about)) for chain in candidates}
        best = min(tiers.values())
        entrants = tuple(c for c in candidates if tiers[c.id] == best)
        rest = [c for c in candidates if tiers[c.id] != best]
        rest.sort(key=lambda c: (tiers[c.id], -_likelihood(c, about)))
        return entrants, tuple(rest)

    async def _tournament(
        self, entrants: Beam, keep: int, case: Case, ask: MeteredAsk
    ) -> tuple[Beam, tuple[Match, ...]]:
        settings = self.session.settings
        rng = random.Random(self.session.seed("tournament", self.selections))
        schedule = TOURNAMENTS[settings.tournament](len(entrants), keep, rng)
        played: list[Match] = []
        reply: Any = None  # what a generator is sent first
        while True:
            try:
                pairs = schedule.send(reply)
            except StopIteration as stop:
                return tuple(entrants[i] for i in stop.value), tuple(played)
            matches = await self._round([(entrants[i], entrants[j]) for i, j in pairs], case, ask)
            played += matches
            reply = [
                (i if match.winner == entrants[i].id else j, match.margin)
                for (i, j), match in zip(pairs, matches, strict=True)
            ]

    async def _round(
        self, pairs: list[tuple[Chain, Chain]], case: Case, ask: MeteredAsk
    ) -> list[Match]:
        """Hold the matches of one round, all that were not held before in one request."""
        before = [self._held(pair, case.about) for pair in pairs]
        new = [k for k, match in enumerate(before) if match is None]
        judged = await self._judge([pairs[k] for k in new], case, ask) if new else []
        fresh = dict(zip(new, judged, strict=True))
        for k, match in fresh.items():
            a, b = pairs[k]
            self.held[case.about, a.text, b.text] = match
        matches = [fresh[k] if match is None else match for k, match in enumerate(before)]
        for k, match in enumerate(matches):
            self.session.emit(Judged(match, cached=k not in fresh))
        self.session.reporter.settle(len(matches))
        return matches

    def _held(self, pair: tuple[Chain, Chain], about: str) -> Match | None:
        """A match of these texts held before, as seen from this pair."""
        a, b = pair
        if (match := self.held.get((about, a.text, b.text))) is not None:
            won, verdicts, outcome = match.winner == match.first, match.verdicts, match.outcome
        elif (match := self.held.get((about, b.text, a.text))) is not None:
            won = match.winner == match.second
            verdicts, outcome = match.verdicts[::-1], _REVERSED[match.outcome]
            if len(verdicts) == 1:
                v = verdicts[0]
                verdicts = (Verdict(_REVERSED[v.outcome], -v.margin, v.readable, v.text),)
        else:
            return None
        return Match(a.id, b.id, verdicts, outcome, (a if won else b).id, match.broken_by)

    async def _judge(
        self, pairs: list[tuple[Chain, Chain]], case: Case, ask: MeteredAsk
    ) -> list[Match]:
        ordered = [p for a, b in pairs for p in (((a, b), (b, a)) if self.both else ((a, b),))]
        each = 2 if self.both else 1
        try:
            verdicts = await parts.verdicts(self.judge, ordered, case, ask, self.name)
        except OutOfBudget:
            self.session.emit(Cut("matches", len(pairs), 0, self.session.meter.left or 0.0))
            verdicts = [Verdict("tie", 0.0, False, "not judged: out of budget")] * len(ordered)
        except InputError as error:  # candidates too long for the model's context, say
            self.session.emit(Notice(f"{len(pairs)} matches were not judged. {error}"))
            verdicts = [Verdict("tie", 0.0, False, "not judged")] * len(ordered)
        return [
            self._match(a, b, tuple(verdicts[k * each : (k + 1) * each]), case.about)
            for k, (a, b) in enumerate(pairs)
        ]

    def _match(self, a: Chain, b: Chain, verdicts: tuple[Verdict, ...], about: str) -> Match:
        outcome = combine(verdicts)
        if outcome != "tie":
            return Match(a.id, b.id, verdicts, outcome, (a if outcome == "first" else b).id)
        ahead = _likelihood(a, about) - _likelihood(b, about)
        if ahead:
            winner = (a if ahead > 0 else b).id
            return Match(a.id, b.id, verdicts, "tie", winner, "likelihood")
        low, high = sorted((a.id, b.id))
        winner = random.Random(self.session.seed("draw", low, high)).choice((low, high))
        return Match(a.id, b.id, verdicts, "tie", winner, "draw")


_REVERSED: dict[Outcome, Outcome] = {"first": "second", "second": "first", "tie": "tie"}


def combine(verdicts: Sequence[Verdict]) -> Outcome:
    """One outcome of the verdicts on (a, b) and, if asked, (b, a): agreement, or a tie."""
    seen: list[Outcome] = [v.outcome if v.readable else "tie" for v in verdicts]
    if len(seen) == 2:
        return seen[0] if seen[0] == _REVERSED[seen[1]] else "tie"
    return seen[0]


def case_of(session: Session, beam: Beam, about: Literal["step", "whole"]) -> Case:
    """What is judged or scored where these chains are. The stage is named where all of them have
    just closed the same one."""
    tags = {chain.last.stage for chain in beam if chain.last}
    plan = session.plan
    closed = all(c.last and f"</{c.last.stage}>" in c.last.text for c in beam)
    one = len(tags) == 1 and closed and about == "step"
    stage = plan[tags.pop()] if one and tags <= {s.tag for s in plan} else None
    return Case(session.problem, plan, about, stage, session.judge_images)


def contested(entrants: Beam, request: Select, number: Mapping[str, float]) -> tuple[Beam, ...]:
    """Who is ranked above whoever meets in the tournament, those who do, and who is below.

    Without a scorer's numbers, all meet. With them nobody does, but those who are less than
    `unsure` away from the other side of the line between who is kept and who is not. Equal numbers
    are ranked by likelihood.
    """
    if request.by is None:
        return (), entrants, ()
    by_number = sorted(
        entrants, key=lambda c: (number[c.id], _likelihood(c, request.about)), reverse=True
    )
    keep, ranked = request.keep, tuple(by_number)
    if keep >= len(ranked):
        return ranked, (), ()
    last, first_out = number[ranked[keep - 1].id], number[ranked[keep].id]
    above = sum(number[c.id] - first_out >= request.unsure for c in ranked[:keep])
    below = sum(last - number[c.id] < request.unsure for c in ranked[keep:])
    return ranked[:above], ranked[above : keep + below], ranked[keep + below :]


def merge(
    beam: Beam,
    about: Literal["step", "whole"] = "step",
    agree: Plan | None = None,
    number: Mapping[str, float] = MappingProxyType({}),
) -> tuple[Beam, dict[str, tuple[str, ...]]]:
    """Fold candidates with the same text into the first of them.

    Whitespace at the ends does not count. With the plan of those that may `agree`, those that say
    the same are folded into the soundest of them, of several the one of the highest `number`, then
    the first. Returns the distinct ones, each with the sum of the counts, and for each that
    absorbed others their ids.
    """
    groups: dict[object, list[Chain]] = {}
    for chain in beam:
        groups.setdefault(_said(chain, about, agree), []).append(chain)
    if agree is not None:
        for group in groups.values():
            group.sort(key=lambda c: (tier(_faults(c, about)), -number.get(c.id, 0.0)))
    distinct = tuple(g[0].counted(sum(c.count for c in g)) for g in groups.values())
    return distinct, {g[0].id: tuple(c.id for c in g[1:]) for g in groups.values() if len(g) > 1}


def _said(chain: Chain, about: str, agree: Plan | None) -> object:
    """What two candidates have alike if they count as one."""
    if agree is None or chain.last is None:
        return chain.text.strip()
    if about == "whole" or chain.done:
        return normalise_answer(conclusion(chain.text, agree)) or chain.text.strip()
    return chain.parent, normalise_answer(_TAG.sub(" ", chain.last.text))


_TAG = re.compile(r"</?[A-Z][A-Z0-9_]*>")


def _faults(chain: Chain, about: str) -> tuple[str, ...]:
    if about == "whole":
        return chain.faults
    return chain.last.faults if chain.last else ()


def _worst(chain: Chain, about: str) -> str:
    return max(_faults(chain, about), key=lambda fault: tier((fault,)), default="")


def _likelihood(chain: Chain, about: str) -> float:
    return chain.likelihood(None if about == "whole" else 1)
