"""What there is to show of a search while it runs: one panel at a time, as lines of rich text.

A panel is candidates that grow side by side and the tournaments held among them: of one round or a
few, and several panels where a strategy asks for several things at once. `Board` takes events in
and gives lines out; it knows no terminal, so that it can be tested on hand-made events.
"""

from __future__ import annotations

from dataclasses import dataclass
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
    Retraced,
    Selected,
    Started,
)
from cot_engine.core.fold import Fold, GrowthRound, SelectionRound
from cot_engine.core.match import Match
from cot_engine.escape import terminal
from cot_engine.show import words
from cot_engine.show.figure import Card, Column, letter, loser
from cot_engine.show.words import plural


@dataclass(frozen=True)
class Block:
    """Lines that are final and belong together. The first of a round's is its title."""

    kind: Literal["header", "round", "note"]
    lines: list[Text]


_MOST_CARDS, _MOST_MATCHES = 8, 12
_LONG_BEGINNING = 30  # characters
_INDENT = "    "
_WIDTH = 70  # characters


class Board:
    """The state of the display. Give it each event; it returns what is final.

    `open` are the panels that are not: columns of the figure, as far as they are there; one of a
    selection among candidates that were shown before has no `growths`. `names` gives the label of
    every candidate: no two of a unit and depth have the same, but for those with the same text.
    """

    def __init__(self) -> None:
        self.fold = Fold()
        self.open: list[Column] = []
        self.progress: Progress | None = None  # inside what is being done
        self.names: dict[str, str] = {}
        self.lettered: dict[tuple[int, str], int] = {}  # the last letter of each place

    @property
    def started(self) -> Started | None:
        return self.fold.started

    def take(self, event: Heard) -> list[Block]:
        if isinstance(event, Progress):
            self.progress = event
            return []
        if not isinstance(event, Judged | Notice | Cut):
            self.progress = None
        round = self.fold.take(event)
        match event, round:
            case Started(), _:
                return [Block("header", self._header(event))]
            case Growing(), GrowthRound():
                return self._growing(round)
            case Grown(), GrowthRound():
                over = self._growing(round)
                self._grown(round, len(event.chains))
                return over
            case Judging() | Judged(), SelectionRound():
                self._among(round)
            case Selected(), SelectionRound():
                panel = self._among(round)
                return self._leave(panel) if panel and self._over(panel) else []
            case Retraced(), _:
                return [*self.leave(), *_note(words.retraced_text(event))]
            case Cut(), _:
                return _note(words.cut_text(event, self.started.budget if self.started else None))
            case Notice(), _:
                return _note(event.text)
            case Finished() | Failed(), _:
                return self.leave()
        return []

    def leave(self) -> list[Block]:
        """What is open as it stands; it is over."""
        return self._leave(*self.open)

    def lines(self) -> list[Text]:
        """What is open as it stands, and the ends of what is being written."""
        drawn = [line for panel in self.open for line in self._draw(panel)]
        texts = self.progress.texts if self.progress is not None else {}
        new = (text for id, text in texts.items() if id not in self.fold.chains)
        said = (self._plain(words.so_far(text)[-2000:]) for text in new)
        ends = [Text(_INDENT + _end(text), "dim") for text in said if text]
        return drawn + ends[:_MOST_CARDS]

    def status(self) -> str:
        """What is being done at the moment."""
        far = self.progress
        if not self.open and far is None:
            return "Thinking" if self.started else "Preparing"
        if far is not None and far.doing == "scoring":
            return _said(terminal(f"Scoring by {far.unit}"), _tokens(far))
        of_it = [panel for panel in self.open if far and panel.unit == far.unit]
        held = next(reversed(of_it or self.open), None)
        title = terminal(_title(held)) if held else _of_unit(far.unit if far else "")
        judging = held is not None and any(c.outcome is None for c in held.contests)
        if far.doing == "judging" if far is not None else judging:
            return _said(f"Judging {title}", _matches_done(far, held), _tokens(far))
        return _said(f"Writing {title}", _candidates_done(far, held), _tokens(far))

    def cost(self) -> str:
        """ "generate 1,204 tokens 0.8 GFLOP · judge 2,410 tokens 1.1 GFLOP"."""
        parts = []
        for role, usage in self.fold.spent.items():
            if usage.tokens:
                flops = f" {words.number(usage.flops)}FLOP" if usage.flops else ""
                parts.append(f"{role} {usage.tokens:,} tokens{flops}")
        return " · ".join(parts)

    # --- events ---

    def _leave(self, *panels: Column) -> list[Block]:
        self.open = [panel for panel in self.open if not any(panel is other for other in panels)]
        return [Block("round", lines) for panel in panels if (lines := self._draw(panel))]

    def _growing(self, growth: GrowthRound) -> list[Block]:
        """Put a round on a panel: its own, unless others grow beside it and none is judged yet."""
        for panel in reversed(self.open):
            if any(growth is other for other in panel.growths):
                return []
            if (panel.depth, panel.unit) == growth.place and not panel.contests:
                panel.growths.append(growth)
                return []
        over = self._leave(*(panel for panel in self.open if not panel.busy))
        self.open.append(Column(*growth.place, [growth]))
        return over

    def _grown(self, growth: GrowthRound, many: int) -> None:
        panel = next(p for p in self.open if any(growth is other for other in p.growths))
        known = {_key(card.chain): card for card in panel.cards}
        for chain in growth.chains[len(growth.chains) - many :]:
            if (same := known.get(_key(chain))) is not None:
                same.folded += (chain.id,)
                self.names[chain.id] = same.label
                continue
            if chain.id not in self.names:
                index = self.lettered[growth.place] = self.lettered.get(growth.place, -1) + 1
                self.names[chain.id] = letter(index)
            known[_key(chain)] = card = Card(self.names[chain.id], chain)
            panel.cards.append(card)

    def _among(self, contest: SelectionRound) -> Column | None:
        """The panel of a tournament: where its candidates are, or one of its own where they were
        shown before and there is something new to show."""
        for panel in reversed(self.open):
            if any(contest is other for other in panel.contests):
                return panel
            if any(mine is its for mine in panel.growths for its in contest.growths):
                panel.contests.append(contest)
                return panel
        if not contest.growths or (contest.outcome and not contest.matches):
            return None
        chains = [self.fold.chains[id] for id in contest.entrants if id in self.names]
        cards = [Card(self.names[chain.id], chain) for chain in chains]
        self.open.append(Column(*contest.growths[-1].place, [], cards, [contest]))
        return self.open[-1]

    def _over(self, panel: Column) -> bool:
        """Whether all its candidates were in a tournament: beams may be judged one by one."""
        judged = {id for contest in panel.contests for id in contest.candidates}
        grown = (chain.id for growth in panel.growths for chain in growth.chains)
        return not panel.busy and judged.issuperset(grown)

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

    def _draw(self, held: Column) -> list[Text]:
        if not held.cards:
            return []
        title = Text(terminal(_title(held).removeprefix("the ").upper()), "bold cyan")
        counts = [plural(held.sampled, "candidate")] * bool(held.growths)
        if len(held.cards) < held.sampled:
            counts.append(f"{len(held.cards)} distinct")
        if held.matches:
            counts.append(plural(len(held.matches), "match", "matches"))
        title.append(f"{self._from(held)}  {', '.join(counts)}", "not bold dim")
        over = [contest.outcome for contest in held.contests if contest.outcome]
        kept = [self.names.get(id, "") for outcome in over for id in outcome.kept]
        first = sorted(held.cards, key=lambda card: card.label not in kept)[:_MOST_CARDS]
        lines = [title]
        shown = [card for card in held.cards if card in first]
        for card, said in zip(
            shown, _differing([self._content(card) for card in shown]), strict=True
        ):
            chosen = card.label in kept or (not kept and len(held.cards) == 1)
            lines.append(self._card(card, said, chosen))
        if len(held.cards) > _MOST_CARDS:
            lines.append(Text(f"{_INDENT}and {len(held.cards) - _MOST_CARDS} more", "dim"))
        return lines + self._matches(held)

    def _from(self, held: Column) -> str:
        """ " from B" where the strategy went on from candidates that no tournament chose."""
        parents = dict.fromkeys(id for growth in held.growths for id in growth.parents)
        kept = {id for _, event in self.fold.selections for id in event.kept}
        growths = [self.fold.grown_in[id] for id in parents if id in self.names and id not in kept]
        if all(chain.id in parents for growth in growths for chain in growth.chains):
            return ""
        return f" from {' '.join(self.names[id] for id in parents if id in self.names)}"

    def _card(self, card: Card, said: str, chosen: bool) -> Text:
        line = Text("▸ " if chosen else "  ", "bold green")
        line.append(f"{card.label:<2}", "bold green" if chosen else "bold")
        mean = round(card.chain.likelihood(1), 2) + 0.0  # no "-0.00"
        line.append(f"{mean:6.2f}  ".replace("-", "−"), "dim")
        if card.count > 1:
            line.append(f"×{card.count} ", "cyan")
        for fault in card.step.faults[:1]:
            line.append(f"{fault.partition(':')[0]}: ", "yellow")
        line.append(said, "" if chosen else "dim")
        return line

    def _content(self, card: Card) -> str:
        """What was written, in one line."""
        return self._plain(card.step.text)

    def _plain(self, text: str) -> str:
        """A text in one line, without its tags."""
        if self.started:
            text = " ".join(said for _, said in words.pieces(text, self.started.plan))
        return terminal(" ".join(text[:2000].split()))

    def _matches(self, held: Column) -> list[Text]:
        said = [_match(match, self.names) for match in held.matches[-_MOST_MATCHES:]]
        if len(held.matches) > _MOST_MATCHES:
            said.insert(0, f"{len(held.matches) - _MOST_MATCHES} earlier matches")
        lines: list[str] = []
        for text in said:
            if lines and len(lines[-1]) + len(text) + 3 <= 76:
                lines[-1] += f" · {text}"
            else:
                lines.append(_INDENT + text)
        return [Text(line, "dim") for line in lines]


