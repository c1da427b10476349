"""What there is to draw of a trace, worked out once for the terminal and for the page.

A search is columns, a column for each depth of the chains' tree: its candidates as cards, the
tournament held among them, and what was remarked on the way. Nothing here knows colours or markup.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cot_engine.core.answers import normalise_answer
from cot_engine.core.chain import Chain, Step
from cot_engine.core.events import (
    Cut,
    Failed,
    Finished,
    Growing,
    Grown,
    Judged,
    Judging,
    Notice,
    Scored,
    Selected,
    Started,
)
from cot_engine.core.grammar import conclusion
from cot_engine.core.match import Match
from cot_engine.core.trace import Trace, usage_by_role
from cot_engine.core.usage import Role, Usage
from cot_engine.errors import TraceError
from cot_engine.show import words


@dataclass
class Card:
    """One candidate of a column. `label` is its letter there, `parent` the letter of the card it
    grew from ("" if there was one only), `on_path` that the answer came through it. `folded` are
    the ids of the candidates with the same text, `unjudged` why it did not enter the tournament.
    """

    label: str
    chain: Chain
    parent: str = ""
    folded: tuple[str, ...] = ()
    unjudged: str = ""
    kept: bool = False
    on_path: bool = False
    scores: dict[str, float] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return self.chain.id

    @property
    def step(self) -> Step:
        return self.chain.last or Step("", (), "", 0.0, 0, "stop")

    @property
    def count(self) -> int:
        return max(self.chain.count, 1 + len(self.folded))


@dataclass
class Contest:
    """A tournament: who entered, the matches so far, and its outcome unless it was cut short."""

    entrants: tuple[str, ...]
    matches: list[Match] = field(default_factory=list)
    cached: list[bool] = field(default_factory=list)
    outcome: Selected | None = None


@dataclass(frozen=True)
class Bout:
    """A match as drawn in a bracket: between two rows (top < bottom), in one lane (from 0)."""

    match: Match
    top: int
    bottom: int
    lane: int


@dataclass
class Column:
    """`depth` counts from 1. `cards` begin with the one on the answer's path, if any."""

    depth: int
    unit: str
    cards: list[Card] = field(default_factory=list)
    contests: list[Contest] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    usage: Usage = Usage()
    sampled: int = 0

    @property
    def matches(self) -> list[Match]:
        return [match for contest in self.contests for match in contest.matches]

    def card(self, id: str) -> Card | None:
        return next((card for card in self.cards if id == card.id or id in card.folded), None)

    @property
    def title(self) -> str:
        if self.unit == "sentence":
            return f"Sentence {self.depth}"
        if self.unit == "end":
            return "Whole response" if self.depth == 1 else "The rest"
        return self.unit


@dataclass
class Figure:
    started: Started
    finished: Finished | None
    failed: Failed | None
    columns: list[Column]
    remarks: list[str]
    pending: str
    usage: dict[Role, Usage]

    @property
    def answer(self) -> str | None:
        return self.finished.answer if self.finished else None

    @property
    def incomplete(self) -> str:
        """Why the answer is not whole; "" if it is, or there is none."""
        why = self.finished.incomplete if self.finished else ""
        return why and f"The answer is not complete. {why}"

    @property
    def ending(self) -> str:
        """Why there is no answer; "" if there is one."""
        if self.finished:
            return ""
        if self.failed:
            if self.failed.error in ("KeyboardInterrupt", "CancelledError"):
                return "Interrupted."
            return f"{self.failed.error}: {self.failed.message}".rstrip(": ")
        return "The trace breaks off here."


def read(trace: Trace) -> Figure:
    """Raises TraceError if the trace has no beginning, or a gap."""
    started = trace.started
    columns: dict[int, Column] = {}
    try:
        chains = trace.chains()
    except KeyError as error:
        raise TraceError(f"The trace lacks the candidate {error} that others grew from.") from None
    remarks: list[str] = []
    waiting: list[str] = []  # of the next column: what was cut is said before it is grown
    failed: Failed | None = None
    pending: Growing | None = None
    here: Column | None = None

    for event in trace:
        if isinstance(event, Growing):
            pending = event
        elif isinstance(event, Grown):
            pending = None
            again = here is not None and any(
                chain.id.count(".") == here.depth for chain in event.chains
            )
            for chain in event.chains:
                depth = chain.id.count(".")
                here = columns.setdefault(depth, Column(depth, event.unit))
                here.cards.append(Card("", chains[chain.id]))
                here.sampled += 1
            if here:
                here.usage += event.usage
                here.remarks += waiting
                waiting.clear()
                if event.forced:
                    here.remarks.append(
                        "No candidate opened the stage: sampled again with its tag put there."
                        if again
                        else "Concluded at once, its tag put there."
                    )
        elif isinstance(event, Judging) and event.candidates:
            here = columns.get(max(id.count(".") for id in event.candidates), here)
            if here:
                here.contests.append(Contest(event.candidates))
        elif isinstance(event, Judged) and here and here.contests:
            here.contests[-1].matches.append(event.match)
            here.contests[-1].cached.append(event.cached)
        elif isinstance(event, Selected) and event.candidates:
            here = columns.get(max(id.count(".") for id in event.candidates), here)
            if here:
                _select(here, event)
        elif isinstance(event, Scored):
            for column in columns.values():
                for card in column.cards:
                    if card.id in event.scores:
                        card.scores[event.scorer] = event.scores[card.id]
            if here:
                here.usage += event.usage
        elif isinstance(event, Cut):
            text = words.cut_text(event, started.budget)
            if event.what == "matches" and here:
                here.remarks.append(text)
            else:
                waiting.append(text)
        elif isinstance(event, Notice):
            (here.remarks if here else remarks).append(event.text)
        elif isinstance(event, Failed):
            failed = event

    (here.remarks if here else remarks).extend(waiting)
    finished = trace.finished
    figure = Figure(
        started,
        finished,
        failed,
        [columns[depth] for depth in sorted(columns)],
        remarks,
        f"{pending.n * len(pending.parents)} more were being sampled." if pending else "",
        finished.usage if finished else usage_by_role(trace),
    )
    _arrange(figure)
    return figure


