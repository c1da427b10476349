"""The report's plots in rows: comparisons, costs, headroom; and how judges are calibrated."""

from __future__ import annotations

import math
from typing import Any

from cot_engine.core.usage import Role
from cot_engine.report import panels
from cot_engine.report.amounts import amount, axis, figures, interval, percent, points, probability
from cot_engine.report.findings import Comparison, Findings, Headroom
from cot_engine.report.judging import JudgeCard
from cot_engine.report.looks import looks
from cot_engine.report.panels import Panel, Plot, Scale, plot
from cot_engine.report.svg import BOLD, INK, NARROW, SOFT, Drawing, fitted

ROLES: tuple[Role, ...] = ("generate", "judge", "score", "verify")
MOST = 60  # rows of a plot; the tables have all
_FILL = {"generate": 1.0, "judge": 0.35, "score": 0.0, "verify": 0.6}
"""How much of a role's box is in the colour of the strategy."""


def forest(findings: Findings) -> Plot:
    found = [c for c in findings.comparisons if math.isfinite(c.paired.difference.estimate)]
    if not found:
        return Plot("forest", absent="No two rows have a problem in common: nothing to compare.")
    shown = found[:MOST]
    labels = [f"{c.first} − {c.second}" for c in shown]

    def make(width: int) -> Drawing:
        ends = [v for c in shown for v in (c.paired.difference.low, c.paired.difference.high)]
        panel, heights = panels.rows(
            width, labels, [_difference(c) for c in shown], panels.around([*ends, 0.0]),
            lambda x: points(x, "+.3g"), "difference in accuracy (points)",
        )  # fmt: skip
        for i, (c, label, y) in enumerate(zip(shown, labels, heights, strict=True)):
            d = c.paired.difference
            clear = c.p < 0.05 and (d.low > 0 or d.high < 0)
            said = f"{interval(d, sign=True)}, adjusted p {probability(c.p)}"
            panel.interval(
                d, "circle" if c.matched else "diamond", INK if clear else SOFT, 6.5,
                2.4 if clear else 1.3, y=y, hollow=not c.matched, id=f"d{i}",
                said=f"{label}: {said}; compute {c.ratio:.2f} to 1",
            )  # fmt: skip
        return panel.drawing

    note = (
        "The first's score minus the second's over the problems that both have, 95 % interval."
        " Strong: the interval excludes zero and p, adjusted for the number of comparisons, is"
        " below 0.05."
    )
    if not all(c.matched for c in shown):
        note += (
            " Hollow diamonds did not spend the same: “×” is the first's compute over the other's."
        )
    if len(found) > len(shown):
        note += f" These are the first {len(shown)} of {len(found)}."
    return plot("forest", "Paired differences in accuracy", note, make)


def _difference(c: Comparison) -> str:
    said = points(c.paired.difference.estimate)
    return said if c.matched else f"{said}  ×{c.ratio:.2g}"


def cost(findings: Findings) -> Plot:
    shown = [s for s in findings.standings if s.kind == "search" and s.spent > 0][:MOST]
    if not shown:
        return Plot("cost", absent="No search has finished: there is no cost to draw.")
    most = max(max(s.spent, s.allotted or 0) for s in shown)
    factor, unit = axis([most], findings.unit)
    roles = [role for role in ROLES if any(s.by_role.get(role) for s in shown)]
    told = any(s.allotted is not None for s in shown)
    look = looks(s.strategy for s in shown)

    def make(width: int) -> Drawing:
        panel, heights = panels.rows(
            width, [s.label for s in shown], [figures(s.spent / factor) for s in shown],
            (0.0, most / factor * 1.02), panels.ticked,
            f"mean spent on a search ({unit})", head=32,
        )  # fmt: skip
        drawing = panel.drawing
        for i, (s, y) in enumerate(zip(shown, heights, strict=True)):
            start = 0.0
            for role in roles:
                if spent := s.by_role.get(role, 0.0):
                    x, end = panel.x(start / factor), panel.x((start + spent) / factor)
                    used = f"{amount(spent, findings.unit)} of {amount(s.spent, findings.unit)}"
                    said = f"{s.label}: {role} {used}"
                    how = {"id": f"{role}{i}", "said": said}
                    drawing.box(x, y - 6.5, end - x, 13, look[s.strategy].color, _FILL[role], **how)
                    start += spent
            if s.allotted is not None:
                x = panel.x(s.allotted / factor)
                said = f"{s.label}: allotted {amount(s.allotted, findings.unit)}"
                drawing.line([(x, y - 10), (x, y + 10)], INK, 2, id=f"allotted{i}", said=said)

        def sample(name: str, x: float, y: float) -> None:
            if name == "allotted":
                drawing.line([(x + 8, y - 7), (x + 8, y + 7)], INK, 2)
            else:
                drawing.box(x, y - 5, 16, 11, SOFT, _FILL[name])

        panels.legend(panel, [*roles, *["allotted"] * told], sample)
        return drawing

    note = "What a search cost on average, by who spent it, in its strategy's colour." + (
        " The upright tick is what it was allotted." * told
    )
    return plot("cost", f"Cost of a search by role, in {unit}", note, make)


_CHOICES = {"random": "cross", "selected": "circle", "oracle": "diamond"}
"""Their markers: what was selected is solid, in the strategy's colour as the best there was is; a
random one is grey."""


