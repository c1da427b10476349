"""What there is to draw of a trace, worked out once for the terminal and for the page.

A search is columns: candidates that stand side by side as cards, the tournaments held among them,
and what was remarked on the way. A column is a depth of the chains' tree, and there are two of it
where a strategy looked ahead: what it grew to see what would come, and what it went on with.
A search that goes on is drawn as far as it is, with what is being written. Nothing here knows
colours or markup.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cot_engine.core.answers import normalise_answer
from cot_engine.core.chain import Chain, Step
from cot_engine.core.events import Failed, Finished, Started
from cot_engine.core.fold import Fold, GrowthRound, SelectionRound
from cot_engine.core.grammar import conclusion
from cot_engine.core.match import Match
from cot_engine.core.trace import Trace
from cot_engine.core.usage import Role, Usage
from cot_engine.show import words


@dataclass
class Card:
    """One candidate of a column. `label` is its letter there, `parent` that of the card it grew
    from ("" if all did) with its column's title if that is not the column before, `on_path` that
    the answer came through it. `folded` are the ids of the candidates with the same text,
    `unjudged` why it did not enter the tournament.
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
    def score(self) -> str:
        """The first scorer's number; "" if there is none."""
        return next((words.score_text(value) for value in self.scores.values()), "")

    @property
    def count(self) -> int:
        return max(self.chain.count, 1 + len(self.folded))


@dataclass(frozen=True)
class Bout:
    """A match as drawn in a bracket: between two rows (top < bottom), in one lane (from 0)."""

    match: Match
    top: int
    bottom: int
    lane: int


@dataclass
class Column:
    """`depth` counts from 1. `cards` begin with the one on the answer's path, if any; `passed`: it
    has none, and the path goes by; `dropped`: nothing else was grown from them either, they were
    looked at. `elsewhere` names candidates of its tournaments that are in another column. `drafts`
    are the candidates that are being written. `attempt` is above 1 where the strategy had gone
    back: what it grew then stands apart from what it had grown before."""

    depth: int
    unit: str
    growths: list[GrowthRound] = field(default_factory=list)
    cards: list[Card] = field(default_factory=list)
    contests: list[SelectionRound] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    passed: bool = False
    dropped: bool = False
    elsewhere: dict[str, str] = field(default_factory=dict)
    drafts: list[Card] = field(default_factory=list)
    attempt: int = 1
    again: bool = False  # there was a column of this stage in an earlier attempt

    @property
    def sampled(self) -> int:
        return sum(len(growth.chains) for growth in self.growths)

    @property
    def busy(self) -> bool:
        """Whether something of it is still going on."""
        growing = any(growth.pending for growth in self.growths)
        return growing or not all(contest.outcome for contest in self.contests)

    @property
    def matches(self) -> list[Match]:
        return [match for contest in self.contests for match in contest.matches]

    def card(self, id: str) -> Card | None:
        return next((card for card in self.cards if id == card.id or id in card.folded), None)

    def label(self, id: str) -> str:
        return card.label if (card := self.card(id)) else self.elsewhere.get(id, id)

    def pair(self, match: Match) -> str:
        """ "A beat B"."""
        return f"{self.label(match.winner)} beat {self.label(loser(match))}"

    @property
    def title(self) -> str:
        if self.unit == "sentence":
            return f"Sentence {self.depth}"
        if self.unit == "end":
            return "Whole response" if self.depth == 1 else "The rest"
        return f"{self.unit}, round {self.attempt}" if self.again else self.unit


