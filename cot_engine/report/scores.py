"""The rows of a run as matrices: scores and spending by problem and seed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from cot_engine.ablation.records import Key, ResultRow, Run
from cot_engine.core.usage import Usage
from cot_engine.search.budget import Budget, Unit

TOLERANCE = 0.05
"""The most that two spendings may differ by, of the larger one, to count as matched."""

BASELINES = ("greedy", "one sample")
"""What every comparison needs beside it, by what it is, not by its label."""


@dataclass(frozen=True, slots=True)
class ScoredCell:
    """A cell of the run with its rows and scores; `spent` as `scores`, in the run's unit."""

    hash: str
    label: str
    plain: dict
    rows: tuple[ResultRow, ...]
    scores: np.ndarray
    spent: np.ndarray

    @property
    def strategy(self) -> str:
        return self.plain["strategy"]

    @property
    def n(self) -> int | None:
        return self.plain["parameters"].get("n")

    @property
    def ok(self) -> list[ResultRow]:
        return [row for row in self.rows if row.status == "ok"]

    @property
    def samples(self) -> list[ResultRow]:
        """Its searches that sampled whole responses."""
        return [row for row in self.ok if row.candidates]

    def baseline(self) -> str:
        """Which of BASELINES it is, or ""."""
        if self.plain["match"] is not None:
            return ""
        if self.strategy == "greedy":
            return "greedy"
        return "one sample" if self.strategy == "best-of-n" and self.n == 1 else ""


@dataclass(frozen=True, slots=True)
class Grid:
    """Where a search stands in a matrix of scores."""

    run: Run
    unit: Unit
    problems: dict[str, int]
    seeds: dict[int, int]

    def matrix(self, values: Iterable[tuple[Key, float]]) -> np.ndarray:
        """(problems, seeds), NaN where there is no value."""
        found = np.full((len(self.problems), len(self.seeds)), np.nan)
        for key, value in values:
            found[self.problems[key.item], self.seeds[key.seed]] = value
        return found

    def spent(self, row: ResultRow) -> float:
        """In the run's unit, whichever run the search was first made for."""
        if self.unit == "seconds":
            return row.seconds
        return self.of(sum(row.usage.values(), Usage()))

    def of(self, usage: Usage) -> float:
        """In the run's unit; of seconds, those of the model."""
        if self.unit == "seconds":
            return usage.seconds
        return Budget(1.0, self.unit).of(usage)


def make_grid(run: Run, rows: Iterable[ResultRow] = ()) -> Grid:
    """Spending is in the unit of the matches; else in FLOPs, but in tokens where of all `rows`
    none has any: those of a server whose sizes are not known, which did not cost nothing."""
    matches = [plain["match"] for _, plain in run.cells.values() if plain["match"]]
    used = [usage for row in rows for usage in row.usage.values()]
    uncounted = any(usage.tokens for usage in used) and not any(usage.flops for usage in used)
    return Grid(
        run,
        matches[0]["unit"] if matches else "tokens" if uncounted else "flops",
        {item.digest: at for at, item in enumerate(run.items)},
        {seed: at for at, seed in enumerate(run.seeds)},
    )


def make_cells(grid: Grid, rows: list[ResultRow]) -> list[ScoredCell]:
    """All cells of the run in its order, those without rows too."""
    by_cell: dict[str, list[ResultRow]] = {}
    for row in rows:
        by_cell.setdefault(row.key.cell, []).append(row)
    found = []
    for hash, (label, plain) in grid.run.cells.items():
        own = by_cell.get(hash, [])
        ok = [row for row in own if row.status == "ok"]
        scores = grid.matrix((row.key, row.correct) for row in ok if row.correct is not None)
        spent = grid.matrix((row.key, grid.spent(row)) for row in ok)
        found.append(ScoredCell(hash, label, plain, tuple(own), scores, spent))
    return found


def spending_ratio(first: ScoredCell, second: ScoredCell) -> float:
    """The first's spending over the second's, on the searches that both have; NaN without any."""
    both = ~np.isnan(first.spent) & ~np.isnan(second.spent)
    base = mean(second.spent[both])
    return mean(first.spent[both]) / base if base else math.nan


def near(ratio: float) -> bool:
    """The same for a ratio and its inverse; an unknown one (NaN) is not near."""
    return ratio > 0 and min(ratio, 1 / ratio) >= 1 - TOLERANCE - 1e-9


def mean(values: Sequence[float] | np.ndarray) -> float:
    """NaN without any."""
    return float(sum(values) / len(values)) if len(values) else math.nan
