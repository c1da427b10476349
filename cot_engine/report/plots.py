"""The plots of a report: what they show is in `Findings`, number for number; nothing is estimated.

Each is drawn twice, for a wide page and for a phone. A plot that would be empty is left out, and
`Plot.absent` says why.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from cot_engine.report import svg
from cot_engine.report.amounts import amount, axis, interval
from cot_engine.report.findings import Curve, Findings, Standing
from cot_engine.report.looks import looks
from cot_engine.report.panels import Panel, Plot, plot
from cot_engine.report.rowplots import calibration, cost, forest, headroom
from cot_engine.report.svg import Drawing
from cot_engine.report.tradeoff import accuracy


def draw(findings: Findings) -> dict[str, Plot]:
    """All plots by name."""
    makers = (accuracy, _scaling, forest, cost, headroom, calibration)
    return {plot.name: plot for plot in (make(findings) for make in makers)}


def _said(s: Standing, unit: str) -> str:
    return f"{s.label}: {interval(s.accuracy)}, {amount(s.spent, unit)}"


def _drawable(s: Standing) -> bool:
    return math.isfinite(s.accuracy.estimate) and s.spent > 0


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
    drawn = _curve_looks(findings, curves)
    found = [p.accuracy for c in curves for p in c.points]

    def make(width: int) -> Drawing:
        wide = width > svg.NARROW
        names = [svg.fitted(c.name, 150 if wide else 260) for c in curves]
        right = width - (22 + max(map(svg.text_width, names)) if wide else 18)
        head = 14 if wide else 20 + 18 * len(curves)
        each = (right - 50 - 30) / 2 if wide else right - 50
        drawing = Drawing(width, 320 if wide else head + 2 * 250)
        first = Panel(drawing, 50, head, 50 + each, head + (260 if wide else 204))
        top = head if wide else head + 250
        ends: list[tuple[float, float]] = []  # of the curves over compute
        second = Panel(drawing, right - each, top, right, drawing.height - 46)
        for panel, short, title, value in (
            (first, "n", "n", lambda p: float(p.n or 0)),
            (second, "c", f"mean spent on a search ({unit})", lambda p: p.spent / factor),
        ):
            panel.shares(found, None if wide and panel is second else "accuracy")
            xs = [value(p) for c in curves for p in c.points]
            panel.amounts(xs, 6, title, exact=panel is first)
            for i, (curve, (color, marker, dashes)) in enumerate(zip(curves, drawn, strict=True)):
                shift = 5 * (i - (len(curves) - 1) / 2) if panel is first else 0
                across = [panel.x(value(p)) + shift for p in curve.points]
                up = [panel.y(p.accuracy.estimate) for p in curve.points]
                drawing.line(list(zip(across, up, strict=True)), color, 1.6, dashes)
                for k, (x, point) in enumerate(zip(across, curve.points, strict=True)):
                    panel.interval(
                        point.accuracy, marker, color, 6, x=x, hollow=point.kind != "search",
                        id=f"{short}{i}-{k}", said=_said(point, findings.unit),
                    )  # fmt: skip
                if panel is second:
                    ends.append((across[-1], up[-1]))
        if wide:
            _end_labels(second, names, [color for color, *_ in drawn], ends)
        else:
            for i, (name, (color, marker, dashes)) in enumerate(zip(names, drawn, strict=True)):
                y = head - 18 * (len(curves) - i)
                drawing.line([(14, y), (42, y)], color, 1.6, dashes)
                drawing.mark(marker, 42, y, color, 6)
                drawing.text(52, y, name)
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
    seen = [c.points[0].strategy for c in curves]
    found = looks(s.strategy for s in findings.standings)
    dashes = ("", "6 3", "1.5 2.5", "8 3 1.5 3")
    kinds = [dashes[seen[:i].count(s) % 4] for i, s in enumerate(seen)]
    return [(found[s].color, found[s].marker, k) for s, k in zip(seen, kinds, strict=True)]


def _end_labels(
    panel: Panel, names: Sequence[str], colors: Sequence[str], ends: Sequence[tuple[float, float]]
) -> None:
    """Each curve's name beside its last point, moved up or down where two would touch."""
    placed = svg.spread([y for _, y in ends], 16)
    for name, color, (x, y), to in zip(names, colors, ends, placed, strict=True):
        panel.drawing.line([(x + 6, y), (panel.right + 6, to)], color, 0.7)
        panel.drawing.text(panel.right + 10, to, name, color)
