"""What searching changed, as a table whose cells are coloured: strategies by question type.

Its numbers are in its cells; colours only make them quick to find.
"""

from __future__ import annotations

import math
from typing import Any

from cot_engine.report.amounts import bounds, points
from cot_engine.report.findings import Change, Findings
from cot_engine.show import words

FEW = 20
"""Problems below which a difference says little: such cells are hatched."""
MANY = 6  # columns whose heads stand upright

_LEAST = 0.10  # the difference that has the strongest colour, where none is larger


def heat_map(findings: Findings) -> dict[str, Any]:
    """Its columns, rows and scale, as the template prints them; no rows where nothing searched."""
    labels = list(dict.fromkeys(c.label for c in findings.changes))
    by_type: dict[str | None, dict[str, Change]] = {}
    for change in findings.changes:
        by_type.setdefault(change.type, {})[change.label] = change
    whole = by_type.pop(None, {})
    # What was helped most stands first; types of few problems last, whatever they seem to say.
    order = sorted(by_type, key=lambda t: (_few(by_type[t]), -_mean(by_type[t])))
    known = [abs(c.difference.estimate) for c in findings.changes if c.problems >= FEW]
    known = known or [abs(c.difference.estimate) for c in findings.changes]
    most = max(_LEAST, math.ceil(10 * max(known, default=0.0) - 1e-9) / 10)
    accuracies = {row.type: row.accuracy for row in findings.types}
    overall = {s.label: s.accuracy for s in findings.standings if s.kind == "search"}
    baselines = list(dict.fromkeys(c.baseline for c in findings.changes))

    def row(name: str, changes: dict[str, Change], found: dict[str, Any]) -> dict[str, Any]:
        return {
            "name": name,
            "problems": words.plural(max(c.problems for c in changes.values()), "problem"),
            "few": _few(changes),
            "base": [found.get(label) for label in baselines],
            "cells": [_cell(changes.get(label), most) for label in labels],
        }

    rows = [row("all problems", whole, overall)] if whole else []
    rows += [row(t or "no type", by_type[t], accuracies.get(t or "", {})) for t in order]
    return {
        "labels": labels,
        "upright": len(labels) > MANY,
        "baselines": baselines,
        "rows": rows,
        "most": f"{100 * most:.0f}",
        "few": FEW if any(r["few"] for r in rows) else 0,
        "types": len(order),
    }


def _few(changes: dict[str, Change]) -> bool:
    return max(c.problems for c in changes.values()) < FEW


def _mean(changes: dict[str, Change]) -> float:
    return sum(c.difference.estimate for c in changes.values()) / len(changes)


def _cell(change: Change | None, most: float) -> dict[str, Any]:
    if change is None:
        return {"kind": "", "points": "–", "weight": "0", "turned": 0}
    d = change.difference
    clear = d.low > 0 or d.high < 0
    side = "gain" if d.estimate > 0 else "loss" if d.estimate < 0 else "even"
    kinds = [side, "few" * (change.problems < FEW), "clear" * clear]
    return {
        "kind": " ".join(filter(None, kinds)),
        "points": points(d.estimate, "+.1f" if abs(d.estimate) < 0.0995 else "+.0f"),
        "weight": f"{min(1.0, abs(d.estimate) / most):.2f}",
        "turned": change.right + change.wrong,
        "right": change.right,
        "wrong": change.wrong,
        "said": f"{change.label}: {points(d.estimate)} points ({bounds(d, sign=True)}),"
        f" {change.right} turned right, {change.wrong} turned wrong of {change.problems}",
    }