def _key(chain: Chain) -> tuple[str | None, str]:
    """Equal for candidates that will be merged."""
    return chain.parent, chain.text.strip()


def _title(held: Column) -> str:
    return f"sentence {held.depth}" if held.unit == "sentence" else _of_unit(held.unit)


def _of_unit(unit: str) -> str:
    """What a unit is called: a stage by its tag. None is judged where whole responses are."""
    return terminal({"end": "the response", "": "whole responses"}.get(unit, unit))


def _said(doing: str, *parts: str) -> str:
    said = ", ".join(filter(None, parts))
    return f"{doing}: {said}" if said else doing


def _candidates_done(far: Progress | None, held: Column | None) -> str:
    growths = held.growths if held else []
    going = [growth for growth in growths if growth.pending] or growths[-1:]
    wanted = far.of if far is not None else sum(growth.wanted for growth in going)
    if wanted < 2:
        return ""
    return f"{far.done} of {wanted} candidates" if far and far.tokens else f"{wanted} candidates"


def _matches_done(far: Progress | None, held: Column | None) -> str:
    done = far.done if far is not None else len(held.matches) if held else 0
    if far is not None and far.of:
        most = "at most " if far.at_most else ""
        return f"{done} of {most}{plural(far.of, 'match', 'matches')}"
    return f"{plural(done, 'match', 'matches')} so far" if done else ""


