"""Accuracy over what a search costs, in each unit: who is the best for the money.

A search is Pareto-best in a unit if no other scores as well for less of it, or better for as much.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from cot_engine.core.usage import Usage
from cot_engine.report import svg
from cot_engine.report.amounts import amount, axis, interval
from cot_engine.report.findings import Findings, Standing
from cot_engine.report.looks import Look, looks
from cot_engine.report.panels import Panel, Plot, plot
from cot_engine.report.svg import PAPER, SIZE, SOFT, Drawing

UNITS = ("flops", "tokens", "seconds")
_TITLES = {"flops": "FLOPs"}
_DERIVED = {"vote": "plus", "random": "cross", "oracle": "star"}  # what is no search of its own
_BESIDE = 13.0  # pixels between two points that would lie on each other


def spent(s: Standing, unit: str, of_run: str) -> float:
    """The mean per search in a unit; NaN where it is not known, as FLOPs of a server are not.

    Seconds are from start to end, beside all that was in flight with it; of what is worked out
    from another's responses there are none.
    """
    total = sum(s.usage.values(), Usage())
    found = {"flops": float(total.flops), "tokens": float(total.tokens), "seconds": s.seconds}
    if unit == "seconds" and s.kind != "search":
        return math.nan
    value = s.spent if unit == of_run else found[unit]
    return value if value > 0 else math.nan


def units(findings: Findings) -> list[str]:
    """Those that anything is known in; the run's own first where it is another one."""
    named = [findings.unit] * (findings.unit not in UNITS) + list(UNITS)
    return [u for u in named if any(_drawable(s, u, findings.unit) for s in findings.standings)]


def pareto(findings: Findings, unit: str) -> list[Standing]:
    """The searches that are Pareto-best in a unit, the cheapest first."""
    found: list[Standing] = []
    known = [s for s in findings.standings if s.kind == "search"]
    known = [s for s in known if _drawable(s, unit, findings.unit)]
    for s in sorted(known, key=lambda s: (spent(s, unit, findings.unit), -s.accuracy.estimate)):
        if not found or s.accuracy.estimate > found[-1].accuracy.estimate:
            found.append(s)
    return found


def _drawable(s: Standing, unit: str, of_run: str) -> bool:
    return math.isfinite(s.accuracy.estimate) and math.isfinite(spent(s, unit, of_run))


# --- the plot ------------------------------------------------------------------------------------


