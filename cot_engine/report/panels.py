"""What the plots are put together from: scales and axes, points with intervals, rows, keys."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from cot_engine.report import svg
from cot_engine.report.svg import BOLD, INK, PAPER, RULE, SOFT, Drawing
from cot_engine.statistics import Interval

ROW, ABOVE = 25, 17  # heights of a row, and of its label where that stands above it


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot for a wide page and for a narrow one, and how to read it; or why there is none."""

    name: str
    note: str = ""
    wide: str = ""
    narrow: str = ""
    absent: str = ""


def plot(name: str, label: str, note: str, make: Callable[[int], Drawing]) -> Plot:
    wide, narrow = (make(width).svg(f"{name}-{width}", label) for width in (svg.WIDE, svg.NARROW))
    return Plot(name, note, wide, narrow)


@dataclass(frozen=True, slots=True)
class Scale:
    """Values from `low` to `high` as pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log(value), math.log(low), math.log(high)
        return self.start + (value - low) / (high - low) * (self.end - self.start)


@dataclass
class Panel:
    """A part of a drawing, its edges in pixels, with a scale each way once its axes are drawn."""

    drawing: Drawing
    left: float
    top: float
    right: float
    bottom: float
    x: Scale = field(init=False)
    y: Scale = field(init=False)

    def shares(self, found: Sequence[Interval], title: str | None = "accuracy") -> None:
        """Accuracy upwards, over what these span."""
        low, high = min(i.low for i in found), max(i.high for i in found)
        room = max(0.06 * (high - low), 0.01)
        low, high = max(-0.01, low - room), min(1.01, high + room)
        self.upwards(low, high, round_ticks(low, high, 7), title)

    def upwards(self, low: float, high: float, ticks: Sequence[float], title: str | None) -> None:
        """A scale upwards, with a line across at each tick. Title None: a neighbour has the
        numbers."""
        self.y = Scale(low, high, self.bottom, self.top)
        for y, tick in zip(map(self.y, ticks), ticks, strict=True):
            self.drawing.line([(self.left, y), (self.right, y)], RULE, 0.7)
            if title is not None:
                self.drawing.text(self.left - 6, y, f"{tick:.3g}", SOFT, "end")
        turned = f"translate({max(self.left - 43, 7)} {(self.top + self.bottom) / 2}) rotate(-90)"
        if title:
            self.drawing.text(0, 0, title, SOFT, "middle", transform=turned)

    def amounts(self, values: Sequence[float], most: int, title: str, exact: bool = False) -> None:
        """Amounts to the right, logarithmic if they range over more than a factor of four.
        `exact`: ticks at the values and nowhere else."""
        low, high = min(values), max(values)
        if log := low > 0 and high / low > 4:
            room = (high / low) ** 0.06
            low, high = low / room, high * room
        else:
            room = max(0.06 * (high - low), 0.06 * abs(high), 1e-9)
            low, high = low - room, high + room
        self.x = Scale(low, high, self.left, self.right, log)
        ticks = log_ticks(low, high, most) if log else round_ticks(low, high, most)
        if exact:
            ticks = []
            for value in sorted(set(values)):
                far = (self.right - self.left) / most / 2
                if not ticks or self.x(value) - self.x(ticks[-1]) > far:
                    ticks.append(value)
        self.floor(ticks, ticked, title)

    def span(self, low: float, high: float, form: Callable[[float], str], title: str) -> None:
        """Shares, differences or costs to the right, and lines upwards; zero's is strong where
        there is something on both sides of it."""
        self.x = Scale(low, high, self.left, self.right)
        ticks = round_ticks(low, high, max(3, int((self.right - self.left) / 60)))
        for tick in ticks:
            self.upright(tick, *((INK, 1) if low < tick == 0 else (RULE, 0.7)))
        self.floor(ticks, form, title)

    def floor(self, ticks: Sequence[float], form: Callable[[float], str], title: str) -> None:
        """The lower edge, with its ticks and what it is about."""
        self.drawing.line([(self.left, self.bottom), (self.right, self.bottom)], RULE)
        for tick in ticks:
            self.drawing.text(self.x(tick), self.bottom + 11, form(tick), SOFT, "middle")
        middle = (self.left + self.right) / 2
        if title:
            self.drawing.text(middle, self.bottom + 30, title, SOFT, "middle")

    def upright(self, x: float, color: str, width: float = 1, dashes: str = "") -> None:
        """A line from top to bottom, at a value."""
        at = self.x(x)
        self.drawing.line([(at, self.top), (at, self.bottom)], color, width, dashes)

    def interval(self, found: Interval, marker: str, color: str, size: float, width: float = 1.3,
                 *, x: float | None = None, y: float = 0, **named: Any) -> None:  # fmt: skip
        """A point with its interval, upright at a place or lying at a height in pixels."""
        values = (found.low, found.high, found.estimate)
        places = [(self.x(v), y) if x is None else (x, self.y(v)) for v in values]
        self.drawing.line(places[:2], color, width)
        self.drawing.mark(marker, *places[2], color, size, **named)


def rows(
    width: int, labels: Sequence[str], texts: Sequence[str], ends: tuple[float, float],
    form: Callable[[float], str], title: str, *, head: int = 8, headings: Sequence[int] = (),
) -> tuple[Panel, list[float]]:  # fmt: skip
    """A drawing with a row for each label, which stands at the left of the panel, or on a phone
    above its row; each text stands at the right; the panel spans what is between the ends.
    Returns the rows' heights, too.

    `headings` are rows with nothing but their label.
    """
    wide = width > svg.NARROW
    right = 12 + max((svg.text_width(t) for t in texts), default=0)
    room = width - right - 360 if wide else width - 4
    names = [svg.fitted(t, room / BOLD if i in headings else room) for i, t in enumerate(labels)]
    widths = [svg.text_width(t) * (BOLD if i in headings else 1) for i, t in enumerate(names)]
    left = 16 + max(widths, default=0) if wide else 8
    tall = [ROW if wide or i in headings else ROW + ABOVE for i in range(len(labels))]
    drawing = Drawing(width, head + sum(tall) + 46)
    panel = Panel(drawing, left, head, width - right, head + sum(tall))
    panel.span(*ends, form, title)
    lower = list(accumulate(tall, initial=head))[1:]
    for i, (name, said, y) in enumerate(zip(names, texts, lower, strict=True)):
        x, anchor = (left - 12, "end") if wide else (0, "start")
        over = 0 if wide or i in headings else ROW / 2 + ABOVE / 2 - 2  # lines of the grid cross it
        how: dict[str, Any] = {"font_weight": 600} if i in headings else {}
        how |= {"stroke": PAPER, "stroke_width": 3, "paint_order": "stroke"} if over else {}
        drawing.text(x, y - ROW / 2 - over, name, anchor=anchor, **how)
        drawing.text(panel.right + 10, y - ROW / 2, said)
    return panel, [y - ROW / 2 for y in lower]


def legend(panel: Panel, names: Sequence[str], draw: Callable[[str, float, float], None]) -> None:
    """A line above the panel that says what is drawn how: `draw` puts a sample into 16 pixels."""
    x, y = (panel.left if panel.left > 40 else 8.0), panel.top - 14
    for name in names:
        draw(name, x, y)
        panel.drawing.text(x + 22, y, name)
        x += 40 + svg.text_width(name)


def around(values: Iterable[float]) -> tuple[float, float]:
    """The ends of these values, with some room beyond."""
    known = [value for value in values if math.isfinite(value)]
    room = 0.03 * (max(known) - min(known)) or 0.005
    return min(known) - room, max(known) + room


def ticked(value: float) -> str:
    """An amount at an axis: "0.25", "1.5", "12,000", never with an exponent of ten."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


# --- round numbers -------------------------------------------------------------------------------


def round_ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers from low to high, as many as may be: multiples of 1, 2 or 5."""
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    for step in (power * s for s in (1, 2, 5, 10, 20, 50)):
        found = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
        if len(found) <= most:
            return [float(f"{i * step:.12g}") for i in found]
    raise AssertionError


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers on a logarithmic axis: 1, 2, 5, 10 ... or as many of them as may be."""
    tens = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        found = [s * 10.0**t for t in tens for s in steps if low <= s * 10.0**t <= high]
        if len(found) <= most:
            return found
    return found[:: math.ceil(len(found) / most)]
