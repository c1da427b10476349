"""A table of benchmarks as text and as JSON: scores with their intervals, what a problem cost, what
is not scored, what was left out, and published numbers where there are any."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cot_engine.ablation.table import AVERAGE
from cot_engine.ablation.table_scores import TableScores, unfinished
from cot_engine.benchmarks import hallusion
from cot_engine.benchmarks.tables import over_seeds

if TYPE_CHECKING:
    from cot_engine.ablation.records import Run
    from cot_engine.ablation.table_choice import Chosen
    from cot_engine.ablation.table_scores import Cost, Place, Row
    from cot_engine.benchmarks.tables import Cell

SCHEMA = 1
_MANY = 0.1
"""A larger share than this unscored, and a cell has what its score could be, not what it is of the
rest: those that rules can read are no sample."""
_COSTS = ["new tokens", "tokens", "Tflops", "seconds", "used"]


def text(chosen: Chosen, found: TableScores) -> list[str]:
    """Lines of Markdown."""
    columns = list(found.columns)
    everywhere = [row for row in found.rows if len(row.places) == len(columns)]
    lines = [f"# {chosen.table.name}", "", *_main(found, everywhere, columns)]
    subsets = _subsets(found)
    if subsets:
        lines += ["", "## Reasoning subsets", "", *_reasoning(found, subsets)]
    for name in columns:
        if any(name in row.places for row in found.rows if row not in everywhere):
            own = [row for row in found.rows if name in row.places]
            lines += ["", f"## {name}, all ways to search", "", *_alone(own, name, found)]
        lines += _parts(name, found)
    return [*lines, "", *_legend(chosen, found), *_left_out(chosen, found)]


def _main(found: TableScores, rows: list[Row], columns: list[str]) -> list[str]:
    averaged = any(row.average is not None for row in rows)
    count = "" if found.whole else f" of {len(columns)}"
    heads = ["row", *columns, *[AVERAGE + count] * averaged, *_COSTS]
    body = []
    for row in rows:
        cells = [_place(row.places[name], _published(row, name)) for name in columns]
        if averaged:
            value = _published(row, AVERAGE) if found.whole else None
            many = any(_many(place.cell) for place in row.places.values())
            cells.append(_cell(row.average, value, many) if row.average else "–")
        body.append([row.name, *cells, *_cost(row.cost)])
    return aligned(heads, body)


def _subsets(found: TableScores) -> list[str]:
    """The columns whose benchmarks have a reasoning subset that some row has a score of."""
    return [
        name
        for name in found.columns
        if any(name in row.places and row.places[name].subset for row in found.rows)
    ]


def _reasoning(found: TableScores, columns: list[str]) -> list[str]:
    names = [_subset_name(found, column) for column in columns]
    body = []
    for row in found.rows:
        places = [row.places.get(column) for column in columns]
        if any(place and place.subset for place in places):
            cells = [
                _cell(place.subset, _published(row, name)) if place and place.subset else "–"
                for place, name in zip(places, names, strict=True)
            ]
            body.append([row.name, *cells])
    return aligned(["row", *names], body)


def _subset_name(found: TableScores, column: str) -> str:
    subset = found.columns[column].benchmark.subset
    return subset.name if subset else column


def _alone(rows: list[Row], name: str, found: TableScores) -> list[str]:
    body = [
        [row.name, _place(row.places[name], _published(row, name)), *_cost(row.places[name].cost)]
        for row in rows
    ]
    return aligned(["row", name, *_COSTS], body)


def _parts(name: str, found: TableScores) -> list[str]:
    """Of a benchmark of groups of which none is whole, what its single rows come to; of one with
    several measures, each of these."""
    places = {row.name: row.places[name] for row in found.rows if name in row.places}
    shape = found.columns[name].benchmark.shape
    if shape == "hallusion":
        heads = ["row", *hallusion.MEASURES, "mean"]
        body = [
            [row, *(_within(place, each, "Overall") for each in hallusion.MEASURES), _place(place)]
            for row, place in places.items()
        ]
        return ["", f"## {name}", "", *aligned(heads, body)]
    if shape != "circular" or not all(math.isnan(p.cell.score) for p in places.values()):
        return []
    body = [[row, _within(p, "each turn alone", "all turns")] for row, p in places.items()]
    return [
        "",
        f"## {name}, each turn alone (no group is whole)",
        "",
        *aligned(["row", name], body),
    ]


def _within(place: Place, table: str, name: str) -> str:
    """One cell of a benchmark's own tables, over all seeds."""
    every = [
        next(c for t in each.tables if t.name == table for c in t.cells if c.name == name)
        for each in place.scored
    ]
    cell = over_seeds(every)
    return _cell(cell) + (f", {cell.unscored:,} unscored" if cell.unscored else "")


def _published(row: Row, column: str) -> float | None:
    return next((each.value for each in row.published if each.column == column), None)


def _place(place: Place, published: float | None = None) -> str:
    said = _cell(place.cell, published)
    if place.scored[0].unit == "groups":
        groups = place.cell.unscored
        return f"{said}, {groups:,} groups unscored" if groups else said
    return f"{said}, {place.unscored:,} unscored" if place.unscored else said


def _many(cell: Cell) -> bool:
    return cell.unscored > _MANY * cell.total


def _cell(cell: Cell, published: float | None = None, many: bool = False) -> str:
    beside = "" if published is None else f" [{published:g}]"
    if many or _many(cell):
        least, most = 100 * cell.at_least, 100 * cell.at_most
        return f"{least:.1f} to {most:.1f}{beside}"
    if math.isnan(cell.score):
        return f"–{beside}"
    low, high = (100 * end for end in (cell.interval.low, cell.interval.high))
    return f"{100 * cell.score:.1f} ({low:.1f}–{high:.1f}){beside}"