@dataclass
class Figure:
    """All there is to draw. `live`: it goes on. What names a place in it begins with `anchor`,
    where it stands beside others."""

    started: Started
    finished: Finished | None
    failed: Failed | None
    columns: list[Column]
    remarks: list[str]
    pending: str
    usage: dict[Role, Usage]
    live: bool = False
    anchor: str = ""

    @property
    def answer(self) -> str | None:
        return self.finished.answer if self.finished else None

    @property
    def incomplete(self) -> str:
        """Why the answer is not whole; "" if it is, or there is none."""
        why = self.finished.incomplete if self.finished else ""
        return why and f"The answer is not complete. {why}"

    @property
    def confidence(self) -> str:
        """What the model's probe says of the answer; "" if there is none."""
        chance = self.finished.confidence if self.finished else None
        return "" if chance is None else f"Right with probability {chance:.2f}, by the probe."

    @property
    def ending(self) -> str:
        """Why there is no answer; "" if there is one, or may come."""
        if self.finished or self.live:
            return ""
        if self.failed:
            if self.failed.error in ("KeyboardInterrupt", "CancelledError"):
                return "Interrupted."
            return f"{self.failed.error}: {self.failed.message}".rstrip(": ")
        return "The trace breaks off here."


def read(trace: Trace) -> Figure:
    """Raises TraceError if the trace has no beginning, or a gap."""
    return drawn(trace.started, trace.fold())


def drawn(started: Started, fold: Fold, texts: Mapping[str, str] | None = None) -> Figure:
    """The figure of what was folded so far. `texts`, of a search that goes on: what each candidate
    that is being written reads by now (`Progress.texts`)."""
    live = texts is not None and not (fold.finished or fold.failed)
    drafts = _drafts(fold, texts or {}) if live else {}
    columns = _columns(fold, drafts)
    at = {growth.number: column for column in columns for growth in column.growths}
    remarks = [words.remark_text(remark, started.budget) for remark in fold.remarks]
    here: Column | None = None
    for round in fold.rounds:
        if isinstance(round, SelectionRound):
            found = [at[growth.number] for growth in round.growths]
            here = max(found, key=columns.index, default=here)
            (here.contests if found and here else []).append(round)
        else:
            here = at.get(round.number, here)
        said = [words.remark_text(remark, started.budget) for remark in round.remarks]
        (here.remarks if here else remarks).extend(said)
    left = [words.remark_text(cut, started.budget) for _, cut in fold.waiting]
    (here.remarks if here else remarks).extend(left)
    for column in columns:
        _fill(column, fold, live)
        column.drafts = [
            Card("", each) for g in column.growths for each in drafts.get(g.number, ())
        ]
    pending = sum(growth.wanted for growth in fold.growths.values() if growth.pending)
    figure = Figure(
        started,
        fold.finished,
        fold.failed,
        columns,
        remarks,
        f"{pending} more were being sampled." if pending else "",
        fold.spent,
        live,
    )
    _arrange(figure, fold)
    return figure


