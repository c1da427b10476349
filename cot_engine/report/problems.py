"""Every problem's outcome by strategy, and the searches behind them: the report's last part.

Problems on which strategies differ come first, one row each. The searches of some of them are in
the page, folded; for the others it says the command that draws them. Here is what is shown; its
markup is in `problems.html.jinja`.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from cot_engine.ablation.records import Key
from cot_engine.ablation.store import Store
from cot_engine.core.trace import Trace
from cot_engine.core.usage import Usage
from cot_engine.errors import CotEngineError
from cot_engine.report.findings import Findings, ItemOutcome
from cot_engine.report.looks import by_label
from cot_engine.show import captions, words
from cot_engine.show import figure as fig
from cot_engine.show.figure import Card, Column, Figure
from cot_engine.show.templates import part

ROOM = 1_400_000  # bytes of searches in a page, so that it opens fast on a phone
_QUESTION = 180  # characters of a question in the matrix
_TEXT, _OTHER = 400, 140  # characters of a candidate on the answer's path, and of any other
_CARDS = 8  # candidates of a stage


def problems(
    findings: Findings, store: Store, traces: int, first: Sequence[str] = ()
) -> dict[str, Any]:
    """The matrix, the problems on which all agree, and the searches of at most `traces` others,
    those of `first` (digests) before all others. `targets`: where each search (item, label) is in
    the page."""
    labels = [label for label, _ in findings.run.cells.values()]
    look = by_label(findings.run)
    differing: list[ItemOutcome] = []
    right: list[ItemOutcome] = []
    wrong: list[ItemOutcome] = []
    for outcome in findings.outcomes:
        known = {v for label in labels if (v := outcome.correct.get(label)) is not None}
        if known == {1.0}:
            right.append(outcome)
        elif known == {0.0}:
            wrong.append(outcome)
        elif known:
            differing.append(outcome)
    rank = {item: at for at, item in enumerate(first)}
    order = sorted(enumerate(differing), key=lambda pair: rank.get(pair[1].item, len(rank)))
    shown, searches = _searches(findings, store, order, labels, traces)
    rows = [_row(findings, store, n, o, labels, shown) for n, o in enumerate(differing)]
    return {
        "targets": {
            (outcome.item, label): target
            for outcome, row in zip(differing, rows, strict=True)
            for label, (_, _, target) in zip(labels, row["cells"], strict=True)
            if target
        },
        "labels": [(label, look[label].symbol) for label in labels],
        "counts": [f"{len(group):,}" for group in (differing, right, wrong)],
        "of": len(differing) + len(right) + len(wrong),
        "rows": rows,
        "agreed": [
            (f"{title}: {words.plural(len(group), 'problem')}", list(map(asked, group)), kind)
            for title, group, kind in (("All wrong", wrong, "open"), ("All right", right, ""))
            if group
        ],
        "command": _command(findings, store, "PROBLEM", "STRATEGY"),
        "seed": _seed(findings),
        "searched": words.plural(len(searches), "problem"),
        "searches": searches,
    }


def _seed(findings: Findings) -> int:
    """The run's first."""
    return findings.run.seeds[0] if findings.run.seeds else 0


def _command(findings: Findings, store: Store, problem: str, label: str) -> str:
    """What draws one search, of the run's first seed."""
    search = f"{problem}/{label}/{_seed(findings)}"
    read = ["cot-engine", "report", str(store.path), "--run", findings.run.id, "--trace", search]
    return f"{shlex.join(read)} | cot-engine trace -"


def _row(
    findings: Findings,
    store: Store,
    number: int,
    outcome: ItemOutcome,
    labels: Sequence[str],
    shown: set[tuple[str, str]],
) -> dict[str, Any]:
    """A row of the matrix: class, mark and link of each strategy."""
    cells = []
    away = ""  # the first strategy whose search is not in the page
    for at, label in enumerate(labels):
        if not outcome.keys.get(label):
            cells.append(("o", "", ""))
            continue
        here = (outcome.item, label) in shown
        away = away or ("" if here else label)
        target = f"t{number}-{at}" if here else f"p{number}"
        cells.append((*mark(outcome.correct.get(label)), target))
    command = _command(findings, store, outcome.problem, away) if away else ""
    return {"outcome": asked(outcome), "id": f"p{number}", "command": command, "cells": cells}


def mark(score: float | None) -> tuple[str, str]:
    """A cell's class and what it shows."""
    if score is None:
        return "o", "–"
    if score in (0.0, 1.0):
        return ("y", "✓") if score else ("n", "✗")
    return "h", f"{score:.2f}".removeprefix("0")


