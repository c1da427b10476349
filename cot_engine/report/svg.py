"""Drawings in SVG that stand in a page: text stays text, colours are the page's.

Everything is measured in CSS pixels from the upper left corner.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from itertools import accumulate
from statistics import fmean
from typing import Any

from cot_engine.escape import visible
from cot_engine.show.templates import part

WIDE, NARROW = 880, 328  # of a page on a screen or on paper, and on a phone
SIZE = 11.5  # of text
BOLD = 1.12  # how much wider bold text is
INK, SOFT, RULE, PAPER = (f"var(--{name})" for name in ("ink", "soft", "rule", "paper"))
SERIES = tuple(f"var(--c{i})" for i in range(1, 11))
"""Of strategies, in a report: who has which, `looks` says."""
_SHAPES = {  # around 0, 0, of half-width 1
    "circle": "M-1 0A1 1 0 1 1 1 0A1 1 0 1 1-1 0Z",
    "square": "M-.9-.9H.9V.9H-.9Z",
    "diamond": "M0-1.3L1.3 0L0 1.3L-1.3 0Z",
    "up": "M0-1.3L1.13.65H-1.13Z",
    "down": "M0 1.3L1.13-.65H-1.13Z",
    "pentagon": "M0-1.1L1.05-.34L.65.89H-.65L-1.05-.34Z",
    "hexagon": "M.55-.95L1.1 0L.55.95H-.55L-1.1 0L-.55-.95Z",
    "star": "M0-1.3L.32-.44L1.2-.4L.52.17L.74 1L0 .55L-.74 1L-.52.17L-1.2-.4L-.32-.44Z",
    "plus": "M-1 0H1M0-1V1",
    "cross": "M-.7-.7L.7.7M-.7.7L.7-.7",
}
MARKERS = tuple(_SHAPES)[:7]
"""Beside the colours: a series is told from the others without them."""


class Drawing:
    """Shapes on a sheet of this size, the later above the earlier. `named` are what any shape may
    have: an `id`, and what is `said` when it is pointed at."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.shapes: list[dict[str, Any]] = []

    def svg(self, name: str, label: str, style: str = "") -> str:
        """The drawing as an element, markup. `name` begins its ids; `label` is read out; `style`
        makes it a file that stands alone."""
        return part("report/drawing.svg.jinja", "drawing", name, label, self, style)

    def add(self, tag: str, text: str = "", *, id: str = "", said: str = "", **how: Any) -> None:
        """An element; attributes are written with "_" for "-", and none is written that is ""."""
        shown = {
            key.replace("_", "-"): round(value, 2) if isinstance(value, float) else value
            for key, value in how.items()
            if value != ""
        }
        self.shapes.append({"tag": tag, "text": text, "id": id, "said": said, "attributes": shown})

    def line(self, points: Sequence[tuple[float, float]], color: str, width: float = 1,
             dashes: str = "", **named: str) -> None:  # fmt: skip
        """A line through these points."""
        path = "M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in points)
        self.add("path", d=path, fill="none", stroke=color, stroke_width=width,
                 stroke_dasharray=dashes, **named)  # fmt: skip

    def box(self, x: float, y: float, width: float, height: float, color: str, fill: float = 1,
            **named: str) -> None:  # fmt: skip
        """A box with an edge of its colour; `fill` says how much of it is inside, from 0 to 1."""
        self.add("rect", x=x, y=y, width=width, height=height, fill=color, fill_opacity=fill,
                 stroke=color, **named)  # fmt: skip

    def mark(self, shape: str, x: float, y: float, color: str, size: float = 7,
             hollow: bool = False, **named: str) -> None:  # fmt: skip
        """A marker with its middle there."""
        place = f"translate({x:.2f} {y:.2f}) scale({size / 2})"
        self.add("path", d=_SHAPES[shape], fill=PAPER if hollow else color, stroke=color,
                 stroke_width=1.5, vector_effect="non-scaling-stroke", transform=place,
                 **named)  # fmt: skip

    def text(self, x: float, y: float, said: str, color: str = INK, anchor: str = "start",
             size: float = SIZE, **how: Any) -> None:  # fmt: skip
        """A text whose middle is at that height; none where there is nothing to say."""
        if said:
            self.add("text", said, x=x, y=y + 0.36 * size, fill=color, font_size=size,
                     text_anchor=anchor, **how)  # fmt: skip


# --- where things go -----------------------------------------------------------------------------

# Of an em, as in DejaVu Sans or Verdana: other fonts of pages are narrower.
_WIDTHS = {
    character: width
    for characters, width in (
        ("ijl'|", 0.3), (" .,:;!/\\Irtf()[]{}-\"", 0.41), ("sczkvxyJ_?*", 0.6),
        ("wGOQDHNU&+=−×<>~^#", 0.84), ("mMW@%…—", 1.0),
    )
    for character in characters
}  # fmt: skip


def _width(character: str) -> float:
    wide = unicodedata.east_asian_width(character) in "WF"
    other = (
        1.1
        if wide or (character > "ÿ" and character.isupper())
        else 0.72
        if character.isupper()
        else 0.65
    )
    return 0 if unicodedata.combining(character) else _WIDTHS.get(character, other)


def text_width(text: str, size: float = SIZE) -> float:
    """How wide a text is, in the widest fonts that a page may be shown in."""
    return size * sum(map(_width, text))


def fitted(text: str, width: float) -> str:
    """The text, cut off with "…" where it is wider than that."""
    text = " ".join(visible(text).split())
    if text_width(text) <= width:
        return text
    ends = accumulate(map(_width, text), initial=_WIDTHS["…"])
    fits = sum(SIZE * end <= width for end in ends) - 1
    return text[: max(fits, 0)].rstrip() + "…"


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """The positions nearest to those wanted that are at least `gap` apart, in the same order."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    blocks: list[list[float]] = []  # of those that touch, each less the gaps before it
    for rank, i in enumerate(order):
        block = [wanted[i] - rank * gap]
        while blocks and fmean(blocks[-1]) > fmean(block):
            block = blocks.pop() + block
        blocks.append(block)
    places = [fmean(block) for block in blocks for _ in block]
    placed = {i: places[rank] + rank * gap for rank, i in enumerate(order)}
    return [placed[i] for i in range(len(wanted))]