def _drafts(fold: Fold, texts: Mapping[str, str]) -> dict[int, list[Chain]]:
    """Who is being written, by the number of their round; of a round of which nothing has come yet,
    as many empty ones as were asked for."""
    found: dict[int, list[Chain]] = {}
    growths = [growth for _, growth in sorted(fold.growths.items())]
    for id, text in texts.items():
        parent = id.rpartition(".")[0]
        of = next((growth for growth in reversed(growths) if parent in growth.parents), None)
        if of is not None and id not in fold.chains:
            found.setdefault(of.number, []).append(_draft(id, text))
    for growth in growths:
        if growth.pending and growth.number not in found:
            each = range(growth.wanted // len(growth.parents))
            found[growth.number] = [_draft(f"{p}.new{i}", "") for p in growth.parents for i in each]
    return found


def _draft(id: str, text: str) -> Chain:
    return Chain(id, (Step(text, (), "", 0.0, 0, "length"),))


def _columns(fold: Fold, drafts: Mapping[int, list[Chain]]) -> list[Column]:
    """The growths that stand side by side: of the same unit and depth, if they grew before there
    was a selection among them, from the same parents, or met in one. Parents stand to the left."""
    columns: list[Column] = []
    home: dict[str, int] = {}
    judged: dict[int, set[int]] = {}  # the contests among the candidates of each growth
    for contest in fold.contests.values():
        for growth in contest.growths:
            judged.setdefault(growth.number, set()).add(contest.number)

    def together(column: Column, growth: GrowthRound) -> bool:
        if (column.depth, column.unit) != growth.place or column.attempt != growth.attempt:
            return False
        if any(growth.parents == other.parents for other in column.growths):
            return True
        held = {number for other in column.growths for number in judged.get(other.number, ())}
        met = held & judged.get(growth.number, set())
        return bool(met) or all(number > growth.number for number in held)

    for _, growth in sorted(fold.growths.items()):
        if not (growth.chains or growth.number in drafts):
            continue
        first = 1 + max((home.get(parent, -1) for parent in growth.parents), default=-1)
        places = (
            at for at in range(len(columns) - 1, first - 1, -1) if together(columns[at], growth)
        )
        if (at := next(places, None)) is None:
            at = len(columns)
            earlier = any(c.unit == growth.unit and c.attempt < growth.attempt for c in columns)
            columns.append(Column(*growth.place, attempt=growth.attempt, again=earlier))
        columns[at].growths.append(growth)
        home.update((chain.id, at) for chain in growth.chains)
    return columns


def _fill(column: Column, fold: Fold, live: bool) -> None:
    """Put a column's candidates on cards, and what its tournaments made of them. In one that goes
    on, who will be merged is taken for it: they were before it began."""
    column.cards = [
        Card("", chain, scores=fold.scores.get(chain.id, {}))
        for growth in column.growths
        for chain in growth.chains
    ]
    for event in (contest.outcome for contest in column.contests if contest.outcome):
        there = {card.id for card in column.cards}
        folded = {id for ids in event.merged.values() for id in ids} & there
        for card in column.cards:
            card.folded += tuple(id for id in event.merged.get(card.id, ()) if id in folded)
            card.unjudged = event.unjudged.get(card.id, card.unjudged)
            card.kept = card.kept or card.id in event.kept
        column.cards = [card for card in column.cards if card.id not in folded]
    if live and column.busy and column.contests:
        same: dict[tuple[str | None, str], Card] = {}
        for card in column.cards:
            first = same.setdefault((card.chain.parent, card.chain.text.strip()), card)
            first.folded += (card.id,) * (first is not card)
        column.cards = list(same.values())


def _arrange(figure: Figure, fold: Fold) -> None:
    """Letter the cards in the order they were sampled, then put each column in drawing order."""
    columns = figure.columns
    tip = figure.finished.chain if figure.finished else ""
    if not tip:
        kept = [c.outcome.kept for column in columns for c in column.contests if c.outcome]
        tip = kept[-1][0] if kept and kept[-1] else ""
    names: dict[str, tuple[int, str]] = {}  # the column and label of each id
    for at, column in enumerate(columns):
        parents = {card.chain.parent for card in (*column.cards, *column.drafts)}
        same = [c for c in columns[:at] if (c.depth, c.unit) == (column.depth, column.unit)]
        before = sum(len(other.cards) for other in same)
        for index, card in enumerate((*column.cards, *column.drafts), before):
            card.label = letter(index)
            ids = (card.id, *card.folded)
            names.update((id, (at, card.label)) for id in ids)
            card.on_path = any(tip == id or tip.startswith(f"{id}.") for id in ids)
            of, label = names.get(card.chain.parent or "", (at - 1, ""))
            if of != at - 1:
                card.parent = f"{columns[of].title} {label}"
            elif len(parents) > 1:
                card.parent = label
    path = [at for at, column in enumerate(columns) if any(card.on_path for card in column.cards)]
    grown = {card.chain.parent for column in columns for card in column.cards}
    for at, column in enumerate(columns):
        column.passed = at not in path and bool(path) and path[0] < at < path[-1]
        column.dropped = column.passed and not any(card.id in grown for card in column.cards)
        order = drawing_order(column)
        column.cards.sort(key=lambda card: order.get(card.id, len(order)))
        met = dict.fromkeys(id for match in column.matches for id in (match.first, match.second))
        there = {id: names[id] for id in met if id in names}
        column.elsewhere = {
            id: f"{columns[of].title} {label}" for id, (of, label) in there.items() if of != at
        }


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
