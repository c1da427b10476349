"""The report of an ablation as one self-contained HTML file: no script, nothing fetched.

What it says is in `Findings`; the searches it shows are read from the store; its markup is in
`page.html.jinja`.
"""

from __future__ import annotations

import json
import math
from typing import Any

from cot_engine.ablation.store import Store
from cot_engine.report import amounts, plots
from cot_engine.report.amounts import axis, bounds, figures, points, share
from cot_engine.report.findings import Findings, Standing
from cot_engine.report.gallery import Turned, gallery
from cot_engine.report.gallery import turned as chosen
from cot_engine.report.heatmap import heat_map
from cot_engine.report.looks import CLIPS, Look, by_label, looks
from cot_engine.report.pictures import Pictures
from cot_engine.report.problems import problems
from cot_engine.report.rowplots import ROLES
from cot_engine.report.tradeoff import pareto, spent, units
from cot_engine.show import words
from cot_engine.show.templates import render
from cot_engine.statistics import Interval


def page(findings: Findings, store: Store, *, traces: int = 60) -> str:
    """The page, as text. `traces`: the most problems whose searches are shown in it.

    Raises StoreError for a store that cannot be read.
    """
    run = findings.run
    settings, written = _settings(findings)
    turned = chosen(findings)
    shown = problems(findings, store, traces, turned.items() if turned else ())
    look = by_label(run)
    return render(
        "report/page.html.jinja",
        title=f"Ablation {run.name}"[:80],
        findings=findings,
        run=run,
        amounts=amounts,
        words=words,
        symbol=lambda label: look[label].symbol if label in look else "",
        symbols=[
            {"symbol": each.symbol, "color": each.color, "clip": CLIPS[each.marker]}
            for each in sorted({*look.values(), *_looks(findings).values()})
        ],
        drawn=plots.draw(findings),
        data=_about(findings, "data").get("name") or "its data",
        sizes=_sizes(findings),
        gained=_gained(findings, turned),
        accuracy=_accuracy(findings),
        heat=heat_map(findings),
        gallery=gallery(findings, store, turned, shown["targets"], Pictures(store)),
        labels=list(dict.fromkeys(label for row in findings.types for label in row.accuracy)),
        problems=shown,
        settings=settings,
        written=written,
        cells=[
            (hash, label, json.dumps(plain, ensure_ascii=False))
            for hash, (label, plain) in run.cells.items()
        ],
    )


def _sizes(findings: Findings) -> list[str]:
    run = findings.run
    sizes = [
        words.plural(len(run.items), "problem"),
        words.plural(len(run.seeds), "seed"),
        words.plural(len(run.cells), "configuration"),
        words.plural(findings.searches, "search", "searches"),
    ]
    return sizes + [f"only where {findings.where}"] * bool(findings.where)


def _gained(findings: Findings, turned: Turned | None) -> dict[str, Any]:
    """What the strategy that the report is about won over its baseline, and how many times the
    baseline's cost it took; nothing where there is none of both."""
    changes = {c.label: c for c in findings.changes if c.type is None}
    if turned is None:
        return {}
    change = changes[turned.first]
    by_label = {s.label: s for s in findings.standings}
    both = [by_label[label] for label in (change.label, change.baseline) if label in by_label]
    costs = []
    for unit in units(findings) if len(both) > 1 else ():
        first, base = (spent(s, unit, findings.unit) for s in both)
        if math.isfinite(times := first / base):
            costs.append(("FLOPs" if unit == "flops" else unit, figures(times)))
    d = change.difference
    return {
        "label": change.label,
        "baseline": change.baseline,
        "points": points(d.estimate),
        "bounds": f"95 % interval {points(d.low)} to {points(d.high)}",
        "right": f"{change.right:,}",
        "wrong": f"{change.wrong:,}",
        "problems": f"{change.problems:,}",
        "costs": costs,
    }


# --- accuracy and cost ---------------------------------------------------------------------------

_SIGNS = {"vote": "+", "random": "×", "oracle": "☆"}  # as the plots mark them
_MARKS = {
    "reference": "sets the budget",
    "matched": "matched",
    "unmatched": "not matched",
    "": "",
}


