"""What a strategy looks like: one colour and one marker, in every plot, table and list.

They follow from the strategy's name alone, so a strategy looks the same in every report, whatever
stands beside it. Its variants (n, judge, budget) share them: they are told apart by their labels,
and in plots by the number of their row. Markers differ as colours do, for those who see no colours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

from cot_engine.ablation.records import Run
from cot_engine.report.svg import MARKERS, SERIES


class Look(NamedTuple):
    """A colour, as a page names it, and a marker; `symbol` is the page's class for both."""

    color: str
    marker: str
    symbol: str


_OURS = {
    "stage-beam": Look(SERIES[0], "circle", "look-stage-beam"),
    "best-of-n": Look(SERIES[1], "square", "look-best-of-n"),
    "majority": Look(SERIES[2], "diamond", "look-majority"),
    "sentence-beam": Look(SERIES[3], "up", "look-sentence-beam"),
    "greedy": Look(SERIES[4], "down", "look-greedy"),
    "weighted-vote": Look(SERIES[2], "hexagon", "look-weighted-vote"),  # a vote, as majority is
    "swires": Look(SERIES[5], "pentagon", "look-swires"),
    "retrace": Look(SERIES[6], "square", "look-retrace"),
    "particle": Look(SERIES[7], "circle", "look-particle"),
    "diverse": Look(SERIES[8], "diamond", "look-diverse"),
    "lookahead": Look(SERIES[9], "up", "look-lookahead"),
}
"""The strategies that come along. No other gets the colour and marker of one of them."""
_OTHERS = SERIES[5:]

CLIPS = {
    "circle": "circle(36%)",
    "square": "inset(18%)",
    "diamond": "polygon(50% 3%, 97% 50%, 50% 97%, 3% 50%)",
    "up": "polygon(50% 4%, 91% 74%, 9% 74%)",
    "down": "polygon(50% 96%, 91% 26%, 9% 26%)",
    "pentagon": "polygon(50% 10%, 88% 38%, 74% 82%, 26% 82%, 12% 38%)",
    "hexagon": "polygon(70% 15%, 90% 50%, 70% 85%, 30% 85%, 10% 50%, 30% 15%)",
}
"""The markers as a style sheet cuts them out of a box: in the heads that print repeats on each
page, Chromium loses drawings that are used by reference."""


def by_label(run: Run) -> dict[str, Look]:
    """Of each cell of a run, by its label."""
    found = looks(plain["strategy"] for _, plain in run.cells.values())
    return {label: found[plain["strategy"]] for label, plain in run.cells.values()}


def looks(strategies: Iterable[str]) -> dict[str, Look]:
    """Of each strategy, by name.

    Colours of others' strategies come from a digest of their names. Where that gives two of them
    the same colour and marker, the later one by name gets the next marker that is free.
    """
    names = sorted(set(strategies))
    found = {name: _OURS[name] for name in names if name in _OURS}
    for name in names:
        if name in found:
            continue
        digest = hashlib.sha256(name.encode("utf-8", "replace"))
        number = int.from_bytes(digest.digest()[:4])
        color, first = _OTHERS[number % len(_OTHERS)], number // len(_OTHERS)
        markers = [MARKERS[(first + i) % len(MARKERS)] for i in range(len(MARKERS))]
        beside = [*_OURS.values(), *found.values()]
        taken = {look.marker for look in beside if look.color == color}
        free = [marker for marker in markers if marker not in taken]
        found[name] = Look(color, (free or markers)[0], f"look-{digest.hexdigest()[:12]}")
    return found
