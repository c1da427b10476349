"""A recorded search as a tree for the terminal: a rail down the left, a knot for each stage."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from cot_engine.core.grammar import conclusion
from cot_engine.core.match import Match
from cot_engine.core.trace import Trace
from cot_engine.core.usage import Usage
from cot_engine.escape import visible
from cot_engine.show import captions, words
from cot_engine.show import figure as fig
from cot_engine.show.figure import Card, Column, Figure

_LINES = 2  # lines of a candidate's text that are shown; the one on the path gets twice as many
_WIDEST = 110  # longer lines are hard to read


def render_tree(trace: Trace, width: int | None = None) -> Tree:
    """A rich renderable of at most `width` columns (the console's, if None).

    Raises TraceError if the trace has no beginning.
    """
    return Tree(fig.read(trace), width)


@dataclass(frozen=True)
class Tree:
    figure: Figure
    width: int | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = min(self.width or _WIDEST, options.max_width)
        for line in _lines(console, self.figure, max(width, 40)):
            line.truncate(width, overflow="ellipsis")
            line.no_wrap = True
            yield line


def _lines(console: Console, figure: Figure, width: int) -> Iterator[Text]:
    def wrapped(head: Text, rail: str, text: str, style: str = "", most: int = 99):
        yield from _wrapped(console, head, rail, text, style, width, most)

    started = figure.started
    yield from wrapped(Text(), "", started.question, "bold", 6)
    for image in started.images:
        said = ", ".join([f"{image.source}, {image.size[0]} × {image.size[1]}", *image.notes])
        yield from wrapped(Text(), "", said, "dim")
    yield from wrapped(Text(), "", captions.strategy_text(figure), "dim")
    for remark in figure.remarks:
        yield from wrapped(Text("! ", "yellow"), "", remark, "yellow")
    yield Text()
    for column in figure.columns:
        yield Text.assemble(
            ("┬ " if column is figure.columns[0] else "┼ "),
            (visible(column.title), "bold"),
            ("  " + captions.column_text(column), "dim"),
        )
        last = column is figure.columns[-1]
        for answer, cards in fig.votes(figure) if last else ():
            head = Text.assemble("│   ", (f"{len(cards):2} for ", "dim"))
            yield from wrapped(head, "│", f"{answer}  ({' '.join(c.label for c in cards)})", "", 1)
        labels = max((len(visible(_label(card))) for card in column.cards), default=0)
        for card in column.cards:
            yield from _card(wrapped, figure, column, card, labels)
        for match in column.matches:
            yield from wrapped(_match(column, match), "│", words.tie_text(match), "yellow")
        for remark in column.remarks:
            yield from wrapped(Text.assemble("│   ", ("! ", "yellow")), "│", remark, "yellow")
        yield Text("│")
    if figure.answer is not None:
        yield from wrapped(Text("╰ answer  ", "bold"), "", figure.answer, "bold cyan", 12)
        if figure.confidence:
            yield from wrapped(Text("│   ", "dim"), "", figure.confidence, "dim")
        if figure.incomplete:
            yield from wrapped(Text("! ", "yellow"), "", figure.incomplete, "yellow")
    else:
        said = " ".join(filter(None, (figure.ending, figure.pending)))
        yield from wrapped(Text("╳ no answer  ", "bold"), "", said, "red")
    yield Text()
    yield from _cost(figure)
    if started.budget is not None:
        yield from wrapped(Text("budget  "), "", captions.budget_text(figure))
    model = started.backend
    said = f"{model.model} ({model.architecture}) on {model.device}, {model.dtype}; {model.digest}"
    yield from wrapped(Text("model   ", "dim"), "", said, "dim")


def _wrapped(
    console: Console, head: Text, rail: str, text: str, style: str, width: int, most: int
) -> Iterator[Text]:
    """`text` on at most `most` lines behind `head`; the lines after the first keep the rail."""
    room = max(16, width - head.cell_len)
    flat = " ".join(visible(text).split())
    lines = list(Text(flat, style).wrap(console, room)) or [Text()]
    if len(lines) > most:
        rest = " ".join(line.plain.strip() for line in lines[most - 1 :])
        cut = Text(rest, style)
        cut.truncate(room, overflow="ellipsis")
        lines[most - 1 :] = [cut]
    indent = Text(rail.ljust(head.cell_len))
    for number, line in enumerate(lines):
        line.rstrip()
        whole = Text.assemble(indent if number else head, line)
        whole.rstrip()
        yield whole


def _label(card: Card) -> str:
    parts = [card.label, f"×{card.count}" if card.count > 1 else ""]
    parts.append(f"from {card.parent}" if card.parent else "")
    return " ".join(filter(None, parts))


def _card(wrapped, figure: Figure, column: Column, card: Card, labels: int) -> Iterator[Text]:
    """A candidate. Of a whole response only the one on the path shows more than its answer."""
    strong = "bold cyan" if card.on_path else ""
    quiet = "" if card.on_path else "dim" if card.unjudged else ""
    logprob = words.logprob_text(card.chain.likelihood(1)).rjust(6)
    scores = max(len(other.score) for other in column.cards)
    head = Text.assemble(
        ("● " if card.on_path else "│ ", strong),
        (visible(_label(card)).ljust(labels), strong or "bold"),
        (f"  {logprob}  ", "dim"),
        (f"{card.score.rjust(scores)}  " if scores else "", strong),
    )
    most = 2 * _LINES if card.on_path else _LINES
    parts = words.pieces(card.step.text, figure.started.plan)
    if column.unit == "end" and len(parts) > 1 and card.on_path:
        for number, (stage, text) in enumerate(parts):
            indent = Text("│".ljust(head.cell_len))
            before = Text.assemble(indent if number else head, (f"{visible(stage)} ", "dim"))
            yield from wrapped(before, "│", text, quiet, most)
    else:
        text = " ".join(text for _, text in parts)
        if column.unit == "end" and len(parts) > 1:
            text = conclusion(card.step.text, figure.started.plan)
        yield from wrapped(head, "│", text or "(nothing)", quiet, most)
    for fault in card.step.faults:
        said = words.fault_text(fault) + (" (not judged)" if card.unjudged == fault else "")
        yield from wrapped(Text("│".ljust(head.cell_len)), "│", said, "red")


def _match(column: Column, match: Match) -> Text:
    text = Text.assemble("│   ", (visible(column.pair(match)), "dim"))
    for margin in words.margins(match):
        style = "yellow" if margin[0] in "−?=" else ""
        text.append(f"  {margin:>5}", style)
    return text.append("  ")


def _cost(figure: Figure) -> Iterator[Text]:
    total = sum(figure.usage.values(), Usage())
    rows = [("cost", list(words.USAGE_HEADS))]
    rows += [(role, words.usage_cells(usage)) for role, usage in figure.usage.items()]
    rows.append(("all", words.usage_cells(total)))
    widths = [max(len(cells[i]) for _, cells in rows) for i in range(len(words.USAGE_HEADS))]
    name = max(len(role) for role, _ in rows)
    for number, (role, cells) in enumerate(rows):
        line = "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        yield Text(f"{role.ljust(name)}  {line}", "dim" if number == 0 else "")
