"""The plots of a report: what they show is in `Findings`, number for number; nothing is estimated.

Each is drawn twice, for a wide page and for a phone. A plot that would be empty is left out, and
`Plot.absent` says why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from cot_engine.report import panels, svg
from cot_engine.report.amounts import amount, axis, interval
from cot_engine.report.findings import Curve, Findings, Standing
from cot_engine.report.panels import Plot, plot
from cot_engine.report.rowplots import calibration, cost, forest, headroom
from cot_engine.report.svg import MARKERS, PAPER, SERIES, SIZE, SOFT, Drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DERIVED = {"vote": "+", "random": "x", "oracle": "*"}  # markers of what is no search of its own


def draw(findings: Findings) -> dict[str, Plot]:
    """All plots by name. Raises CotEngineError without matplotlib."""
    makers = (_accuracy, _scaling, forest, cost, headroom, calibration)
    with svg.style():
        return {plot.name: plot for plot in (make(findings) for make in makers)}


def _looks(findings: Findings) -> dict[str, tuple[str, str]]:
    """Colour and marker of each strategy, the same in all plots."""
    names = dict.fromkeys(s.strategy for s in findings.standings)
    return {
        name: (SERIES[i % len(SERIES)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(names)
    }


def _said(s: Standing, unit: str) -> str:
    return f"{s.label}: {interval(s.accuracy)}, {amount(s.spent, unit)}"


def _drawable(s: Standing) -> bool:
    return panels.finite(s.accuracy) and s.spent > 0


# --- accuracy against compute --------------------------------------------------------------------


def _accuracy(findings: Findings) -> Plot:
    points = [(i, s) for i, s in enumerate(findings.standings, 1) if _drawable(s)]
    if not points:
        return Plot("accuracy", absent="No search has finished: there is no accuracy to draw.")
    looks = _looks(findings)
    factor, unit = axis([s.spent for _, s in points], findings.unit)
    own = [(number, s) for number, s in points if s.kind == "search"]
    derived = [(number, s) for number, s in points if s.kind != "search"]

    def make(width: int) -> Drawing:
        wide = width > svg.NARROW
        names = [svg.fitted(s.label, 230) for _, s in own]
        right = 44 + max(map(svg.text_width, names), default=0) if wide else 18
        drawing = Drawing(width, max(400, 17 * len(own) + 90) if wide else 360)
        ax = drawing.axes(50, 36, right, 46)
        panels.share_axis(ax, [s.accuracy for _, s in points])
        ax.set_xlabel(f"mean spent on a search ({unit})")
        where = panels.amount_axis(ax, [s.spent / factor for _, s in points], 9 if wide else 4)
        _budget_line(ax, points, factor, where)
        for number, s in derived:
            (dot,) = ax.plot(
                [s.spent / factor], [s.accuracy.estimate], _DERIVED[s.kind], color=SOFT,
                mfc=PAPER, ms=7, mew=1, clip_on=False,
            )  # fmt: skip
            drawing.name(dot, f"s{number}", _said(s, findings.unit))
        wanted = [where(s.spent / factor) for _, s in own]
        placed = svg.spread(wanted, 12 if wide else 9)
        for (number, s), at, to in zip(own, wanted, placed, strict=True):
            color, marker = looks[s.strategy]
            dot = panels.whiskered(
                ax, s.spent / factor, s.accuracy, marker, color, shift=to - at,
                hollow=s.matching == "unmatched", size=7 if wide else 5.5,
            )  # fmt: skip
            drawing.name(dot, f"s{number}", _said(s, findings.unit))
            top = ax.transData.transform((1, s.accuracy.high))[1] - ax.bbox.y0
            panels.text(ax, to, top + 7, str(number), ha="center", size=SIZE - 2, color=color)
        if wide:
            entries = [
                (str(number), name, *looks[s.strategy], s.matching == "unmatched")
                for (number, s), name in zip(own, names, strict=True)
            ]
            panels.key(ax, ax.bbox.width + 10, entries)
        return drawing

    note = (
        "Mean score over problems with its 95 % interval. Numbers are the rows of the table above;"
        " points that would lie on each other are set side by side."
    )
    shapes = {"vote": "+ a vote over", "random": "× a random one of", "oracle": "☆ the best of"}
    if kinds := [shapes[kind] for kind in shapes if any(s.kind == kind for _, s in derived)]:
        note += f" Grey: {', '.join(kinds)} the responses that a row sampled."
    if any(s.matching == "unmatched" for _, s in own):
        note += " Hollow: more than 5 % off its allotted compute."
    return plot("accuracy", f"Accuracy against {unit} spent on a search", note, make)


def _budget_line(ax: Axes, points, factor: float, where: Callable[[float], float]) -> None:
    reference = next((s for _, s in points if s.matching == "reference"), None)
    if reference is None:
        return
    at, width = where(reference.spent / factor), ax.bbox.width
    ax.axvline(reference.spent / factor, color=SOFT, lw=1, dashes=(4, 3), zorder=0)
    said = svg.fitted(f"budget: {reference.label}", width)
    half = svg.text_width(said) / 2
    x = min(max(at, half - 40), width - half)
    panels.text(ax, x, ax.bbox.height + 24, said, ha="center", color=SOFT)


# --- scaling -------------------------------------------------------------------------------------


def _scaling(findings: Findings) -> Plot:
    curves = [
        Curve(curve.name, points)
        for curve in findings.curves
        if len(points := tuple(p for p in curve.points if _drawable(p))) > 1
    ]
    if not curves:
        return Plot("scaling", absent="No strategy was run with more than one n: no curve to draw.")
    factor, unit = axis([p.spent for c in curves for p in c.points], findings.unit)
    looks = _curve_looks(findings, curves)
    found = [p.accuracy for c in curves for p in c.points]

    def make(width: int) -> Drawing:
        wide = width > svg.NARROW
        names = [svg.fitted(c.name, 150 if wide else 260) for c in curves]
        right = 22 + max(map(svg.text_width, names)) if wide else 18
        head = 14 if wide else 20 + 18 * len(curves)
        each = (width - 50 - 30 - right) / 2 if wide else width - 50 - right
        drawing = Drawing(width, 320 if wide else head + 2 * 250)
        first = drawing.axes(50, head, width - 50 - each, 46 if wide else 296)
        second = drawing.axes(width - right - each, head if wide else head + 250, right, 46)
        for ax, short, title, x in (
            (first, "n", "n", lambda p: float(p.n or 0)),
            (second, "c", f"mean spent on a search ({unit})", lambda p: p.spent / factor),
        ):
            panels.share_axis(ax, found, bare=wide and ax is second)
            ax.set_xlabel(title)
            xs = [x(p) for c in curves for p in c.points]
            where = panels.amount_axis(ax, xs, 6, exactly=ax is first)
            for i, (curve, (color, marker, dashes)) in enumerate(zip(curves, looks, strict=True)):
                shift = 5 * (i - (len(curves) - 1) / 2) if ax is first else 0
                ax.plot(
                    [x(p) for p in curve.points], [p.accuracy.estimate for p in curve.points],
                    color=color, ls=dashes, transform=panels.moved(ax, shift),
                )  # fmt: skip
                for k, point in enumerate(curve.points):
                    dot = panels.whiskered(
                        ax, x(point), point.accuracy, marker, color, shift=shift,
                        hollow=point.kind != "search", size=6,
                    )  # fmt: skip
                    drawing.name(dot, f"{short}{i}-{k}", _said(point, findings.unit))
            if wide and ax is second:
                ends = [where(x(c.points[-1])) for c in curves]
                _end_labels(ax, curves, names, [color for color, *_ in looks], ends)
        for i, (name, (color, marker, dashes)) in enumerate(zip(names, looks, strict=True)):
            if not wide:
                y = first.bbox.height + 18 * (len(curves) - i)
                first.plot(
                    [-36, -8], [y, y], color=color, ls=dashes, marker=marker, ms=6, markevery=[1],
                    transform=panels.pixels(first), clip_on=False,
                )  # fmt: skip
                panels.text(first, 2, y, name)
        return drawing

    note = (
        "One strategy with more and more candidates, nothing else changed: over their number and"
        " over what they cost, judging counted. 95 % intervals."
    )
    if any(p.kind != "search" for c in curves for p in c.points):
        note += " Hollow: worked out from the responses that another row sampled."
    return plot("scaling", "Accuracy as n grows, over n and over compute", note, make)


def _curve_looks(findings: Findings, curves: Sequence[Curve]) -> list[tuple[str, str, str]]:
    """Colour and marker of the curve's strategy; dashes tell its second curve from its first."""
    looks, seen = _looks(findings), [c.points[0].strategy for c in curves]
    dashes = ("-", "--", ":", "-.")
    return [(*looks[s], dashes[seen[:i].count(s) % 4]) for i, s in enumerate(seen)]


def _end_labels(ax: Axes, curves: Sequence[Curve], names, colors, ends: Sequence[float]) -> None:
    """Each curve's name at its last point, moved up or down where two would touch."""
    low, high = ax.get_ylim()
    height, width = ax.bbox.height, ax.bbox.width
    wanted = [(c.points[-1].accuracy.estimate - low) / (high - low) * height for c in curves]
    placed = svg.spread(wanted, 16)
    for name, color, end, at, to in zip(names, colors, ends, wanted, placed, strict=True):
        line = {"color": color, "lw": 0.7, "transform": panels.pixels(ax), "clip_on": False}
        ax.plot([end + 6, width + 6], [at, to], **line)
        panels.text(ax, width + 10, to, name, color=color)
