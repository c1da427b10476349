"""Findings as text: Markdown for a paper's appendix, JSON for programs, CSV of single searches."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from typing import Any, TextIO

from cot_engine.ablation.labels import LABELLED
from cot_engine.ablation.records import Run
from cot_engine.ablation.store import Store
from cot_engine.core.usage import Role, Usage
from cot_engine.escape import terminal
from cot_engine.files.sheets import sheet_line
from cot_engine.report.amounts import axis, bounds, figures, interval, probability, share
from cot_engine.report.findings import Findings, Standing
from cot_engine.report.judging import JudgeCard

PLAIN_SCHEMA = 1
_MATCHING = {"": "", "reference": "reference", "matched": "yes", "unmatched": "no"}
_ROLES: tuple[Role, ...] = ("generate", "judge", "score", "verify")


# --- Markdown ------------------------------------------------------------------------------------


def markdown(findings: Findings) -> str:
    """Everything but single problems, as GitHub's Markdown, with what names and texts hold made
    harmless."""
    parts = [f"# Ablation {_safe(findings.run.name)}", _bullets(findings.headline)]
    if findings.notes:
        parts += ["## Notes", _bullets(findings.notes)]
    parts += ["## Accuracy and cost", *_accuracies(findings)]
    if findings.comparisons:
        parts += ["## Paired differences", *_differences(findings)]
    if findings.curves:
        parts += ["## Scaling", _scaling(findings)]
    if findings.headrooms:
        parts += ["## Headroom", *_headroom(findings)]
    if findings.types:
        parts += ["## By type of question", _types(findings)]
    if findings.cards:
        parts += ["## The judge", *_judges(findings.cards)]
    parts += ["## What was run", _setup(findings), _cells(findings.run)]
    parts += ["## Commands", _code(findings.commands)]
    return "\n\n".join(filter(None, parts)) + "\n"


def _accuracies(findings: Findings) -> list[str]:
    standings = findings.standings
    divisor, unit = _axis(findings)
    roles = [r for r in _ROLES if any(r in standing.by_role for standing in standings)]
    # Usage is in tokens, whatever the run's unit.
    heads = [
        "cell",
        "accuracy (95 % interval)",
        "problems",
        "searches",
        "failed",
        "at equal compute",
    ]
    heads += [f"{name} ({unit})" for name in ("allotted", "spent", "left", *roles)]
    verified = "verify" in roles
    heads += [
        "judge's share",
        *["verifiers' share"] * verified,
        "encodes",
        "prefilled",
        "decoded",
        "calls",
        "seconds",
    ]

    def scaled(value: float | None) -> str:
        return "–" if value is None or math.isnan(value) else figures(value / divisor)

    def line(s: Standing) -> list[str]:
        total = sum(s.usage.values(), Usage())
        cells = [_safe(s.label), interval(s.accuracy), f"{s.problems:,}", f"{s.searches:,}"]
        cells += [f"{s.failed:,}", _MATCHING[s.matching]]
        cells += [scaled(value) for value in (s.allotted, s.spent, s.left)]
        cells += [scaled(s.by_role.get(role, 0.0)) for role in roles]
        cells.append(share(judge_share(s)))
        cells += [share(verify_share(s))] * verified
        used = (total.encodes, total.prefilled, total.decoded, total.calls, s.seconds)
        return cells + ["–" if math.isnan(value) else figures(value) for value in used]

    searched = [line(s) for s in standings if s.kind == "search"]
    derived = [line(s) for s in standings if s.kind != "search"]
    legend = (
        "Amounts are means per search. Allotted is what the reference spent on the same problem"
        " with the same seed, or the amount that was set. Encodes are of images, prefilled and"
        " decoded are tokens. Seconds are from start to end, while other searches shared the"
        " model."
    )
    parts = [_table(heads, searched), legend]
    if derived:
        said = "Worked out from the whole responses that a cell's searches sampled (seconds are"
        parts += [f"{said} the model's):", _table(heads, derived)]
    return parts


def judge_share(standing: Standing) -> float | None:
    """Of what was spent, in the run's unit; None where nothing was."""
    return _share_of(standing, "judge")


def verify_share(standing: Standing) -> float | None:
    """What verifiers spent, as `judge_share` has it of judges."""
    return _share_of(standing, "verify")


def _share_of(standing: Standing, role: Role) -> float | None:
    spent = standing.spent
    return standing.by_role.get(role, 0.0) / spent if spent > 0 else None