def _tokens(far: Progress | None) -> str:
    """What the model wrote for it so far, and how fast."""
    if far is None or not far.tokens:
        return ""
    rate = far.tokens_per_second
    fast = f", {rate:,.{0 if rate >= 10 else 1}f} a second" if rate else ""
    return f"{plural(far.tokens, 'token')}{fast}"


def _differing(texts: list[str]) -> list[str]:
    """The texts without a long beginning that all share: one line of each must tell them apart."""
    columns = enumerate(zip(*texts, strict=False))
    same = next((at for at, column in columns if len(set(column)) > 1), 0)
    cut = texts[0].rfind(" ", 0, same) + 1 if texts else 0
    if cut < _LONG_BEGINNING:
        return texts
    return [f"… {text[cut:]}" for text in texts]


def _end(text: str) -> str:
    """What was written last of a long text: the rest of its line would not move."""
    return text if len(text) <= _WIDTH else f"… {text[-_WIDTH:]}"


def _match(match: Match, names: dict[str, str]) -> str:
    won, lost = (names.get(id) or terminal(id) for id in (match.winner, loser(match)))
    if match.outcome == "tie":
        how = {"likelihood": "likelier", "draw": "by lot"}.get(match.broken_by, "")
        sign = "=" if all(verdict.readable for verdict in match.verdicts) else "?"
        return f"{won} {sign} {lost}, {won} {how}".rstrip()
    margin = match.margin if match.winner == match.first else -match.margin
    return f"{won} beat {lost}" + (f" by {margin:.2f}" if margin else "")


def _brief(path: str) -> str:
    """The end of a long path: "street.png"; of an address what is behind it is left out."""
    if "://" in path:
        return path.partition("#")[0]
    return path if len(path) <= 24 else path.rstrip("/").rpartition("/")[2][-40:]


def _note(text: str) -> list[Block]:
    return [Block("note", [Text(terminal(text), "yellow")])]