def headroom(findings: Findings) -> Plot:
    found = [h for h in findings.headrooms if math.isfinite(h.selected.estimate)][:MOST]
    if not found:
        why = "No selection of this run is known candidate by candidate: no headroom to draw."
        return Plot("headroom", absent=why)
    lines: list[tuple[str, Headroom | None]] = []  # a row's label; of a heading, no more
    for title in dict.fromkeys(f"{h.label}, {h.measure}" for h in found):
        lines.append((title, None))
        lines += [(h.stage, h) for h in found if f"{h.label}, {h.measure}" == title]
    strategies = {cell: plain["strategy"] for cell, (_, plain) in findings.run.cells.items()}
    look = looks(strategies.values())
    ends = [v for h in found for i in (h.random, h.selected, h.oracle) for v in (i.low, i.high)]

    def make(width: int) -> Drawing:
        texts = ["" if h is None else percent(h.taken) for _, h in lines]
        panel, heights = panels.rows(
            width, [label for label, _ in lines], texts, panels.around(ends), "{:.3g}".format,
            "mean score of the candidate that is taken", head=32,
            headings=[i for i, (_, h) in enumerate(lines) if h is None],
        )  # fmt: skip
        for i, ((_, h), y) in enumerate(zip(lines, heights, strict=True)):
            for (name, marker), up in zip(_CHOICES.items(), (6, 0, -6), strict=True):
                if h is not None and math.isfinite((one := getattr(h, name)).estimate):
                    said = f"{h.label}, {h.measure}, {h.stage}, {name}: {interval(one)}"
                    how: dict[str, Any] = {"id": f"{name}{i}", "said": said}
                    how["hollow"] = name != "selected"
                    color = SOFT if name == "random" else look[strategies[h.cell]].color
                    panel.interval(one, marker, color, 5.5, 1.1, y=y - up, **how)

        def sample(name: str, x: float, y: float) -> None:
            panel.drawing.mark(_CHOICES[name], x + 8, y, SOFT, 7, name != "selected")

        panels.legend(panel, list(_CHOICES), sample)
        return panel.drawing

    note = (
        "How good the candidate is that is taken at a stage: a random one, the one that was"
        " selected, the best there was. Left of the oracle's point is what judging lost, right of"
        " it what was never sampled. The percentage: how much of the way from random to oracle"
        " selection went. 95 % intervals."
    )
    return plot("headroom", "Random, selected and oracle candidates by stage", note, make)


# --- calibration ---------------------------------------------------------------------------------


def calibration(findings: Findings) -> Plot:
    cards = [c for c in findings.cards if len(c.calibration) > 1]
    if not cards:
        why = "No judge left margins on enough pairs of known outcome: no calibration to draw."
        return Plot("calibration", absent=why)
    shown = cards[:12]

    def make(width: int) -> Drawing:
        wide = width > NARROW
        across = 4 if wide else 2
        gap, left, tall, head = (26, 50, 150, 40) if wide else (14, 44, 110, 40)
        down = math.ceil(len(shown) / across)
        each = (width - left - 8 - gap * (across - 1)) / across
        high = max(b.margin for c in shown for b in c.calibration) * 1.08 or 1.0
        drawing = Drawing(width, down * (tall + head + 34) + 16)
        for i, card in enumerate(shown):
            column, row = i % across, i // across
            x, y = left + column * (each + gap), row * (tall + head + 34) + head
            panel = Panel(drawing, x, y, x + each, y + tall)
            _calibrated(panel, card, i, high, first=column == 0, low=row == down - 1)
        return drawing

    note = (
        "How often the candidate with the higher margin was the better one, over the mean |margin|"
        " of a fifth of the pairs each. The line is where the points would be if margins were"
        " log-odds; 0.5 is a coin."
    )
    if len(cards) > len(shown):
        note += f" These are the first {len(shown)} of {len(cards)}."
    return plot("calibration", "Judges: share right by margin", note, make)


def _calibrated(
    panel: Panel, card: JudgeCard, number: int, high: float, *, first: bool, low: bool
) -> None:
    drawing = panel.drawing
    panel.upwards(-0.03, 1.03, (0, 0.5, 1), "share right" if first else None)
    panel.x = Scale(0, high, panel.left, panel.right)
    panel.floor(panels.round_ticks(0, high, 4), "{:.3g}".format, "mean |margin|" if low else "")
    steps = [high * k / 40 for k in range(41)]
    drawing.line([(panel.x(x), panel.y(1 / (1 + math.exp(-x)))) for x in steps], SOFT, 1, "4 2")
    places = [(panel.x(b.margin), panel.y(b.right)) for b in card.calibration]
    drawing.line(places, INK)
    shown = {"blank": ", seeing a grey picture", "swap": ", seeing another picture"}
    where = f"{card.stage}, by {card.measure}{shown.get(card.image, '')}"
    for k, (b, (x, y)) in enumerate(zip(card.calibration, places, strict=True)):
        said = f"|margin| {b.margin:.3g}, {b.right:.3f} right of {b.pairs} pairs"
        said = f"{card.judge} at {where}: {said}"
        drawing.mark("circle", x, y, INK, 6, id=f"b{number}-{k}", said=said)
    room = panel.right - panel.left
    drawing.text(panel.left, panel.top - 27, fitted(card.judge, room / BOLD), font_weight=600)
    drawing.text(panel.left, panel.top - 11, fitted(where, room), SOFT)