def _differences(findings: Findings) -> list[str]:
    heads = ["first", "second", "first − second (95 % interval)", "p", "p, adjusted", "problems"]
    heads += ["only first right", "only second right", "spent, first : second", "equal compute"]
    rows = [
        [
            *(_safe(c.first), _safe(c.second), interval(c.paired.difference, sign=True)),
            *(probability(c.paired.p), probability(c.p), f"{c.paired.problems:,}"),
            *(share(c.paired.only_first), share(c.paired.only_second)),
            *("–" if math.isnan(c.ratio) else figures(c.ratio), "yes" if c.matched else "no"),
        ]
        for c in findings.comparisons
    ]
    legend = (
        "On the problems that both have, problems being what is resampled and exchanged; p of the"
        f" exact randomisation test, adjusted for {findings.comparisons[0].family} comparisons"
        " (Holm). Shares right are of single searches."
    )
    return [_table(heads, rows), legend, _bullets(c.sentence for c in findings.comparisons)]


def _scaling(findings: Findings) -> str:
    divisor, unit = _axis(findings)
    rows = [
        [_safe(curve.name), str(p.n), interval(p.accuracy), figures(p.spent / divisor)]
        for curve in findings.curves
        for p in curve.points
    ]
    return _table(["curve", "n", "accuracy (95 % interval)", f"spent ({unit})"], rows)


def _headroom(findings: Findings) -> list[str]:
    heads = ["cell", "stage", "measure", "candidates", "problems", "best candidate", "selected"]
    heads += ["random", "never generated", "judged away", "taken"]
    rows = [
        [
            *(_safe(h.label), _safe(h.stage), h.measure, figures(h.n), f"{h.problems:,}"),
            *(interval(h.oracle), interval(h.selected), interval(h.random)),
            share(1 - h.oracle.estimate),
            share(h.oracle.estimate - h.selected.estimate),
            share(h.taken),
        ]
        for h in findings.headrooms
    ]
    legend = (
        "Worth: the share of a candidate's continuations that end right (its own score once it"
        " holds an answer). Facts: whether its text is right. Never generated: 1 − best. Judged"
        " away: best − selected. Taken: (selected − random) / (best − random)."
    )
    return [_table(heads, rows), legend]


def _types(findings: Findings) -> str:
    heads = ["cell", *(f"{_safe(t.type)} ({t.problems:,})" for t in findings.types)]
    labels = dict.fromkeys(label for t in findings.types for label in t.accuracy)
    rows = [
        [
            _safe(label),
            *(interval(t.accuracy[label]) if label in t.accuracy else "–" for t in findings.types),
        ]
        for label in labels
    ]
    return _table(heads, rows)


def _judges(cards: Sequence[JudgeCard]) -> list[str]:
    heads = ["judge", "stage", "by", "picture", "pairs", "right (ties half)", "right (ties none)"]
    heads += ["by margin", "matches", "ties", "flips", "unreadable", "first named", "cycles"]
    heads += ["calibration error", "cost : a sample"]
    rows = [
        [
            *(_safe(c.judge), _safe(c.stage), c.measure, c.image, f"{c.pairs:,}"),
            *(interval(c.right), interval(c.strict), interval(c.leaning), f"{c.matches:,}"),
            *(share(c.ties), share(c.flips), share(c.unreadable)),
            f"{share(c.first.estimate, sign=True)} ({bounds(c.first, sign=True)})",
            *(share(c.cycles), share(c.calibration_error)),
            "–" if c.relative is None else figures(c.relative),
        ]
        for c in cards
    ]
    legend = (
        "On pairs with different outcomes; intervals over problems. First named: how much more"
        " often than half a decided verdict named the one shown first. Cost: of a match, over"
        " sampling one candidate."
    )
    return [_table(heads, rows), legend]


def _setup(findings: Findings) -> str:
    run, about = findings.run, findings.run.about
    data, model = about.get("data", {}), about.get("model", {})
    seeds = ", ".join(map(str, run.seeds))
    said = [
        f"Run {run.id}, begun {run.started}: {findings.searches:,} searches, {findings.failed:,}"
        f" failed, {findings.missing:,} missing",
        f"Data: {data.get('name', '')}, {len(run.items):,} problems, {run.data}",
        f"Graded: {data.get('rule', '')}",
        f"Seeds: {seeds}",
        f"Model: {model.get('name', '')} ({about.get('architecture', '')}),"
        f" {model.get('dtype', '')} on {about.get('device', '')}, {run.model}",
        f"Code: {run.code}",
        f"Machine: {about.get('machine', '')}",
    ]
    return _bullets(said)


