"""What there is to show of a search while it runs: one round at a time, as lines of rich text.

A round is one growth of candidates and the tournament held among them. `Board` takes events in
and gives lines out; it knows no terminal, so that it can be tested on hand-made events.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from rich.text import Text

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
    Progress,
    Scored,
    Selected,
    Started,
)
from cot_engine.core.match import Match
from cot_engine.core.usage import Usage
from cot_engine.escape import terminal
from cot_engine.show import words
from cot_engine.show.figure import letter, loser


@dataclass(frozen=True)
class Block:
    """Lines that are final and belong together. The first of a round's is its title."""

    kind: Literal["header", "round", "note"]
    lines: list[Text]


_MOST_CARDS, _MOST_MATCHES = 8, 12
_LONG_BEGINNING = 30  # characters
_INDENT = "    "


@dataclass
class Card:
    chain: Chain
    label: str
    count: int = 1
    fault: str = ""

    @property
    def key(self) -> tuple[str | None, str]:
        """Equal for candidates that will be merged."""
        return self.chain.parent, self.chain.text.strip()


@dataclass
class Round:
    """`names` gives the label of every candidate, the merged ones included."""

    unit: str
    parents: tuple[str, ...]
    wanted: int
    cards: list[Card] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    sampled: int = 0
    judging: bool = False
    matches: list[Match] = field(default_factory=list)
    outcome: Selected | None = None