def accuracy(findings: Findings) -> Plot:
    """Small plots side by side, one a unit, with one scale of accuracy; what is what below."""
    shown = units(findings)
    if not shown:
        return Plot("accuracy", absent="No search has finished: there is no accuracy to draw.")
    found = [
        (i, s)
        for i, s in enumerate(findings.standings, 1)
        if any(_drawable(s, unit, findings.unit) for unit in shown)
    ]
    own = [(number, s) for number, s in found if s.kind == "search"]
    look = looks(s.strategy for _, s in own)

    def make(width: int) -> Drawing:
        wide = width > svg.NARROW
        across = len(shown) if wide else 1
        tall, head, foot, gap = (250, 52, 46, 22) if wide else (190, 46, 46, 0)
        each = (width - 50 - 12 - gap * (across - 1)) / across
        down = math.ceil(len(shown) / across) * (head + tall + foot)
        columns = 3 if wide else 1
        drawing = Drawing(width, down + 18 * math.ceil(len(own) / columns) + 14)
        for i, unit in enumerate(shown):
            left = 50 + (i % across) * (each + gap)
            top = (i // across) * (head + tall + foot) + head
            panel = Panel(drawing, left, top, left + each, top + tall)
            panel.shares([s.accuracy for _, s in found], "accuracy" if left == 50 else None)
            _points(panel, unit, i, found, findings, look)
        _key(drawing, own, look, down + 12, columns)
        return drawing

    note = (
        "Mean score over problems with its 95 % interval, over the mean cost of a search, judging"
        " counted. Numbers are the rows of the table. Ringed and joined: Pareto-best, nothing"
        " scores as well for less. Points that would lie on each other are set side by side."
    )
    shapes = {"vote": "+ a vote over", "random": "× a random one of", "oracle": "☆ the best of"}
    if kinds := [shapes[kind] for kind in shapes if any(s.kind == kind for _, s in found)]:
        note += f" Grey: {', '.join(kinds)} the responses that a row sampled."
    if any(s.matching == "unmatched" for _, s in own):
        note += " Hollow: more than 5 % off its allotted compute."
    if "flops" not in shown:
        note += " FLOPs are not known here."
    if "seconds" in shown:
        note += " Seconds are those of a search among others in flight."
    said = ", ".join(_TITLES.get(unit, unit) for unit in shown)
    return plot("accuracy", f"Accuracy over {said} spent on a search", note, make)


def _points(
    panel: Panel,
    unit: str,
    number: int,
    found: Sequence[tuple[int, Standing]],
    findings: Findings,
    look: dict[str, Look],
) -> None:
    drawing, wide = panel.drawing, panel.drawing.width > svg.NARROW
    known = [(i, s) for i, s in found if _drawable(s, unit, findings.unit)]
    costs = {i: spent(s, unit, findings.unit) for i, s in known}
    factor, name = axis(costs.values(), unit)
    panel.amounts([c / factor for c in costs.values()], 5 if wide else 6, f"{name} a search")
    drawing.text(panel.left, panel.top - 38, _TITLES.get(unit, unit), font_weight=600)
    if unit == findings.unit:
        _budget_line(panel, known, factor)

    def said(s: Standing, cost: float) -> str:
        return f"{s.label}: {interval(s.accuracy)}, {amount(cost, unit)}"

    for i, s in known:
        if s.kind != "search":
            at = panel.x(costs[i] / factor), panel.y(s.accuracy.estimate)
            how: dict[str, Any] = {"id": f"u{number}-s{i}", "said": said(s, costs[i])}
            drawing.mark(_DERIVED[s.kind], *at, SOFT, 6, hollow=True, **how)
    own = [(i, s) for i, s in known if s.kind == "search"]
    wanted = [panel.x(costs[i] / factor) for i, _ in own]
    places = dict(zip((i for i, _ in own), _placed(wanted, panel), strict=True))
    best = {s.label for s in pareto(findings, unit)}
    joined = sorted((places[i], panel.y(s.accuracy.estimate)) for i, s in own if s.label in best)
    if len(joined) > 1:
        drawing.line(joined, SOFT, 1, "2 2")
    for i, s in own:
        color, marker, _ = look[s.strategy]
        x, hollow = places[i], s.matching == "unmatched"
        how = {"id": f"u{number}-s{i}", "said": said(s, costs[i])}
        if s.label in best:
            y = panel.y(s.accuracy.estimate)
            drawing.add("circle", cx=x, cy=y, r=7.5, fill=PAPER, stroke=color, id=f"u{number}-b{i}")
        panel.interval(s.accuracy, marker, color, 6, x=x, hollow=hollow, **how)
        over = panel.y(s.accuracy.high) - 7
        drawing.text(x, over, str(i), color, "middle", SIZE - 2)


def _placed(wanted: Sequence[float], panel: Panel) -> list[float]:
    """Where points stand that would lie on each other: side by side, inside the panel."""
    low, high = panel.left + 7, panel.right - 7
    gap = min(_BESIDE, (high - low) / max(1, len(wanted) - 1))
    placed = svg.spread(wanted, gap)
    order = sorted(range(len(placed)), key=placed.__getitem__)
    for rank, i in enumerate(order):
        placed[i] = max(placed[i], low + rank * gap)
    for rank, i in enumerate(reversed(order)):
        placed[i] = min(placed[i], high - rank * gap)
    return placed


def _budget_line(panel: Panel, known: Sequence[tuple[int, Standing]], factor: float) -> None:
    reference = next((s for _, s in known if s.matching == "reference"), None)
    if reference is None:
        return
    panel.upright(reference.spent / factor, SOFT, dashes="4 3")
    said = svg.fitted(f"budget: {reference.label}", panel.right - panel.left)
    half = svg.text_width(said) / 2
    x = min(max(panel.x(reference.spent / factor), panel.left + half), panel.right - half)
    panel.drawing.text(x, panel.top - 20, said, SOFT, "middle")


def _key(
    drawing: Drawing,
    own: Sequence[tuple[int, Standing]],
    look: dict[str, Look],
    top: float,
    columns: int,
) -> None:
    """The searches' numbers, markers and names, in columns from top to bottom."""
    rows = math.ceil(len(own) / columns)
    each = (drawing.width - 14) / columns
    for at, (number, s) in enumerate(own):
        color, marker, _ = look[s.strategy]
        x, y = 14 + at // rows * each, top + at % rows * 18
        drawing.text(x + 8, y, str(number), color, "end", SIZE - 1.5)
        drawing.mark(marker, x + 20, y, color, 7, s.matching == "unmatched", id=f"key{number}")
        drawing.text(x + 32, y, svg.fitted(s.label, each - 44))