def _accuracy(findings: Findings) -> dict[str, Any]:
    """The table of accuracies and costs: its rows, its scale, and which columns there are."""
    standings = findings.standings
    known = [s.accuracy for s in standings if not math.isnan(s.accuracy.estimate)]
    low = math.floor(10 * min((i.low for i in known), default=0)) / 10
    high = math.ceil(10 * max((i.high for i in known), default=1)) / 10
    most = [s.spent for s in standings] + [s.allotted or 0 for s in standings]
    factor, unit = axis([v for v in most if not math.isnan(v)], findings.unit)
    look = _looks(findings)
    columns = [_costs(findings, each) for each in units(findings)]
    roles = [role for role in ROLES if any(s.by_role.get(role) for s in standings)]
    budgets = any(s.allotted is not None for s in standings)
    failures = any(s.failed for s in standings)
    derived = next((s for s in standings if s.kind != "search"), None)

    def in_unit(value: float | None) -> str:
        if value is None:
            return ""
        return "–" if math.isnan(value) else figures(value / factor)

    return {
        "rows": [
            {
                "symbol": look[s.strategy].symbol if s.kind == "search" else "",
                "sign": _SIGNS.get(s.kind, ""),
                "kind": "faint" if s.kind != "search" else s.matching,
                "first_derived": s is derived,
                "label": s.label,
                "problems": f"{s.problems:,}",
                "accuracy": share(s.accuracy.estimate),
                "bounds": bounds(s.accuracy).replace(" to ", "–"),
                "bar": _bar(s.accuracy, low, high, look[s.strategy].color * (s.kind == "search")),
                "costs": [(title, *costs[s.label]) for title, costs in columns],
                "by_role": [(role, in_unit(s.by_role.get(role) or None)) for role in roles],
                "allotted": in_unit(s.allotted),
                "left": in_unit(s.left),
                "mark": _mark(s),
                "failed": f"{s.failed:,}" if s.failed else "",
            }
            for s in standings
        ],
        "low": f"{low:.1f}",
        "high": f"{high:.1f}",
        "unit": unit,
        "roles": roles,
        "budgets": budgets,
        "failures": failures,
        "costs": [title for title, _ in columns],
        "best": any(best for _, costs in columns for _, best in costs.values()),
        "columns": 6 + len(columns) + len(roles) + 3 * budgets + failures,
        "reference": next((s.label for s in standings if s.matching == "reference"), ""),
    }


def _looks(findings: Findings) -> dict[str, Look]:
    return looks(s.strategy for s in findings.standings)


def _costs(findings: Findings, unit: str) -> tuple[str, dict[str, tuple[str, bool]]]:
    """A column of costs: its head, and by label what is in it and whether it is Pareto-best."""
    amounts = {s.label: spent(s, unit, findings.unit) for s in findings.standings}
    factor, name = axis([v for v in amounts.values() if not math.isnan(v)], unit)
    best = {s.label for s in pareto(findings, unit)}
    return name, {
        label: ("–" if math.isnan(v) else figures(v / factor), label in best)
        for label, v in amounts.items()
    }


def _bar(found: Interval, low: float, high: float, color: str) -> str:
    """Where an interval and its estimate are on a scale from low to high, and in which colour;
    "" where unknown."""

    def place(value: float) -> str:
        share = (value - low) / (high - low) if high > low else 0.5
        return f"{100 * min(1, max(0, share)):.1f}%"

    if math.isnan(found.estimate):
        return ""
    places = f"--a:{place(found.low)};--m:{place(found.estimate)};--b:{place(found.high)}"
    return f"{places};--c:{color}" if color else places


def _mark(s: Standing) -> str:
    said = _MARKS[s.matching]
    if s.matching in ("matched", "unmatched") and s.allotted:
        said += f" (×{s.spent / s.allotted:.2f})"
    return said


# --- what was run --------------------------------------------------------------------------------


def _about(findings: Findings, key: str) -> dict[str, Any]:
    found = findings.run.about.get(key)
    return found if isinstance(found, dict) else {}


def _settings(findings: Findings) -> tuple[list[tuple[str, Any]], list[tuple[str, str]]]:
    """What the run says of itself, a line each, and what it has of whole texts."""
    run = findings.run
    rows: list[tuple[str, Any]] = [("run", run.id), ("started", run.started), ("code", run.code)]
    rows += [("model", run.model), ("data", run.data)]
    rows += [("seeds", ", ".join(map(str, run.seeds)))]
    written: list[tuple[str, str]] = []
    for key, value in run.about.items():
        if isinstance(value, dict):
            said = {name: part for name, part in value.items() if part not in (run.model, run.data)}
            rows += [(f"{key}, {name}", part) for name, part in said.items()]
        elif "\n" in str(value):
            written.append((f"{key.capitalize()}, as written", str(value)))
        else:
            rows.append((key, value))
    done = f"{findings.searches:,}, of which {findings.failed:,} failed"
    rows.append(("searches", f"{done}; {findings.missing:,} missing"))
    return [(key, value) for key, value in rows if value != ""], written