def _cells(run: Run) -> str:
    told = {key: form.partition("{")[0].strip(" =") or key for key, form in LABELLED.items()}
    heads = ["cell", "hash", "strategy", "parameters", *told.values(), "rollouts"]
    rows = []
    for hash, (label, plain) in run.cells.items():
        config = plain["config"]
        parameters = ", ".join(f"{k}={v}" for k, v in plain["parameters"].items())
        values = [config.get(key, "") for key in told]
        cells = [label, hash, plain["strategy"], parameters, *values, plain["rollouts"]]
        rows.append([_safe(str(cell)) for cell in cells])
    return _table(heads, rows)


def _axis(findings: Findings) -> tuple[float, str]:
    values = (v for s in findings.standings for v in (s.allotted, s.spent) if v is not None)
    return axis((v for v in values if not math.isnan(v)), findings.unit)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """What is in the cells is Markdown already."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _bullets(sentences: Iterable[str]) -> str:
    return "\n".join(f"- {_safe(sentence)}" for sentence in sentences)


def _safe(text: str) -> str:
    """A text on one line in which Markdown, HTML and links are what is read, not what is done."""
    flat = " ".join(html.escape(terminal(text), quote=False).split())
    marked = re.sub(r"([\\`*_\[\]|~$#])|^(?=[-+])|(?<=^\d)(?=[.)])", r"\\\1", flat)
    return marked.replace("://", "&#58;//")


def _code(lines: Iterable[str]) -> str:
    text = "\n".join(" ".join(terminal(line).split()) for line in lines)
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}sh\n{text}\n{fence}"


# --- for a terminal ------------------------------------------------------------------------------


def summary(findings: Findings) -> str:
    """The searches in a table of plain columns, then the headline and the notes."""
    divisor, unit = _axis(findings)
    heads = ["cell", "accuracy (95 % interval)", "problems", f"spent ({unit})", "judge's share"]
    heads += ["equal compute"]
    rows = [
        [
            *(terminal(s.label), interval(s.accuracy), f"{s.problems:,}"),
            "–" if math.isnan(s.spent) else figures(s.spent / divisor),
            *(share(judge_share(s)), _MATCHING[s.matching]),
        ]
        for s in findings.standings
        if s.kind == "search"
    ]
    widths = [max(len(row[at]) for row in [heads, *rows]) for at in range(len(heads))]
    lines = [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in [heads, *rows]
    ]
    lines += ["", *(terminal(said) for said in findings.headline)]
    lines += [terminal(f"Note: {note}") for note in findings.notes]
    return "\n".join(line.rstrip() for line in lines)


# --- for programs --------------------------------------------------------------------------------


def plain(findings: Findings) -> dict[str, Any]:
    """Everything, as JSON has it; what has no value (NaN) is None. The keys are the fields of
    `findings.py`, but for these:

    - `schema`: PLAIN_SCHEMA; it changes when a key changes its meaning or goes.
    - `run`: the Run without its problems, `cells` being a list of `label`, `hash` and what makes
      the cell up.
    - `outcomes`: instead of `keys`, the `seeds` by label that there is a search for.
    """
    found: dict[str, Any] = {"schema": PLAIN_SCHEMA}
    for f in fields(findings):
        value = getattr(findings, f.name)
        if f.name == "run":
            value = _run(value)
        elif f.name == "outcomes":
            value = [_outcome(outcome) for outcome in value]
        elif isinstance(value, tuple):
            value = [each if isinstance(each, str) else asdict(each) for each in value]
        found[f.name] = _json(value)
    return found


def _run(run: Run) -> dict[str, Any]:
    simple = {f.name: getattr(run, f.name) for f in fields(run) if f.name not in ("cells", "items")}
    cells = [{"label": label, "hash": hash} | cell for hash, (label, cell) in run.cells.items()]
    return simple | {"problems": len(run.items), "cells": cells}


def _outcome(outcome: Any) -> dict[str, Any]:
    names = [f.name for f in fields(outcome) if f.name != "keys"]
    seeds = {label: [key.seed for key in keys] for label, keys in outcome.keys.items()}
    return {name: getattr(outcome, name) for name in names} | {"seeds": seeds}


def _json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def rows_csv(store: Store, run: Run, where: str | None, file: TextIO) -> None:
    """The searches of a run, one a line: the cell's label, then the columns of the view `results`.

    pandas.read_csv reads it. A text that a spreadsheet would take for a formula has an apostrophe
    before it. Raises StoreError for a condition that cannot be used.
    """
    for line in store.table(run, where):
        file.write(sheet_line(line))