class Board:
    """The state of the display. Give it each event; it returns what is final."""

    def __init__(self) -> None:
        self.started: Started | None = None
        self.round: Round | None = None
        self.progress: Progress | None = None  # inside what is being done
        self.usage: dict[str, Usage] = {}
        self.sentences = 0

    def take(self, event: Heard) -> list[Block]:
        if isinstance(event, Progress):
            self.progress = event
            return []
        if not isinstance(event, Judged | Notice | Cut):
            self.progress = None
        match event:
            case Started():
                self.started = event
                return [Block("header", self._header(event))]
            case Growing():
                return self._growing(event)
            case Grown():
                self._charge("generate", event.usage)
                self._grown(event)
            case Judging() if self.round:
                self.round.judging = True
            case Judged() if self.round:
                self.round.matches.append(event.match)
            case Selected():
                self._charge("judge", event.usage)
                return self._selected(event)
            case Scored():
                self._charge("score", event.usage)
            case Cut():
                budget = self.started.budget if self.started else None
                return _note(words.cut_text(event, budget))
            case Notice():
                return _note(event.text)
            case Finished() | Failed():
                if isinstance(event, Finished):
                    self.usage = dict(event.usage)
                return self.leave()
        return []

    def leave(self) -> list[Block]:
        """The current round as it stands, if there is one; it is over."""
        lines = self.lines()
        self.round = None
        return [Block("round", lines)] if lines else []

    def lines(self) -> list[Text]:
        """The current round as it stands."""
        return [] if self.round is None or not self.round.cards else self._draw(self.round)

    def status(self) -> str:
        """What is being done at the moment."""
        held, far = self.round, self.progress
        if held is None and far is None:
            return "Thinking" if self.started else "Preparing"
        if far is not None and far.doing == "scoring":
            return _said(terminal(f"Scoring by {far.unit}"), _tokens(far))
        title = terminal(self._title(held)) if held else _of_unit(far.unit)  # type: ignore[union-attr]
        if far.doing == "judging" if far is not None else held.judging:  # type: ignore[union-attr]
            return _said(f"Judging {title}", _matches_done(far, held), _tokens(far))
        return _said(f"Writing {title}", _candidates_done(far, held), _tokens(far))

    def cost(self) -> str:
        """ "generate 1,204 tokens 0.8 GFLOP · judge 2,410 tokens 1.1 GFLOP"."""
        parts = []
        for role, usage in self.usage.items():
            if usage.tokens:
                flops = f" {words.number(usage.flops)}FLOP" if usage.flops else ""
                parts.append(f"{role} {usage.tokens:,} tokens{flops}")
        return " · ".join(parts)

    # --- events ---

    def _charge(self, role: str, usage: Usage) -> None:
        self.usage[role] = self.usage.get(role, Usage()) + usage

    def _growing(self, event: Growing) -> list[Block]:
        old = self.round
        if old and old.outcome is None and (old.unit, old.parents) == (event.unit, event.parents):
            old.wanted, old.judging = event.n * len(event.parents), False
            return []  # sampled once more, because nothing opened the stage
        over = self.leave()
        self.sentences += event.unit == "sentence"
        self.round = Round(event.unit, event.parents, event.n * len(event.parents))
        return over

    def _grown(self, event: Grown) -> None:
        if self.round is None:
            self.round = Round(event.unit, (), len(event.chains))
        held = self.round
        known = {card.key: card for card in held.cards}
        for chain in event.chains:
            held.sampled += 1
            card = Card(chain, letter(len(held.cards)), chain.count)
            if (same := known.get(card.key)) is not None:
                same.count += chain.count
                held.names[chain.id] = same.label
                continue
            if chain.last and chain.last.faults:
                card.fault = chain.last.faults[0].partition(":")[0]
            known[card.key] = card
            held.cards.append(card)
            held.names[chain.id] = card.label

    def _selected(self, event: Selected) -> list[Block]:
        if self.round is None or not any(id in self.round.names for id in event.candidates):
            return []  # among chains of earlier rounds, as after voting: nothing new to show
        self.round.outcome, self.round.judging = event, False
        self.round.matches = list(event.matches)
        return self.leave()

    # --- lines ---

    def _header(self, event: Started) -> list[Text]:
        info = event.backend
        how = " ".join([event.strategy, *(f"{k}={v}" for k, v in event.parameters.items())])
        judge = f"judge {event.judge}, {event.tournament}"
        budget = f" · {event.budget}" if event.budget else ""
        model = f"{_brief(info.model)} on {info.device}, {info.dtype} · "
        line = Text(terminal(f"{model}{how} · {judge}{budget}"), "dim")
        pictures = ", ".join(
            f"{_brief(image.source)} {image.size[0]} x {image.size[1]}" for image in event.images
        )
        question = Text(terminal(" ".join(event.question.split())), "bold")
        if pictures:
            question.append(f"  [{terminal(pictures)}]", "not bold dim")
        return [line, question]

    def _title(self, held: Round) -> str:
        if held.unit == "sentence":
            return f"sentence {self.sentences}"
        return _of_unit(held.unit)

    def _draw(self, held: Round) -> list[Text]:
        title = Text(terminal(self._title(held).removeprefix("the ").upper()), "bold cyan")
        counts = [f"{held.sampled} candidate{'s' * (held.sampled != 1)}"]
        if len(held.cards) < held.sampled:
            counts.append(f"{len(held.cards)} distinct")
        if held.matches:
            counts.append(f"{len(held.matches)} match{'es' * (len(held.matches) != 1)}")
        title.append(f"  {', '.join(counts)}", "not bold dim")
        kept = [held.names.get(id, "") for id in held.outcome.kept] if held.outcome else []
        first = sorted(held.cards, key=lambda card: card.label not in kept)[:_MOST_CARDS]
        lines = [title]
        shown = [card for card in held.cards if card in first]
        for card, said in zip(
            shown, _differing([self._content(c.chain) for c in shown]), strict=True
        ):
            chosen = card.label in kept or (not kept and len(held.cards) == 1)
            lines.append(self._card(card, said, chosen))
        if len(held.cards) > _MOST_CARDS:
            lines.append(Text(f"{_INDENT}and {len(held.cards) - _MOST_CARDS} more", "dim"))
        return lines + self._matches(held)

    def _card(self, card: Card, said: str, chosen: bool) -> Text:
        line = Text("▸ " if chosen else "  ", "bold green")
        line.append(f"{card.label:<2}", "bold green" if chosen else "bold")
        mean = round(card.chain.likelihood(1), 2) + 0.0  # no "-0.00"
        line.append(f"{mean:6.2f}  ".replace("-", "−"), "dim")
        if card.count > 1:
            line.append(f"×{card.count} ", "cyan")
        if card.fault:
            line.append(f"{card.fault}: ", "yellow")
        line.append(said, "" if chosen else "dim")
        return line

    def _content(self, chain: Chain) -> str:
        """What was written, in one line, without the tags."""
        text = chain.last.text if chain.last else ""
        if self.started:
            text = " ".join(said for _, said in words.pieces(text, self.started.plan))
        return terminal(" ".join(text[:2000].split()))

    def _matches(self, held: Round) -> list[Text]:
        said = [_match(match, held.names) for match in held.matches[-_MOST_MATCHES:]]
        if len(held.matches) > _MOST_MATCHES:
            said.insert(0, f"{len(held.matches) - _MOST_MATCHES} earlier matches")
        lines: list[str] = []
        for text in said:
            if lines and len(lines[-1]) + len(text) + 3 <= 76:
                lines[-1] += f" · {text}"
            else:
                lines.append(_INDENT + text)
        return [Text(line, "dim") for line in lines]