def _cost(cost: Cost) -> list[str]:
    values = (cost.new_tokens, cost.tokens, cost.flops / 1e12, cost.seconds)
    used = "" if cost.used is None else f"{100 * cost.used:.0f} %"
    return [*("–" if math.isnan(value) else _figure(value) for value in values), used]


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def aligned(heads: list[str], rows: list[list[str]]) -> list[str]:
    """A table of Markdown whose columns stand below each other."""
    table = [heads, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    widths = [max(len(row[k]) for row in table) for k in range(len(heads))]

    def line(row: list[str]) -> str:
        cells = [
            cell.ljust(width) if k == 0 else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return f"| {' | '.join(cells)} |"

    rule = [("-" * width if k == 0 else "-" * (width - 1) + ":") for k, width in enumerate(widths)]
    return [line(table[0]), line(rule), *map(line, table[1:])]


def _legend(chosen: Chosen, found: TableScores) -> list[str]:
    lines = [
        "Scores in %, with 95 % intervals; what one problem cost is the mean over a row's searches,"
        " judging included. used: of what a matched row was given."
    ]
    sets: dict[str, list[str]] = {}
    for name, column in found.columns.items():
        sets.setdefault(column.rules.name, []).append(name)
    for name, columns in sets.items():
        source = next(c.rules.source for c in found.columns.values() if c.rules.name == name)
        lines.append(f"Rules {name} ({source}): {', '.join(columns)}.")
    if any(_many(place.cell) for row in found.rows for place in row.places.values()):
        lines.append(
            f"x to y: more than {_MANY:.0%} are unscored; x if all these were wrong, y if right."
        )
    lines += _unscored(found)
    if found.graders:
        lines.append(f"What rules leave open was decided by {', '.join(found.graders)}.")
    shown = [p for row in found.rows for p in row.published if _is_shown(p.column, found)]
    if shown:
        sources = ", ".join(dict.fromkeys(each.source for each in shown))
        lines.append(f"In brackets: as published ({sources}), with other judges and graders.")
    return [f"- {line}" for line in lines]


def _is_shown(column: str, found: TableScores) -> bool:
    return found.whole if column == AVERAGE else True


def _unscored(found: TableScores) -> list[str]:
    lines = []
    for name, column in found.columns.items():
        places = [row.places[name] for row in found.rows if name in row.places]
        open_ = sum(place.open for place in places)
        others = sum(place.unscored for place in places) - open_
        if not open_ and not others:
            continue
        said = f"{name}: {open_:,} predictions that the rules leave open, {others:,} with faults"
        groups = max(place.cell.unscored for place in places)
        if groups and column.benchmark.shape == "circular":
            said += f"; of a row up to {groups:,} groups are unscored, by these or by missing turns"
        lines.append(f"{said}. They are in no score.")
        if open_ and column.benchmark.kind == "graded":
            lines[-1] += " A grade is a model's: --grader MODEL asks one."
        elif open_:
            lines[-1] += " --grader MODEL decides them."
    return lines


def _left_out(chosen: Chosen, found: TableScores) -> list[str]:
    return [f"- {said}" for said in (*unfinished(found), *chosen.left_out)]


# --- as JSON -------------------------------------------------------------------------------------


def plain(
    chosen: Chosen, found: TableScores, runs: Mapping[tuple[str, str], Run]
) -> dict[str, Any]:
    """Everything, as shares of 1; a number that there is none of is null."""
    columns = {
        name: {"rules": c.rules.name, "source": c.rules.source, "file": str(chosen.files[name])}
        for name, c in found.columns.items()
    }
    return {
        "schema": SCHEMA,
        "table": chosen.table.name,
        "columns": columns,
        "whole": found.whole,
        "rows": [_row(row, found) for row in found.rows],
        "graders": list(found.graders),
        "unfinished": list(unfinished(found)),
        "left_out": list(chosen.left_out),
        "runs": [
            {"checkpoint": checkpoint, "benchmark": name, "run": run.id, "model": run.model}
            for (checkpoint, name), run in runs.items()
        ],
    }


def _row(row: Row, found: TableScores) -> dict[str, Any]:
    return {
        "row": row.name,
        "checkpoint": row.checkpoint,
        "cell": row.label,
        "model": row.model,
        "average": _numbers(row.average) if row.average else None,
        "cost": _known(asdict(row.cost)),
        "benchmarks": {name: _told(place) for name, place in row.places.items()},
        "published": [
            {"column": p.column, "value": p.value, "source": p.source}
            for p in row.published
            if _is_shown(p.column, found)
        ],
    }


def _told(place: Place) -> dict[str, Any]:
    return {
        "score": _numbers(place.cell),
        "subset": _numbers(place.subset) if place.subset else None,
        "unscored": place.unscored,
        "open": place.open,
        "failed": place.failed,
        "missing": place.missing,
        "cost": _known(asdict(place.cost)),
        "tables": [
            {"name": t.name, "unit": t.unit, "cells": [_numbers(cell) for cell in t.cells]}
            for t in place.scored[0].tables
        ],
    }


def _numbers(cell: Cell) -> dict[str, Any]:
    numbers = {"score": cell.score, "low": cell.interval.low, "high": cell.interval.high}
    numbers |= {"all_wrong": cell.at_least, "all_right": cell.at_most}
    return {"name": cell.name, **_known(numbers), "scored": cell.scored, "total": cell.total}


def _known(values: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in values.items()}
