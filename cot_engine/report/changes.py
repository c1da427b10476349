"""What searching changed: each cell against the one that answers without searching, by type."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from cot_engine.report.findings import Change
from cot_engine.report.scores import BASELINES, Grid, ScoredCell
from cot_engine.statistics import paired

TURN = 0.5 - 1e-9  # scores are means of floats
"""A problem is turned where its score, the mean over seeds, moves by so much."""

_DRAWS = (
    2000  # resamples of an interval: there are many, and each is read for whether it is clear of 0
)


def changes(grid: Grid, cells: Sequence[ScoredCell]) -> tuple[Change, ...]:
    """Of each cell that has something to be held against: over all problems, then by type, in the
    order in which types appear."""
    types: dict[str, list[int]] = {}
    for at, item in enumerate(grid.run.items):
        types.setdefault(item.type, []).append(at)
    places = {None: list(range(len(grid.run.items)))} | (dict(types) if len(types) > 1 else {})
    return tuple(_changes(places, cells))


def _changes(places: dict[str | None, list[int]], cells: Sequence[ScoredCell]) -> Iterator[Change]:
    for cell in cells:
        base = unsearched(cell, cells)
        if base is None or not cell.ok:
            continue
        for type, at in places.items():
            mine, other = cell.scores[at], base.scores[at]
            test = paired(mine, other, draws=_DRAWS)
            if not test.problems:
                continue
            moved = _means(mine - other)
            yield Change(
                label=cell.label,
                baseline=base.label,
                type=type,
                problems=test.problems,
                difference=test.difference,
                right=int((moved >= TURN).sum()),
                wrong=int((moved <= -TURN).sum()),
            )


def unsearched(cell: ScoredCell, cells: Sequence[ScoredCell]) -> ScoredCell | None:
    """What the cell is held against: greedy decoding as it writes itself if the run has it, else
    any, else one sample; None for these themselves, and where a run has neither."""
    if cell.baseline():
        return None
    known = [c for name in BASELINES for c in cells if c.baseline() == name and c.ok]

    def likeness(other: ScoredCell) -> int:
        mine, its = cell.plain["config"], other.plain["config"]
        return sum(mine.get(key) == its.get(key) for key in ("model", "plan", "detail", "mode"))

    first = [c for c in known if known and c.baseline() == known[0].baseline()]
    return max(first, key=likeness, default=None)


def _means(values: np.ndarray) -> np.ndarray:
    """Of each problem, over the seeds that both have."""
    have = ~np.isnan(values)
    sums, counts = np.where(have, values, 0.0).sum(axis=1), have.sum(axis=1)
    return np.where(counts > 0, sums / np.maximum(counts, 1), math.nan)
