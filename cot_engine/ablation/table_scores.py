"""What the runs of a table come to: each row on each benchmark scored by that benchmark's named
rules, the means over benchmarks, and what a problem cost. Rows of the store are all it needs, so a
table can be scored while it is half done."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cot_engine.ablation.records import ResultRow, Run
from cot_engine.ablation.store import Store
from cot_engine.ablation.table import AVERAGE, Column, Published, row_name
from cot_engine.ablation.table_choice import Chosen
from cot_engine.ablation.table_data import Asked
from cot_engine.benchmarks.predictions import Case, Cases
from cot_engine.benchmarks.questions import text_of
from cot_engine.benchmarks.scoring import Mark, Scored, score
from cot_engine.benchmarks.tables import Cell, averaged, over_seeds
from cot_engine.core.usage import Usage
from cot_engine.errors import StoreError
from cot_engine.files.writing import write_whole

Grade = Callable[[str, list[Mark]], tuple[dict[str, str], str]]
"""Asks a model about marks that rules leave open, of a kind of question: its replies, its name."""
SUBSETS = "reasoning subset"


@dataclass(frozen=True, slots=True)
class Cost:
    """Means over searches: what one problem took. `used` is the share of what it was allotted, None
    where nothing was."""

    searches: int
    new_tokens: float
    tokens: float
    flops: float
    seconds: float
    used: float | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """A row on one benchmark: its score and that of the reasoning subset, by seed what they are
    made of, what it cost, and how many searches failed or were not made."""

    cell: Cell
    subset: Cell | None
    scored: tuple[Scored, ...] = field(repr=False)
    cost: Cost
    failed: int
    missing: int

    @property
    def open(self) -> int:
        """Predictions that the rules leave open, over all seeds."""
        return sum(len(each.unresolved) for each in self.scored)

    @property
    def unscored(self) -> int:
        """All that have no score, over all seeds, for whatever reason."""
        return sum(len(each.unscored) + each.unread for each in self.scored)


@dataclass(frozen=True, slots=True)
class Row:
    """One row: a checkpoint, and the label of a cell. `model` names the weights."""

    name: str
    checkpoint: str
    label: str
    model: str
    places: dict[str, Place]
    average: Cell | None
    cost: Cost
    published: tuple[Published, ...] = ()


@dataclass(frozen=True, slots=True)
class TableScores:
    """`columns` are the benchmarks that there are files for; the average is over them, and is held
    against published ones where `whole`: where they are all that the table has."""

    columns: dict[str, Column]
    rows: tuple[Row, ...]
    whole: bool
    graders: tuple[str, ...] = ()


def scores(
    chosen: Chosen,
    store: Store,
    runs: Mapping[tuple[str, str], Run],
    asked: Mapping[str, Asked],
    grade: Grade | None = None,
) -> TableScores:
    """The scores of the runs, by (checkpoint, column), that a store holds."""
    columns = {name: chosen.table.columns[name] for name in asked}
    whole = len(columns) == len(chosen.table.columns)
    found: dict[str, dict[str, Place]] = {}
    about: dict[str, tuple[str, str, str]] = {}
    kept: dict[str, list[ResultRow]] = {}
    graders: set[str] = set()
    for (checkpoint, name), run in runs.items():
        rows = list(store.rows(run))
        for cell, (label, _) in run.cells.items():
            of_cell = [row for row in rows if row.key.cell == cell]
            key = row_name(checkpoint, label)
            place = _place(run, of_cell, columns[name], asked[name], grade)
            found.setdefault(key, {})[name] = place
            about[key] = checkpoint, label, run.model
            kept.setdefault(key, []).extend(of_cell)
            graders |= {m.by for s in place.scored for m in s.marks} - {"rules", "file", ""}
    made = []
    for key, places in found.items():
        everywhere = len(places) == len(columns) and len(columns) > 1
        cells = [place.cell for place in places.values()]
        average = averaged(AVERAGE, cells) if everywhere else None
        published = tuple(p for p in chosen.table.published if p.row == key)
        made.append(Row(key, *about[key], places, average, cost(kept[key]), published))
    order = [row for each in chosen.table.checkpoints.values() for row in each.rows]
    made.sort(key=lambda row: order.index(row.name) if row.name in order else len(order))
    return TableScores(columns, tuple(made), whole, tuple(sorted(graders)))


def _place(
    run: Run, rows: list[ResultRow], column: Column, asked: Asked, grade: Grade | None
) -> Place:
    by_seed = []
    for seed in run.seeds:
        cases = cases_of(run, [row for row in rows if row.key.seed == seed], asked)
        found = score(cases, column.benchmark, column.rules)
        if grade is not None and found.unresolved:
            replies, by = grade(column.benchmark.kind, found.unresolved)
            found = score(cases, column.benchmark, column.rules, replies, by)
        by_seed.append(found)
    subsets = [cell for each in by_seed if (cell := _subset(each)) is not None]
    return Place(
        over_seeds([each.overall for each in by_seed]),
        over_seeds(subsets) if len(subsets) == len(by_seed) else None,
        tuple(by_seed),
        cost(rows),
        sum(row.status == "failed" for row in rows),
        len(run.items) * len(run.seeds) - len(rows),
    )


def _subset(found: Scored) -> Cell | None:
    """The mean of the reasoning categories, where the benchmark has one and all are there."""
    return next((table.cells[0] for table in found.tables if table.name == SUBSETS), None)


def cases_of(run: Run, rows: Iterable[ResultRow], asked: Asked) -> Cases:
    """Each question with what was answered to it, or why nothing was."""
    names = {item.digest: item.problem for item in run.items}
    answered = {names[row.key.item]: row for row in rows}
    cases = []
    for question in asked.questions:
        row = answered.get(question.id)
        text = text_of(row.answer) if row is not None else ""
        if question.id in asked.faults:
            trouble = f"it was not asked: {asked.faults[question.id]}"
        elif row is None:
            trouble = "there is no prediction"
        elif row.status == "failed":
            trouble = f"the search failed: {row.error}"
        else:
            trouble = "" if text.strip() else "the prediction is empty"
        cases.append(Case(question, text, question.place, trouble=trouble))
    return Cases(tuple(cases), asked.troubles, len(asked.troubles))


def cost(rows: Iterable[ResultRow]) -> Cost:
    """What a search took, in the mean; NaN for none."""
    done = [row for row in rows if row.status == "ok"]
    used = [sum(row.usage.values(), Usage()) for row in done]

    def mean(values: Iterable[float]) -> float:
        return math.fsum(values) / len(done) if done else math.nan

    allotted = [(row.spent or 0.0, row.allotted) for row in done if row.allotted is not None]
    share = None
    if allotted and len(allotted) == len(done):
        share = math.fsum(a for a, _ in allotted) / math.fsum(b for _, b in allotted)
    return Cost(
        len(done),
        mean(each.decoded for each in used),
        mean(each.tokens for each in used),
        mean(each.flops for each in used),
        mean(row.seconds for row in done),
        share,
    )


# --- predictions ---------------------------------------------------------------------------------


def export(
    folder: str | Path,
    store: Store,
    runs: Mapping[tuple[str, str], Run],
    asked: Mapping[str, Asked],
) -> list[Path]:
    """What each row answered, as files that `cot-engine score` and harnesses read:
    FOLDER/ROW/BENCHMARK.jsonl, with the seed in the name where there are several. Raises
    StoreError for a place that cannot be written to."""
    written = []
    for (checkpoint, name), run in runs.items():
        rows = list(store.rows(run))
        order = {question.id: k for k, question in enumerate(asked[name].questions)}
        problems = {item.digest: item for item in run.items}
        for cell, (label, _) in run.cells.items():
            for seed in run.seeds:
                own = [r for r in rows if r.key.cell == cell and r.key.seed == seed]
                own.sort(key=lambda row: order[problems[row.key.item].problem])
                lines = [_line(problems[row.key.item].problem, row) for row in own]
                more = f".seed-{seed}" if len(run.seeds) > 1 else ""
                path = Path(folder, _file_name(checkpoint, label), f"{name}{more}.jsonl")
                text = "".join(f"{line}\n" for line in lines)
                write_whole(path, text, "The predictions", StoreError)
                written.append(path)
    return written


def _line(problem: str, row: ResultRow) -> str:
    used = sum(row.usage.values(), Usage())
    told = {"index": problem, "prediction": row.answer or "", "incomplete": row.incomplete}
    told |= {"error": row.error}
    return json.dumps({**told, "new_tokens": used.decoded, "flops": used.flops})


def _file_name(checkpoint: str, label: str) -> str:
    return "-".join(f"{checkpoint} {label}".replace("(", "").replace(")", "").split())


def unfinished(found: TableScores) -> Sequence[str]:
    """The rows of which searches failed or were not made, in sentences."""
    said = []
    for row in found.rows:
        for name, place in row.places.items():
            if place.failed or place.missing:
                many = f"{place.failed:,} failed, {place.missing:,} not made"
                said.append(f"{row.name} on {name}: {many}.")
    return said
