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
from cot_engine.report.amounts import axis, bounds, figures, share
from cot_engine.report.findings import Findings, Standing
from cot_engine.report.problems import problems
from cot_engine.report.rowplots import ROLES
from cot_engine.show import words
from cot_engine.show.templates import render
from cot_engine.statistics import Interval


def page(findings: Findings, store: Store, *, traces: int = 60) -> str:
    """The page, as text. `traces`: the most problems whose searches are shown in it.

    Raises StoreError for a store that cannot be read.
    """
    run = findings.run
    settings, written = _settings(findings)
    return render(
        "report/page.html.jinja",
        title=f"Ablation {run.name}"[:80],
        findings=findings,
        run=run,
        amounts=amounts,
        words=words,
        drawn=plots.draw(findings),
        data=_about(findings, "data").get("name") or "its data",
        sizes=_sizes(findings),
        accuracy=_accuracy(findings),
        labels=list(dict.fromkeys(label for row in findings.types for label in row.accuracy)),
        problems=problems(findings, store, traces),
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


# --- accuracy and cost ---------------------------------------------------------------------------

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
                "kind": "faint" if s.kind != "search" else s.matching,
                "first_derived": s is derived,
                "label": s.label,
                "problems": f"{s.problems:,}",
                "accuracy": share(s.accuracy.estimate),
                "bounds": bounds(s.accuracy),
                "bar": _bar(s.accuracy, low, high),
                "spent": in_unit(s.spent),
                "by_role": [in_unit(s.by_role.get(role) or None) for role in roles],
                "allotted": in_unit(s.allotted),
                "left": in_unit(s.left),
                "mark": _mark(s),
                "seconds": "–" if math.isnan(s.seconds) else f"{s.seconds:,.2f}",
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
        "columns": 8 + len(roles) + 3 * budgets + failures,
        "reference": next((s.label for s in standings if s.matching == "reference"), ""),
    }


def _bar(found: Interval, low: float, high: float) -> str:
    """Where an interval and its estimate are on a scale from low to high; "" where unknown."""

    def place(value: float) -> str:
        share = (value - low) / (high - low) if high > low else 0.5
        return f"{100 * min(1, max(0, share)):.1f}%"

    if math.isnan(found.estimate):
        return ""
    return f"--a:{place(found.low)};--m:{place(found.estimate)};--b:{place(found.high)}"


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
