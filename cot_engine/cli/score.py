"""`cot-engine score`: what a model's predictions come to, by named rules."""

from __future__ import annotations

import json as _json
import math
import sys
from typing import TYPE_CHECKING, Any

from cot_engine.errors import ConfigError, CotEngineError, UnknownNameError, cut
from cot_engine.escape import terminal
from cot_engine.files.outputs import check_outputs

if TYPE_CHECKING:
    from cot_engine.benchmarks.differences import Difference
    from cot_engine.benchmarks.scoring import Mark, Scored
    from cot_engine.benchmarks.tables import Cell

SHOWN = ("disagreements", "unresolved", "items")
_TOLD = 20  # faulty rows on stderr
_LONGEST = 120  # characters of a prediction
SCHEMA = 1


class FaultyPredictions(CotEngineError):
    """Everything that can be scored was, and some rows cannot."""

    exit_code = 3


def run(
    name: str,
    predictions: str,
    rules: list[str],
    show: str | None,
    against: str | None,
    grader: str | None,
    verdicts: str | None,
    *,
    json: bool,
    quiet: bool,
) -> None:
    from cot_engine.benchmarks.catalogue import benchmark
    from cot_engine.benchmarks.predictions import read_cases
    from cot_engine.benchmarks.rulesets import default, rule_set
    from cot_engine.benchmarks.scoring import score

    if show is not None and show not in SHOWN:
        raise UnknownNameError("listing called", show, SHOWN)
    if len(rules) > 2 or (len(rules) == 2 and show != "disagreements"):
        said = f"There are {len(rules)} sets of rules."
        raise ConfigError(said, "Give one, or two with --show disagreements.")
    chosen = benchmark(name)
    sets = [rule_set(each, chosen) for each in rules or [default(chosen)]]
    if show == "disagreements" and len(sets) < 2:
        other = "conclusion" if sets[0].name != "conclusion" else default(chosen)
        sets.append(rule_set(other, chosen))
    if grader is not None and verdicts is None:
        verdicts = f"{predictions}.verdicts.jsonl"
    inputs = [("the predictions", predictions), ("the questions", against)]
    check_outputs([("--verdicts", verdicts)], inputs)
    cases = read_cases(predictions, chosen, against)
    results = []
    for each in sets:
        found = score(cases, chosen, each)
        if verdicts is not None:
            replies, by = _replies(found, grader, verdicts, quiet)
            found = score(cases, chosen, each, replies, by)
        results.append(found)
    first = results[0]
    differ = None
    if show == "disagreements":
        from cot_engine.benchmarks.differences import differences

        differ = differences(*results)
    if json:
        print(_json.dumps(plain(first, show, results[1:], differ), indent=2, allow_nan=False))
    else:
        lines = _lines(first, show, results, differ)
        sys.stdout.write(terminal("\n".join(lines)) + "\n")
    sys.stdout.flush()
    _tell(first, quiet)


def _replies(
    found: Scored, grader: str | None, verdicts: str, quiet: bool
) -> tuple[dict[str, str], str]:
    """What a model says, or said, about what the rules leave open; and which model that is."""
    from cot_engine.benchmarks.grader import Verdicts, ask, name_of

    kept, kind, open_ = (
        Verdicts.read(verdicts, grader is None),
        found.benchmark.kind,
        found.unresolved,
    )
    if grader is None:
        by = ", ".join(sorted({model for model, _ in kept.replies}))
        return kept.of(kind, open_), by
    from cot_engine.backends.opening import open_backend
    from cot_engine.cli.progress import LongWork

    with LongWork({"grader": len(open_)}, noun="predictions", quiet=quiet) as progress:
        progress.say(f"Loading {grader}")
        backend = open_backend(grader, on_notice=progress.say)
        try:
            progress.starting()
            told = lambda done: progress.row("grader", None, 0.0, False)  # noqa: E731
            return ask(backend, kind, open_, kept, told), name_of(backend)
        finally:
            backend.close()


