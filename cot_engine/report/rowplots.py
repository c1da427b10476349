"""The report's plots in rows: comparisons, costs, headroom; and how judges are calibrated."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from cot_engine.report import panels
from cot_engine.report.amounts import amount, axis, figures, interval, points, probability, share
from cot_engine.report.findings import Comparison, Findings, Headroom
from cot_engine.report.panels import Plot, plot
from cot_engine.report.svg import INK, NARROW, PAPER, SERIES, SOFT, Drawing, fitted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from cot_engine.report.judging import Card

ROLES = ("generate", "judge", "score")
MOST = 60  # rows of a plot; the tables have all
_HATCH = {"generate": "", "judge": "/////", "score": "....."}


def forest(findings: Findings) -> Plot:
    found = [c for c in findings.comparisons if panels.finite(c.paired.difference)]
    if not found:
        return Plot("forest", absent="No two rows have a problem in common: nothing to compare.")
    shown = found[:MOST]
    labels = [f"{c.first} − {c.second}" for c in shown]

    def make(width: int) -> Drawing:
        drawing, ax, heights = panels.rows(width, labels, [_difference(c) for c in shown])
        ends = [v for c in shown for v in (c.paired.difference.low, c.paired.difference.high)]
        panels.span_axis(ax, [*ends, 0.0], lambda x: points(x, "+.3g"))
        ax.set_xlabel("difference in accuracy (points)")
        panels.zero_line(ax)
        for i, (c, label, y) in enumerate(zip(shown, labels, heights, strict=True)):
            d = c.paired.difference
            clear = c.p < 0.05 and (d.low > 0 or d.high < 0)
            marker = "o" if c.matched else "D"
            dot = panels.along(
                ax, d, y, marker, INK if clear else SOFT, hollow=not c.matched,
                size=6.5, width=2.4 if clear else 1.3,
            )  # fmt: skip
            said = f"{interval(d, sign=True)}, adjusted p {probability(c.p)}"
            drawing.name(dot, f"d{i}", f"{label}: {said}; compute {c.ratio:.2f} to 1")
        return drawing

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
    looks = {
        role: {"fc": SERIES[i], "ec": PAPER, "hatch": _HATCH[role], "lw": 1}
        for i, role in enumerate(ROLES)
    }
    told = any(s.allotted is not None for s in shown)

    def make(width: int) -> Drawing:
        texts = [figures(s.spent / factor) for s in shown]
        drawing, ax, heights = panels.rows(width, [s.label for s in shown], texts, head=32)
        panels.span_axis(ax, [0.0, most / factor], lambda x: f"{x:,.3g}")
        ax.set_xlim(0, most / factor * 1.02)
        ax.set_xlabel(f"mean spent on a search ({unit})")
        for i, (s, y) in enumerate(zip(shown, heights, strict=True)):
            start = 0.0
            for role in roles:
                if not (part := s.by_role.get(role, 0.0) / factor):
                    continue
                (bar,) = ax.barh([y], [part], 13, start, **looks[role])
                start += part
                used = amount(s.by_role[role], findings.unit)
                drawing.name(
                    bar,
                    f"{role}{i}",
                    f"{s.label}: {role} {used} of {amount(s.spent, findings.unit)}",
                )
            if s.allotted is not None:
                at = s.allotted / factor
                (tick,) = ax.plot([at, at], [y - 10, y + 10], color=INK, lw=2)
                tick.set_solid_capstyle("butt")
                allotted = f"{s.label}: allotted {amount(s.allotted, findings.unit)}"
                drawing.name(tick, f"allotted{i}", allotted)
        entries = [(role, looks[role]) for role in roles]
        if told:
            bar = {"marker": "|", "color": INK, "ms": 14, "mew": 2}
            entries.append(("allotted", bar))
        panels.swatches(ax, entries)
        return drawing

    note = "What a search cost on average, by who spent it." + (
        " The upright tick is what it was allotted." * told
    )
    return plot("cost", f"Cost of a search by role, in {unit}", note, make)


_CHOICES = (("random", "o", SERIES[6], True), ("selected", "o", SERIES[0], False))
_CHOICES += (("oracle", "D", SERIES[2], True),)


def headroom(findings: Findings) -> Plot:
    found = [h for h in findings.headrooms if panels.finite(h.selected)][:MOST]
    if not found:
        why = "No selection of this run is known candidate by candidate: no headroom to draw."
        return Plot("headroom", absent=why)
    titles = list(dict.fromkeys(map(headroom_title, found)))
    lines: list[tuple[str, Headroom | None]] = []
    for title in titles:
        lines.append((title, None))
        lines += [(h.stage, h) for h in found if headroom_title(h) == title]

    def make(width: int) -> Drawing:
        texts = ["" if h is None else _taken(h) for _, h in lines]
        headings = [i for i, (_, h) in enumerate(lines) if h is None]
        labels = [label for label, _ in lines]
        drawing, ax, heights = panels.rows(width, labels, texts, head=32, headings=headings)
        ends = [v for h in found for i in (h.random, h.selected, h.oracle) for v in (i.low, i.high)]
        panels.span_axis(ax, [v for v in ends if math.isfinite(v)], lambda x: f"{x:.3g}")
        ax.set_xlabel("mean score of the candidate that is taken")
        for i, ((_, h), y) in enumerate(zip(lines, heights, strict=True)):
            for (name, marker, color, hollow), dy in zip(_CHOICES, (6, 0, -6), strict=True):
                if h is not None and panels.finite(one := getattr(h, name)):
                    dot = panels.along(
                        ax, one, y + dy, marker, color, hollow=hollow, size=5.5, width=1.1
                    )
                    said = f"{headroom_title(h)}, {h.stage}, {name}: {interval(one)}"
                    drawing.name(dot, f"{name}{i}", said)
        looks = [
            (name, {"marker": m, "color": c, "mfc": PAPER if hollow else c, "mew": 1.5, "ls": ""})
            for name, m, c, hollow in _CHOICES
        ]
        panels.swatches(ax, looks)
        return drawing

    note = (
        "How good the candidate is that is taken at a stage: a random one, the one that was"
        " selected, the best there was. Left of the oracle's point is what judging lost, right of"
        " it what was never sampled. The percentage: how much of the way from random to oracle"
        " selection went. 95 % intervals."
    )
    return plot("headroom", "Random, selected and oracle candidates by stage", note, make)


def headroom_title(h: Headroom) -> str:
    """ "stage-beam n=4, worth"."""
    return f"{h.label}, {h.measure}"


def _taken(h: Headroom) -> str:
    return "–" if h.taken is None else f"{100 * h.taken:.0f} %".replace("-", "−")


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
        high = max(b.margin for c in shown for b in c.calibration) * 1.08
        drawing = Drawing(width, down * (tall + head + 34) + 16)
        for i, card in enumerate(shown):
            column, row = i % across, i // across
            x, y = left + column * (each + gap), row * (tall + head + 34) + head
            ax = drawing.axes(x, y, width - x - each, drawing.height - y - tall)
            _calibrated(drawing, ax, card, i, high, first=column == 0, low=row == down - 1)
        return drawing

    note = (
        "How often the candidate with the higher margin was the better one, over the mean |margin|"
        " of a fifth of the pairs each. The line is where the points would be if margins were"
        " log-odds; 0.5 is a coin."
    )
    if len(cards) > len(shown):
        note += f" These are the first {len(shown)} of {len(cards)}."
    return plot("calibration", "Judges: share right by margin", note, make)


def card_title(card: Card) -> str:
    """ "likelihood at CAPTION, by worth", "... seeing a blank picture"."""
    shown = {"blank": ", seeing a grey picture", "swap": ", seeing another picture"}
    return f"{card.judge} at {card.stage}, by {card.measure}{shown.get(card.image, '')}"


def _calibrated(
    drawing: Drawing, ax: Axes, card: Card, number: int, high: float, *, first: bool, low: bool
) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.set_xlim(0, high)
    ax.set_ylim(-0.03, 1.03)
    ax.set_yticks([0, 0.5, 1], ["0", "0.5", "1"] if first else ["", "", ""])
    ax.xaxis.set_major_locator(MaxNLocator(3))
    ax.tick_params(length=3)
    ax.grid(axis="y")
    steps = [high * k / 40 for k in range(41)]
    ax.plot(steps, [1 / (1 + math.exp(-x)) for x in steps], color=SOFT, lw=1, ls="--")
    xs, ys = [b.margin for b in card.calibration], [b.right for b in card.calibration]
    ax.plot(xs, ys, color=SERIES[0], lw=1)
    for k, b in enumerate(card.calibration):
        (dot,) = ax.plot([b.margin], [b.right], "o", color=SERIES[0], ms=6, clip_on=False)
        said = f"{card_title(card)}: |margin| {b.margin:.3g}, {share(b.right)} right"
        drawing.name(dot, f"b{number}-{k}", f"{said} of {b.pairs} pairs")
    top = ax.bbox.height
    title, _, where = card_title(card).partition(" at ")
    panels.text(ax, 0, top + 27, fitted(title, ax.bbox.width), weight="bold")
    panels.text(ax, 0, top + 11, fitted(where, ax.bbox.width), color=SOFT)
    if first:
        ax.set_ylabel("share right")
    if low:
        ax.set_xlabel("mean |margin|")