def _of_unit(unit: str) -> str:
    """What a unit is called: a stage by its tag. None is judged where whole responses are."""
    return terminal({"end": "the response", "": "whole responses"}.get(unit, unit))


def _said(doing: str, *parts: str) -> str:
    said = ", ".join(filter(None, parts))
    return f"{doing}: {said}" if said else doing


def _candidates_done(far: Progress | None, held: Round | None) -> str:
    wanted = far.of if far is not None else held.wanted if held else 0
    if wanted < 2:
        return ""
    return f"{far.done} of {wanted} candidates" if far and far.tokens else f"{wanted} candidates"


def _matches_done(far: Progress | None, held: Round | None) -> str:
    done = far.done if far is not None else len(held.matches) if held else 0
    if far is not None and far.of:
        most = "at most " if far.at_most else ""
        return f"{done} of {most}{far.of} match{'es' * (far.of != 1)}"
    return f"{done} match{'es' * (done != 1)} so far" if done else ""


def _tokens(far: Progress | None) -> str:
    """What the model wrote for it so far, and how fast."""
    if far is None or not far.tokens:
        return ""
    rate = far.tokens_per_second
    fast = f", {rate:,.{0 if rate >= 10 else 1}f} a second" if rate else ""
    return f"{far.tokens:,} token{'s' * (far.tokens != 1)}{fast}"


def _differing(texts: list[str]) -> list[str]:
    """The texts without a long beginning that all share: one line of each must tell them apart."""
    columns = enumerate(zip(*texts, strict=False))
    same = next((at for at, column in columns if len(set(column)) > 1), 0)
    cut = texts[0].rfind(" ", 0, same) + 1 if texts else 0
    if cut < _LONG_BEGINNING:
        return texts
    return [f"… {text[cut:]}" for text in texts]


def _match(match: Match, names: dict[str, str]) -> str:
    won, lost = (names.get(id, id) for id in (match.winner, loser(match)))
    if match.outcome == "tie":
        how = {"likelihood": "likelier", "draw": "by lot"}.get(match.broken_by, "")
        sign = "=" if all(verdict.readable for verdict in match.verdicts) else "?"
        return f"{won} {sign} {lost}, {won} {how}".rstrip()
    margin = match.margin if match.winner == match.first else -match.margin
    return f"{won} beat {lost}" + (f" by {margin:.2f}" if margin else "")


def _brief(path: str) -> str:
    """The end of a long path: "street.png"."""
    return path if len(path) <= 24 else path.rstrip("/").rpartition("/")[2][-40:]


def _note(text: str) -> list[Block]:
    return [Block("note", [Text(terminal(text), "yellow")])]
