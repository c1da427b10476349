"""The pieces of the report's page: tables that scroll in their own box, plots, folded parts.

Cells are HTML; whatever comes from a model, a data set or a grid is escaped by who makes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cot_engine.escape import html as esc
from cot_engine.report.panels import Plot
from cot_engine.statistics import Interval


def table(
    title: str,
    caption: str,
    heads: Sequence[str],
    rows: Iterable[Sequence[str] | str],
    *,
    kind: str = "",
) -> str:
    """A table; its rows begin with their header. `title` is read out, the caption is seen.

    A head or cell that begins with "<td" or "<th" is taken as it is written.
    """
    head = "".join(_cell(text, '<th scope="col">', "</th>") for text in heads)
    body = "\n".join(row if isinstance(row, str) else line(row) for row in rows)
    return box(title, caption, f"<tr>{head}</tr>", body, kind)


def box(title: str, caption: str, head: str, body: str, kind: str = "") -> str:
    """A table in a box of its own, in which it may be wider than a phone, below what is said
    about it. `title` is for those who hear it."""
    return (
        f'<p class="note">{caption}</p>\n'
        f'<div class="scroll {kind}" tabindex="0" role="region" aria-label="{title}">'
        f'<table><caption class="sr">{title}</caption>\n'
        f"<thead>{head}</thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def line(cells: Sequence[str], kind: str = "") -> str:
    """A row; the first cell is its header."""
    head = _cell(cells[0], '<th scope="row">', "</th>")
    rest = "".join(_cell(text, "<td>", "</td>") for text in cells[1:])
    return f'<tr class="{kind}">{head}{rest}</tr>' if kind else f"<tr>{head}{rest}</tr>"


def _cell(text: str, start: str, end: str) -> str:
    return text if text.startswith(("<td", "<th")) else f"{start}{text}{end}"


def text_cell(text: str) -> str:
    return f'<td class="text">{text}</td>'


def bar(found: Interval, low: float, high: float) -> str:
    """An interval as a line with a dot, on a scale from low to high."""

    def place(value: float) -> str:
        share = (value - low) / (high - low) if high > low else 0.5
        return f"{100 * min(1, max(0, share)):.1f}%"

    if found.estimate != found.estimate:
        return '<td class="bar"></td>'
    at = f"--a:{place(found.low)};--m:{place(found.estimate)};--b:{place(found.high)}"
    return f'<td class="bar"><i style="{at}"></i></td>'


def plot(drawn: Plot) -> str:
    """A plot for every width, or the sentence that says why there is none."""
    if drawn.absent:
        return f'<p class="absent-plot">{esc(drawn.absent)}</p>'
    return (
        f'<figure class="plot" id="plot-{drawn.name}">\n<div class="wide">{drawn.wide}</div>\n'
        f'<div class="narrow">{drawn.narrow}</div>\n<figcaption>{esc(drawn.note)}</figcaption>'
        "\n</figure>"
    )


def fold(summary: str, content: str, kind: str = "") -> str:
    """Folded away on a screen. Kind "open" is shown in print, any other is not."""
    return f'<details class="{kind}"><summary>{summary}</summary>\n{content}\n</details>'


def section(id: str, title: str, content: str) -> str:
    return f'<section id="{id}">\n<h2>{title}</h2>\n{content}\n</section>'
