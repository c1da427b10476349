"""What better selection, or better candidates, could still give: by cell and stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from cot_engine.ablation.records import Key, ResultRow, Run, SelectionRecord
from cot_engine.report.findings import Headroom
from cot_engine.report.judging import MEASURES, Measure
from cot_engine.statistics import accuracy

Matrix = Callable[[Iterator[tuple[Key, float]]], np.ndarray]


def headrooms(run: Run, rows: list[ResultRow], matrix: Matrix) -> tuple[Headroom, ...]:
    """By cell, stage and measure, in the order of the run; those with a single candidate apart,
    where there is nothing to select. `matrix` makes (problems, seeds) of values by key."""
    found: dict[tuple[str, str, Measure], dict[Key, list[tuple[float, ...]]]] = {}
    for row in rows:
        for selection in merged(_with_scores(row)):
            for measure in MEASURES:
                if (values := _values(selection, measure)) is not None:
                    by_key = found.setdefault((row.key.cell, selection.stage, measure), {})
                    by_key.setdefault(row.key, []).append(values)
    made = (
        _headroom(run, *place, found[place], matrix)
        for place in sorted(found, key=lambda place: _order(run, *place))
    )
    return tuple(headroom for headroom in made if headroom is not None)


def _order(run: Run, cell: str, stage: str, measure: Measure) -> tuple:
    """By cell, then as the plan has its stages, then what is no stage of it."""
    tags = [each["tag"] for each in run.cells[cell][1]["config"]["plan"]["stages"]]
    at = tags.index(stage) if stage in tags else len(tags)
    return list(run.cells).index(cell), at, stage, MEASURES.index(measure)


def _with_scores(row: ResultRow) -> list[SelectionRecord]:
    """Its selections; among whole responses one that was never finished, and whose worth no
    continuation told, is worth what it says: to leave it out would make all others look better."""
    said = {candidate.id: candidate.correct for candidate in row.candidates}
    found = []
    for selection in row.selections:
        if selection.stage == "whole":
            known = {name: said[name] for name in selection.candidates if name in said}
            selection = replace(selection, worth=known | selection.worth)
        found.append(selection)
    return found


def merged(selections: Sequence[SelectionRecord]) -> list[SelectionRecord]:
    """One selection for each choice that a search made. A strategy that fills its budget selects
    again, among those kept and some more: together that is one choice, among all of them."""
    found: list[SelectionRecord] = []
    for selection in selections:
        before = found[-1] if found else None
        if before and before.stage == selection.stage and {*before.kept} <= {*selection.candidates}:
            candidates = tuple(dict.fromkeys((*before.candidates, *selection.candidates)))
            worth, facts = before.worth | selection.worth, before.facts | selection.facts
            found[-1] = SelectionRecord(selection.stage, candidates, selection.kept, worth, facts)
        else:
            found.append(selection)
    return found


def _values(selection: SelectionRecord, measure: Measure) -> tuple[float, float, float, int] | None:
    """The best, the selected and the mean of its candidates, and their number; None unless all are
    known: the ones that are not might be the best."""
    known = selection.worth if measure == "worth" else selection.facts
    if not selection.candidates or not all(name in known for name in selection.candidates):
        return None
    values = [known[name] for name in selection.candidates]
    return max(values), known[selection.kept[0]], sum(values) / len(values), len(values)


def _headroom(
    run: Run,
    cell: str,
    stage: str,
    measure: Measure,
    by_key: dict[Key, list[tuple[float, ...]]],
    matrix: Matrix,
) -> Headroom | None:
    """Of a search that chose several times at a stage (sentences) the mean counts."""
    means = {
        key: [sum(v) / len(v) for v in zip(*each, strict=True)] for key, each in by_key.items()
    }
    oracle, selected, random, n = (
        matrix((key, values[k]) for key, values in means.items()) for k in range(4)
    )
    mean_n = float(np.nanmean(n))
    if mean_n <= 1:
        return None
    best, chosen, chance = accuracy(oracle), accuracy(selected), accuracy(random)
    room = best.estimate - chance.estimate
    return Headroom(
        label=run.cells[cell][0],
        cell=cell,
        stage=stage,
        measure=measure,
        n=mean_n,
        problems=int((~np.isnan(oracle)).any(axis=1).sum()),
        oracle=best,
        selected=chosen,
        random=chance,
        taken=(chosen.estimate - chance.estimate) / room if room > 1e-9 else None,
    )
