"""What the plots are put together from: axes, points with their intervals, rows, keys."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cot_engine.report import svg
from cot_engine.report.svg import INK, PAPER, SIZE, Drawing
from cot_engine.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

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
    from markupsafe import Markup

    return Plot(name, note, Markup(wide), Markup(narrow))


def text(ax: Axes, x: float, y: float, said: str, **how: Any) -> None:
    """Text at a place in pixels from the axes' lower left corner."""
    how = {"va": "center", "annotation_clip": False} | how
    ax.annotate(said, (x, y), xycoords="axes pixels", **how)


def pixels(ax: Axes) -> Any:
    """The transform of places in pixels from the axes' lower left corner."""
    from matplotlib.transforms import Affine2D

    return Affine2D().translate(ax.bbox.x0, ax.bbox.y0)


def moved(ax: Axes, x: float, y: float = 0) -> Any:
    """The transform of data that is drawn some pixels beside its place."""
    from matplotlib.transforms import Affine2D

    return ax.transData + Affine2D().translate(x, y)


def share_axis(ax: Axes, found: Sequence[Interval], *, bare: bool = False) -> None:
    """Accuracy upwards, over what these intervals span; `bare`: a neighbour has the numbers."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    low, high = min(i.low for i in found), max(i.high for i in found)
    room = max(0.06 * (high - low), 0.01)
    ax.set_ylim(max(-0.01, low - room), min(1.01, high + room))
    ax.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: "" if bare else f"{y:.3g}"))
    ax.grid(axis="y")
    ax.tick_params(length=0)
    ax.spines["left"].set_visible(False)
    if not bare:
        ax.set_ylabel("accuracy")


def amount_axis(
    ax: Axes, values: Sequence[float], most: int, *, exactly: bool = False
) -> Callable[[float], float]:
    """Amounts to the right, logarithmic if they range over more than a factor of four. Returns
    where a value is, in pixels. `exactly`: ticks at the values and nowhere else."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    low, high = min(values), max(values)
    width = ax.bbox.width
    if log := low > 0 and high / low > 4:
        ax.set_xscale("log")
        room = (high / low) ** 0.06
        low, high = low / room, high * room
    else:
        room = max(0.06 * (high - low), 0.06 * abs(high), 1e-9)
        low, high = low - room, high + room
    ax.set_xlim(low, high)
    where = ax.transData.transform
    if exactly:
        kept: list[float] = []
        for value in sorted(set(values)):
            if not kept or where((value, 0))[0] - where((kept[-1], 0))[0] > width / most / 2:
                kept.append(value)
        ax.xaxis.set_major_locator(FixedLocator(kept))
    elif log:
        ax.xaxis.set_major_locator(FixedLocator(svg.ticks(low, high, most)))
    else:
        ax.xaxis.set_major_locator(MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.4g}"))
    left = ax.bbox.x0
    return lambda value: float(where((value, 0))[0] - left)


def whiskered(
    ax: Axes, x: float, found: Interval, marker: str, color: str, *, shift: float = 0,
    hollow: bool = False, size: float = 7,
) -> Line2D:  # fmt: skip
    """A point with its interval upright; the point, to be named."""
    place = moved(ax, shift)
    ax.plot([x, x], [found.low, found.high], color=color, lw=1.3, transform=place, clip_on=False)
    fill = PAPER if hollow else color
    (point,) = ax.plot(
        [x], [found.estimate], marker, color=color, mfc=fill, mew=1.5, ms=size, transform=place,
        clip_on=False,
    )  # fmt: skip
    return point


def along(
    ax: Axes, found: Interval, y: float, marker: str, color: str, *, hollow: bool = False,
    size: float = 7, width: float = 1.4,
) -> Line2D:  # fmt: skip
    """A point with its interval lying; the point, to be named."""
    ax.plot([found.low, found.high], [y, y], color=color, lw=width)
    fill = PAPER if hollow else color
    (point,) = ax.plot([found.estimate], [y], marker, color=color, mfc=fill, mew=1.5, ms=size)
    return point


