"""Events folded into rounds: what was grown from what, and what was selected among it.

Views, reports and worth read this and not the events: requests of a tuple are answered at the same
time, so that the events of their rounds interleave. It takes a list, or a stream as it grows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from cot_engine.core.chain import Chain
from cot_engine.core.events import (
    Cut,
    Failed,
    Finished,
    Growing,
    Grown,
    Heard,
    Judged,
    Judging,
    Notice,
    Retraced,
    Scored,
    Selected,
    Started,
)
from cot_engine.core.match import Match
from cot_engine.core.usage import Role, Usage

Remark = Cut | Notice | Retraced | Literal["again", "at once"]
"""What is to be said of a round: a cut, a notice, that the strategy went back after it, that its
tag was forced on the candidates of a second sample, or on its first."""


@dataclass
class GrowthRound:
    """The candidates of one Expand: `wanted` so many, until `unit`; `chains` as far as they are
    there, with all their steps. `pending`: more are being sampled. `attempt` counts how often the
    strategy had begun this part of the plan, from 1: it may have gone back (Retraced)."""

    number: int
    unit: str
    parents: tuple[str, ...]
    wanted: int = 0
    pending: bool = False
    chains: list[Chain] = field(default_factory=list)
    usage: Usage = Usage()
    remarks: list[Remark] = field(default_factory=list)
    attempt: int = 1

    @property
    def place(self) -> tuple[int, str]:
        """How many steps a candidate has, of the longest one, and what it was to end with:
        candidates of other rounds with the same may stand beside it."""
        return 1 + max((parent.count(".") for parent in self.parents), default=0), self.unit


@dataclass
class SelectionRound:
    """One Select: who entered the tournament, the matches so far, and its outcome unless it was
    cut short. `growths` are the rounds that its candidates come from, in order."""

    number: int
    entrants: tuple[str, ...]
    matches: list[Match] = field(default_factory=list)
    cached: list[bool] = field(default_factory=list)
    outcome: Selected | None = None
    growths: list[GrowthRound] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)

    @property
    def candidates(self) -> tuple[str, ...]:
        return self.outcome.candidates if self.outcome else self.entrants

    @property
    def fresh(self) -> tuple[Match, ...]:
        """The matches that were not held before in this search."""
        pairs = zip(self.matches, self.cached, strict=True)
        return tuple(match for match, cached in pairs if not cached)

    @property
    def unit(self) -> str:
        """What its candidates, the latest of them, were to end with; "" if nobody saw them grow."""
        return self.growths[-1].unit if self.growths else ""


class Fold:
    """The rounds so far, by number. `selections` are those that ended, in that order, and how.

    `chains` has every chain by id, with all its steps; `gap` is the first that was grown from one
    that is not there ("" if none): it has its own step only. `scores` are by candidate and
    scorer, those about whole responses apart; `retraces` in order.
    `remarks` came before any round; `waiting` are cuts of rounds in which nothing happened yet.
    """

    def __init__(self, events: Iterable[Heard] = ()) -> None:
        self.started: Started | None = None
        self.finished: Finished | None = None
        self.failed: Failed | None = None
        self.growths: dict[int, GrowthRound] = {}
        self.contests: dict[int, SelectionRound] = {}
        self.selections: list[tuple[SelectionRound, Selected]] = []
        self.chains: dict[str, Chain] = {"r": Chain()}
        self.grown_in: dict[str, GrowthRound] = {}
        self.gap = ""
        self.scores: dict[str, dict[str, float]] = {}
        self.usage: dict[Role, Usage] = {}
        self.remarks: list[Remark] = []
        self.waiting: list[tuple[int, Cut]] = []
        self.retraces: list[Retraced] = []
        self.last = 0  # the highest number of a round so far
        self.here: GrowthRound | SelectionRound | None = None  # the round of the latest event
        for event in events:
            self.take(event)

    @property
    def spent(self) -> dict[Role, Usage]:
        """What the search cost: as it said at its end, or what its rounds did so far."""
        return self.finished.usage if self.finished else self.usage

    @property
    def rounds(self) -> list[GrowthRound | SelectionRound]:
        """Those of growing and of selecting, by number."""
        rounds: list[GrowthRound | SelectionRound] = [*self.growths.values()]
        return sorted([*rounds, *self.contests.values()], key=lambda round: round.number)

    def take(self, event: Heard) -> GrowthRound | SelectionRound | None:
        """Take in the next event; returns the round that it changed, if it did."""
        number = numbered(event, self)
        changed: GrowthRound | SelectionRound | None = None
        match event:
            case Started():
                self.started = self.started or event
            case Growing():
                changed = self._growth(number, event.unit, event.parents)
                changed.pending, changed.wanted = True, event.n * len(event.parents)
            case Grown():
                changed = self._grown(number, event)
            case Judging():
                changed = self._contest(number, event.candidates)
            case Judged(match, cached):
                changed = self._contest(number, (match.first, match.second))
                changed.matches.append(match)
                changed.cached.append(cached)
            case Selected():
                changed = self._selected(number, event)
            case Scored():
                self._charge("score", event.usage - event.verified)
                self._charge("verify", event.verified)
                name = event.scorer + ", whole" * (event.about == "whole")
                for id, score in event.scores.items():
                    self.scores.setdefault(id, {})[name] = score
            case Cut():
                round = self.contests.get(number) or self.growths.get(number)
                self.waiting += [(number, event)] if round is None else []
                (round.remarks if round else []).append(event)
            case Retraced():
                self.retraces.append(event)
                (self.here.remarks if self.here else self.remarks).append(event)
            case Notice():
                (self.here.remarks if self.here else self.remarks).append(event)
            case Finished():
                self.finished = event
            case Failed():
                self.failed = event
        self.last = max(self.last, number)
        self.here = changed or self.here
        return changed

    def _charge(self, role: Role, usage: Usage) -> None:
        if usage != Usage():
            self.usage[role] = self.usage.get(role, Usage()) + usage

    def _growth(self, number: int, unit: str, parents: tuple[str, ...]) -> GrowthRound:
        attempt = 1 + sum(each.round < number for each in self.retraces)
        new = GrowthRound(number, unit, parents, attempt=attempt)
        growth = self.growths.setdefault(number, new)
        growth.remarks += [cut for of, cut in self.waiting if of <= number]
        self.waiting = [(of, cut) for of, cut in self.waiting if of > number]
        return growth

    def _grown(self, number: int, event: Grown) -> GrowthRound:
        parents = tuple(dict.fromkeys(chain.parent or "r" for chain in event.chains))
        growth = self._growth(number, event.unit, parents)
        if event.forced:
            growth.remarks.append("again" if growth.chains else "at once")
        growth.pending = False
        growth.usage += event.usage
        self._charge("generate", event.usage)
        for chain in event.chains:
            parent = self.chains.get(chain.parent or "r")
            if parent is None:
                self.gap = self.gap or chain.id
            steps = (*(parent.steps if parent else ()), *chain.steps)
            self.chains[chain.id] = Chain(chain.id, steps, chain.done, chain.count)
            self.grown_in[chain.id] = growth
            growth.chains.append(self.chains[chain.id])
        return growth

    def _contest(self, number: int, among: tuple[str, ...]) -> SelectionRound:
        if number not in self.contests:
            self.contests[number] = SelectionRound(number, among, growths=self._grew(among))
        return self.contests[number]

    def _grew(self, ids: tuple[str, ...]) -> list[GrowthRound]:
        found = {growth.number: growth for id in ids if (growth := self.grown_in.get(id))}
        return [found[number] for number in sorted(found)]

    def _selected(self, number: int, event: Selected) -> SelectionRound:
        contest = self._contest(number, event.candidates)
        contest.outcome, contest.growths = event, self._grew(event.candidates)
        if len(contest.matches) != len(event.matches):  # judged again: the matches are here alone
            contest.matches = list(event.matches)
            contest.cached = [False] * len(event.matches)
        self._charge("judge", event.usage - event.verified)
        self._charge("verify", event.verified)
        self.selections.append((contest, event))
        return contest


def numbered(event: Heard, fold: Fold) -> int:
    """The number of the round that an event belongs to, 0 if it belongs to none.

    Where it does not say (it was recorded before rounds were numbered), the number is as well as
    one can tell after the events of `fold`: each Growing, Judging and Scored begins a round, what
    follows belongs to it; cuts are of the matches being held, or (0) of what grows next.
    """
    if (said := getattr(event, "round", 0)) or not hasattr(event, "round"):
        return said
    growth, contest = fold.growths.get(fold.last), fold.contests.get(fold.last)
    match event:
        case Grown() if growth and (growth.pending or growth.unit == event.unit):
            return fold.last
        case Judged() | Selected() | Cut(what="matches") if contest and contest.outcome is None:
            return fold.last
        case Cut():
            return 0
    return fold.last + 1