def _select(column: Column, event: Selected) -> None:
    """Fold what was merged, and put the outcome with the tournament it ends."""
    if not column.contests or column.contests[-1].outcome is not None:
        column.contests.append(Contest(event.candidates))
    contest = column.contests[-1]
    contest.outcome = event
    if len(contest.matches) != len(event.matches):
        contest.matches = list(event.matches)
        contest.cached = [False] * len(event.matches)
    folded = {id for ids in event.merged.values() for id in ids}
    for card in column.cards:
        card.folded += event.merged.get(card.id, ())
        card.unjudged = event.unjudged.get(card.id, card.unjudged)
        card.kept = card.kept or card.id in event.kept
    column.cards = [card for card in column.cards if card.id not in folded]


def _arrange(figure: Figure) -> None:
    """Letter the cards in the order they were sampled, then put each column in drawing order."""
    columns = figure.columns
    tip = figure.finished.chain if figure.finished else ""
    if not tip:
        outcomes = [c.outcome for col in columns for c in col.contests if c.outcome]
        tip = outcomes[-1].kept[0] if outcomes and outcomes[-1].kept else ""
    names: dict[str, str] = {}
    for column in columns:
        parents = {card.chain.parent for card in column.cards}
        for index, card in enumerate(column.cards):
            card.label = letter(index)
            for id in (card.id, *card.folded):
                names[f"{column.depth}:{id}"] = card.label
            if len(parents) > 1:
                card.parent = names.get(f"{column.depth - 1}:{card.chain.parent}", "")
            ids = (card.id, *card.folded)
            card.on_path = any(tip == id or tip.startswith(f"{id}.") for id in ids)
    for column in columns:
        order = drawing_order(column)
        column.cards.sort(key=lambda card: order.get(card.id, len(order)))


def letter(index: int) -> str:
    """A ... Z, AA, AB ..."""
    head, tail = divmod(index, 26)
    return (letter(head - 1) if head else "") + chr(ord("A") + tail)


def drawing_order(column: Column) -> dict[str, int]:
    """The row of each id: the path first; then, in an elimination, everyone under whom they lost
    to, the earliest loser nearest, so that no two lines of the bracket cross; else by rank."""
    path = [card.id for card in column.cards if card.on_path]
    unjudged = [card.id for card in column.cards if card.unjudged]
    rank = [id for c in column.contests if c.outcome for id in c.outcome.ranking]
    rest = [card.id for card in column.cards if card.id not in unjudged]
    roots = list(dict.fromkeys([*path, *rank, *rest, *unjudged]))
    if is_elimination(column.matches):
        beaten: dict[str, list[str]] = {}
        for match in column.matches:
            beaten.setdefault(match.winner, []).append(loser(match))
        lost = {id for ids in beaten.values() for id in ids}
        order: list[str] = []

        def visit(id: str) -> None:
            order.append(id)
            for other in beaten.get(id, ()):
                visit(other)

        for id in roots:
            if id not in lost:
                visit(id)
        roots = order
    return {id: row for row, id in enumerate(roots)}


def loser(match: Match) -> str:
    return match.second if match.winner == match.first else match.first


def ordered(match: Match) -> tuple[str, str]:
    return match.winner, loser(match)


def is_elimination(matches: list[Match]) -> bool:
    """Whoever loses is out: the matches form a bracket."""
    out: set[str] = set()
    for match in matches:
        if match.first in out or match.second in out or match.first == match.second:
            return False
        out.add(loser(match))
    return True


def bracket(column: Column) -> list[Bout] | None:
    """The column's matches as bouts between its rows, or None where they are no bracket."""
    rows = {id: row for row, card in enumerate(column.cards) for id in (card.id, *card.folded)}
    matches = column.matches
    known = all(m.first in rows and m.second in rows for m in matches)
    if not (matches and known and is_elimination(matches)):
        return None
    bouts: list[Bout] = []
    busy = [0] * len(column.cards)  # the first lane that is free in each row
    for match in matches:
        top, bottom = sorted((rows[match.first], rows[match.second]))
        lane = max(busy[top : bottom + 1])
        busy[top : bottom + 1] = [lane + 1] * (bottom + 1 - top)
        bouts.append(Bout(match, top, bottom, lane))
    return bouts


def votes(figure: Figure) -> list[tuple[str, list[Card]]]:
    """The last column's cards by final answer, most votes first, where no tournament was held.

    Empty where there was one, or where nothing was voted on.
    """
    if not figure.columns or figure.columns[-1].contests or len(figure.columns[-1].cards) < 2:
        return []
    groups: dict[str, list[Card]] = {}
    shown: dict[str, str] = {}
    for card in figure.columns[-1].cards:
        answer = conclusion(card.chain.text, figure.started.plan)
        key = normalise_answer(answer)
        shown.setdefault(key, answer)
        groups.setdefault(key, []).append(card)
    chosen = [key for key, cards in groups.items() if any(card.on_path for card in cards)]
    ranked = sorted(groups, key=lambda key: (-len(groups[key]), key not in chosen))
    return [(shown[key], groups[key]) for key in ranked]