def _tell(found: Scored, quiet: bool) -> None:
    """What was wrong with rows, on stderr. Raises FaultyPredictions if some were not scored."""
    if not quiet:
        for each in found.troubles[:_TOLD]:
            print(terminal(str(each)), file=sys.stderr)
        if len(found.troubles) > _TOLD:
            print(f"... and {len(found.troubles) - _TOLD:,} more.", file=sys.stderr)
    faulty = sum(not each.scored for each in found.troubles)
    if faulty:
        said = f"Faults in the predictions: {faulty:,}; what is without fault is scored."
        raise FaultyPredictions(said, "--json lists all of them.")


# --- as text -------------------------------------------------------------------------------------


def _lines(
    found: Scored, show: str | None, results: list[Scored], differ: list[Difference] | None
) -> list[str]:
    lines = [*_headline(found), *(f"Note: {note}" for note in found.notes)]
    if show == "disagreements":
        assert differ is not None
        first, second = (each.rules.name for each in results)
        lines += ["", *_headline(results[1])[:2], ""]
        total = len(found.marks)
        lines.append(f"{first} and {second} differ on {len(differ):,} of {total:,} predictions.")
        for each in differ:
            lines += ["", *_difference(each, first, second)]
    elif show is not None:
        marks = found.unresolved if show == "unresolved" else found.marks
        lines.append("")
        for mark in marks:
            lines += [f"{_place(mark)}: {_told(mark)}", f"  {_shown(mark)}"]
        if not marks:
            lines.append("Nothing is unresolved.")
    else:
        for table in found.tables:
            lines += ["", *_table(table.name, table.unit, table.cells)]
    return lines


def _headline(found: Scored) -> list[str]:
    cell = found.overall
    name = found.benchmark.name + ("" if cell.name == "Overall" else f", {cell.name}")
    scored = len(found.marks) - len(found.unscored)
    lines = [
        f"{name}: {_points(cell.score)} % (95 % interval {_interval(cell)}),"
        f" rules {found.rules.name}",
        f"Rules: {found.rules.source}.",
        f"{scored:,} of {len(found.marks) + found.unread:,} predictions are scored.",
    ]
    unscored = len(found.unscored) + found.unread
    told = [f"{unscored:,} unscored"] * bool(unscored)
    if found.unit == "groups":
        lines.append(f"{cell.scored:,} of {cell.total:,} groups are scored.")
        told += [f"{cell.unscored:,} groups unscored"] * bool(cell.unscored)
    if told:
        open_ = len(found.unresolved)
        lines[0] += ", " + ", ".join(told)
        lines.append(
            f"Unscored: {open_:,} that the rules leave open, {unscored - open_:,} with faults. Were"
            f" all that is unscored wrong, it would be {_points(cell.at_least)} %; all right,"
            f" {_points(cell.at_most)} %."
        )
    if open_graders := {m.by for m in found.marks if m.by not in ("rules", "file")}:
        count = sum(m.by in open_graders and m.score is not None for m in found.marks)
        lines.append(f"{count:,} were decided by {', '.join(sorted(open_graders))}.")
    if count := sum(m.by == "file" and m.score is not None for m in found.marks):
        lines.append(f"Of {count:,} the file says what a model extracted or graded.")
    return lines


def _points(share: float) -> str:
    return "–" if math.isnan(share) else f"{100 * share:.2f}"


def _interval(cell: Cell) -> str:
    if math.isnan(cell.score):
        return "–"
    return f"{100 * cell.interval.low:.1f} to {100 * cell.interval.high:.1f}"