def asked(outcome: ItemOutcome) -> dict[str, str]:
    return {
        "problem": outcome.problem,
        "type": outcome.type,
        "question": short(outcome.question, _QUESTION),
        "expected": short(outcome.expected, 60),
    }


def short(text: str, most: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


# --- searches ------------------------------------------------------------------------------------


def _searches(
    findings: Findings,
    store: Store,
    outcomes: Sequence[tuple[int, ItemOutcome]],
    labels: Sequence[str],
    most: int,
) -> tuple[set[tuple[str, str]], list[str]]:
    """Which searches (item, label) are in the page, and as markup those of at most so many
    problems. Outcomes come with their numbers, what matters most first; they are shown by
    number."""
    shown: set[tuple[str, str]] = set()
    parts: dict[int, str] = {}
    look = by_label(findings.run)
    room = ROOM
    for number, outcome in outcomes:
        if len(parts) >= most:
            break
        drawn = {}
        for at, label in enumerate(labels):
            if key := _key(findings, outcome, label):
                try:
                    trace = store.trace(findings.run, key)
                except CotEngineError:  # a search that failed, or was stored without its trace
                    continue
                found = _search(outcome, label, trace, f"t{number}-{at}")
                drawn[label] = found | {"symbol": look[label].symbol}
        if drawn:
            made = part("report/problems.html.jinja", "problem", asked(outcome), drawn.values())
            room -= len(made.encode("utf-8", "replace"))
            if room < 0:
                break
            shown |= {(outcome.item, label) for label in drawn}
            parts[number] = made
    return shown, [parts[number] for number in sorted(parts)]


def _key(findings: Findings, outcome: ItemOutcome, label: str) -> Key | None:
    """The search of the run's first seed."""
    first = _seed(findings)
    return next((key for key in outcome.keys.get(label, ()) if key.seed == first), None)


def _search(outcome: ItemOutcome, label: str, trace: Trace, id: str) -> dict[str, Any]:
    """One search: what it answered at what cost, and its stages."""
    try:
        figure = fig.read(trace)
    except CotEngineError as error:
        return {"label": label, "id": id, "error": str(error), "remarks": [], "stages": []}
    kind, shown = mark(outcome.correct.get(label))
    total = sum(figure.usage.values(), Usage())
    cost = f"{words.number(total.flops)}flops" if total.flops else f"{total.tokens:,} tokens"
    return {
        "label": label,
        "id": id,
        "error": "",
        "kind": kind,
        "mark": shown,
        "answer": short(figure.answer if figure.answer is not None else figure.ending, 80),
        "cost": cost if " " in cost else cost.replace("flops", " flops"),
        "remarks": figure.remarks,
        "stages": [_stage(figure, column) for column in figure.columns],
    }


def _stage(figure: Figure, column: Column) -> dict[str, Any]:
    cards = sorted(column.cards, key=lambda card: not card.on_path)
    return {
        "title": column.title,
        "said": captions.column_text(column),
        "cards": [_candidate(figure, column, card) for card in cards[:_CARDS]],
        "more": f"{more:,}" if (more := len(cards) - _CARDS) > 0 else "",
        "matches": _matches(column),
        "remarks": column.remarks,
    }


def _candidate(figure: Figure, column: Column, card: Card) -> dict[str, Any]:
    parts = words.pieces(card.step.text, figure.started.plan)
    if len(parts) > 1 or (parts and column.unit in ("end", "sentence")):
        text = " ".join(f"{stage}: {said}" if stage else said for stage, said in parts)
    else:
        text = " ".join(said for _, said in parts)
    if not card.on_path and column.unit == "end" and parts:
        text = f"… {parts[-1][0]}: {parts[-1][1]}"
    return {
        "chosen": card.on_path,
        "label": card.label + f" ×{card.count}" * (card.count > 1),
        "likely": words.logprob_text(card.chain.likelihood(1)),
        "text": short(text, _TEXT if card.on_path else _OTHER),
        "faults": [words.fault_text(fault) for fault in card.step.faults],
    }


def _matches(column: Column) -> str:
    """ "A beat B +0.40 −0.60; ..."."""
    said = []
    for match in column.matches[: 2 * _CARDS]:
        tie = words.tie_text(match)
        margins = " ".join(words.margins(match))
        said.append(" ".join(filter(None, (column.pair(match), margins, tie and f"({tie})"))))
    if more := len(column.matches) - len(said):
        said.append(f"and {more:,} more")
    return "; ".join(said)