def rows(
    width: int, labels: Sequence[str], texts: Sequence[str], *, head: int = 8,
    headings: Sequence[int] = (),
) -> tuple[Drawing, Axes, list[float]]:  # fmt: skip
    """A drawing with a row for each label, which stands at the left of the axes, or on a phone
    above its row; each text stands at the right. Returns the rows' heights in data, too.

    `headings` are rows with nothing but their label.
    """
    wide = width > svg.NARROW
    right = 12 + max((svg.text_width(t) for t in texts), default=0)
    names = [svg.fitted(label, width - right - 330 if wide else width - 4) for label in labels]
    widths = [svg.text_width(name, strong=i in headings) for i, name in enumerate(names)]
    left = 16 + max(widths, default=0) if wide else 8
    tall = [
        ROW if wide or i in headings else ROW + ABOVE for i in range(len(labels))
    ]  # of each row, in pixels
    drawing = Drawing(width, head + sum(tall) + 46)
    ax = drawing.axes(left, head, right, 46)
    ax.set_ylim(sum(tall), 0)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    ax.tick_params(length=3)
    ax.grid(axis="x")
    middles, top = [], 0.0
    for i, (name, said) in enumerate(zip(names, texts, strict=True)):
        heading = i in headings
        middles.append(top + tall[i] - ROW / 2)
        y = sum(tall) - (middles[-1] if wide or heading else top + ABOVE / 2 + 2)
        weight = "bold" if heading else "normal"
        x, side = (-12, "right") if wide else (-left, "left")
        behind = {"boxstyle": "square,pad=0.1", "fc": PAPER, "ec": "none"}  # grid lines cross it
        text(ax, x, y, name, ha=side, weight=weight, bbox=None if wide else behind)
        text(ax, ax.bbox.width + 10, sum(tall) - middles[-1], said)
        top += tall[i]
    return drawing, ax, middles


def span_axis(ax: Axes, values: Sequence[float], form: Callable[[float], str]) -> None:
    """Shares or differences to the right, over what these values span."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    low, high = min(values), max(values)
    room = max(0.03 * (high - low), 0.005)
    ax.set_xlim(low - room, high + room)
    ax.xaxis.set_major_locator(MaxNLocator(max(3, int(ax.bbox.width / 60)), steps=[1, 2, 5, 10]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: form(x)))


def swatches(ax: Axes, entries: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """A line above the axes that says what a marker, or a filled box, stands for."""
    from matplotlib.patches import Rectangle

    x, y = (0.0 if ax.bbox.x0 > 40 else 8 - ax.bbox.x0), ax.bbox.height + 14
    place = {"transform": pixels(ax), "clip_on": False}
    for name, how in entries:
        if "fc" in how:
            ax.add_patch(Rectangle((x, y - 6), 16, 11, **how, **place))
        else:
            ax.plot([x + 8], [y], **how, **place)
        text(ax, x + 22, y, name)
        x += 40 + svg.text_width(name)


def key(ax: Axes, left: float, entries: Sequence[tuple[str, str, str, str, bool]]) -> None:
    """Number, marker and name of each point, one below the other, at the right of the axes."""
    for i, (number, name, color, marker, hollow) in enumerate(entries):
        y = ax.bbox.height - 8 - 17 * i
        text(ax, left + 8, y, number, ha="right", color=color, size=SIZE - 1.5)
        fill = PAPER if hollow else color
        ax.plot(
            [left + 18], [y], marker, color=color, mfc=fill, mew=1.5, ms=6.5,
            transform=pixels(ax), clip_on=False,
        )  # fmt: skip
        text(ax, left + 28, y, name)


def finite(found: Interval) -> bool:
    return math.isfinite(found.estimate)


def zero_line(ax: Axes, x: float = 0.0) -> None:
    ax.axvline(x, color=INK, lw=1, zorder=1)