def _table(name: str, unit: str, cells: tuple[Cell, ...]) -> list[str]:
    missing = any(cell.unscored for cell in cells)
    rows = [[name, "score", "95 % interval", unit]]
    rows[0] += ["all wrong", "all right"] * missing
    for cell in cells:
        counts = f"{cell.scored:,}" + (f" of {cell.total:,}" if cell.unscored else "")
        rows.append([cell.name, _points(cell.score), _interval(cell), counts])
        rows[-1] += [_points(cell.at_least), _points(cell.at_most)] * missing
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return [
        "  ".join(
            text.ljust(width) if k == 0 else text.rjust(width)
            for k, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _place(mark: Mark) -> str:
    place = mark.case.place or mark.case.question.place
    return f"{mark.id} ({place})"


def _verdict(mark: Mark) -> str:
    if mark.score is None:
        return "unresolved" if mark.open else "unscored"
    return {0.0: "wrong", 1.0: "right"}.get(mark.score, f"{mark.score:g}")


def _told(mark: Mark) -> str:
    """What was extracted, by which rule, against what."""
    wanted = f"wanted {cut(mark.wanted)}" if mark.wanted else "no answer is known"
    if mark.score is None:
        return f"{_verdict(mark)}, {mark.why}; {wanted}"
    by = "" if mark.by == "rules" else f", by {'the file' if mark.by == 'file' else mark.by}"
    said = cut(mark.said.value or "") or "nothing"
    return f"{_verdict(mark)}: {said} ({mark.said.rule}{by}); {wanted}"


def _shown(mark: Mark) -> str:
    return repr(cut(" ".join(mark.case.prediction.split()), _LONGEST))


def _difference(each: Difference, first: str, second: str) -> list[str]:
    lines = [f"{_place(each.first)}: {_shown(each.first)}"]
    lines += [f"  {first}: {_told(each.first)}", f"  {second}: {_told(each.second)}"]
    return lines + ([f"  {each.why}"] if each.why else [])


# --- as JSON -------------------------------------------------------------------------------------


def plain(
    found: Scored,
    show: str | None = None,
    others: list[Scored] | None = None,
    differ: list[Difference] | None = None,
) -> dict[str, Any]:
    """Everything as JSON has it; a number that there is none of is null."""
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "benchmark": found.benchmark.name,
        "rules": {"name": found.rules.name, "source": found.rules.source},
        "score": _cell(found.overall),
        "predictions": len(found.marks) + found.unread,
        "unscored": len(found.unscored) + found.unread,
        "unresolved": [mark.id for mark in found.unresolved],
        "tables": [
            {"name": table.name, "unit": table.unit, "cells": [_cell(c) for c in table.cells]}
            for table in found.tables
        ],
        "troubles": [
            {"place": t.place, "column": t.column, "said": t.said, "scored": t.scored}
            for t in found.troubles
        ],
        "notes": list(found.notes),
    }
    if show == "items":
        result["items"] = [_mark(mark) for mark in found.marks]
    elif show == "unresolved":
        result["items"] = [_mark(mark) for mark in found.unresolved]
    elif differ is not None and others:
        names = found.rules.name, others[0].rules.name
        result["against"] = {"name": names[1], "source": others[0].rules.source}
        result["against"]["score"] = _cell(others[0].overall)
        result["disagreements"] = [
            {names[0]: _mark(each.first), names[1]: _mark(each.second), "why": each.why}
            for each in differ
        ]
    return result


def _cell(cell: Cell) -> dict[str, Any]:
    numbers = {"score": cell.score, "low": cell.interval.low, "high": cell.interval.high}
    numbers |= {"all_wrong": cell.at_least, "all_right": cell.at_most}
    there = {name: None if math.isnan(value) else value for name, value in numbers.items()}
    return {"name": cell.name, **there, "scored": cell.scored, "total": cell.total}


def _mark(mark: Mark) -> dict[str, Any]:
    return {
        "id": mark.id,
        "place": mark.case.place or mark.case.question.place,
        "prediction": mark.case.prediction,
        "extracted": mark.said.value,
        "rule": mark.said.rule,
        "wanted": mark.wanted,
        "score": mark.score,
        "by": mark.by,
        "why": mark.why,
    }
