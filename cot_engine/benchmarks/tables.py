"""Scores of many questions as cells: what they come to, how sure that is, what is missing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cot_engine.statistics import Interval, accuracy

Scores = Sequence[float | None]
"""One each, 0 to 1; None where there is none."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A mean over what was scored: `score` (NaN where nothing was) with its 95 % `interval`.

    `at_least` and `at_most` are the mean over all, should what was not scored be all wrong or all
    right. Without anything unscored all three are one number.
    """

    name: str
    score: float
    interval: Interval
    scored: int
    total: int
    at_least: float
    at_most: float

    @property
    def unscored(self) -> int:
        """How many are left out of `score`."""
        return self.total - self.scored


@dataclass(frozen=True, slots=True)
class Table:
    """Cells under a heading, such as a category's. `unit`: what is counted."""

    name: str
    cells: tuple[Cell, ...]
    unit: str = "questions"


def cell(name: str, scores: Scores) -> Cell:
    """The mean of some scores."""
    there = [score for score in scores if score is not None]
    total = len(scores)
    return Cell(
        name,
        _mean(there),
        _interval([(score, 1.0) for score in there]),
        len(there),
        total,
        _mean([score or 0.0 for score in scores]),
        _mean([1.0 if score is None else score for score in scores]),
    )


def combined(name: str, groups: Sequence[Sequence[tuple[str, float | None]]]) -> Cell:
    """The mean of several means, each group's counting once. Every score has the name of what it
    belongs to, and a name may be in several groups.

    The interval is over those names, each with all that it adds to the mean: as `groups` are
    taken as they are, that is a mean over names of what each adds, scaled to 0 and 1. It is rather
    too wide where groups differ, for it takes their differences for chance.
    """
    sizes = [sum(score is not None for _, score in group) for group in groups]
    means = [cell("", [score for _, score in group]) for group in groups]
    adds: dict[str, list[float]] = {}
    for group, size in zip(groups, sizes, strict=True):
        for key, score in group:
            if score is not None:
                added = adds.setdefault(key, [0.0, 0.0])
                added[0] += score / size / len(groups)
                added[1] += 1 / size / len(groups)
    keys = {key for group in groups for key, _ in group}
    whole = all(sizes)
    return Cell(
        name,
        _mean([each.score for each in means]),
        _interval([(score, most) for score, most in adds.values()] if whole else []),
        len(adds),
        len(keys),
        _mean([each.at_least for each in means]),
        _mean([each.at_most for each in means]),
    )


def averaged(name: str, cells: Sequence[Cell]) -> Cell:
    """The mean of the scores of benchmarks, which share no question: the squares of the distances
    to the ends of their intervals add up (MOVER, Zou and Donner 2008)."""
    scores = [each.score for each in cells]
    mean, count = _mean(scores), len(cells)
    below = math.sqrt(sum((c.score - c.interval.low) ** 2 for c in cells)) / count if cells else 0
    above = math.sqrt(sum((c.interval.high - c.score) ** 2 for c in cells)) / count if cells else 0
    known = not math.isnan(mean)
    return Cell(
        name,
        mean,
        Interval(mean, mean - below, mean + above) if known else Interval(math.nan, 0.0, 1.0),
        sum(each.scored for each in cells),
        sum(each.total for each in cells),
        _mean([each.at_least for each in cells]),
        _mean([each.at_most for each in cells]),
    )


def over_seeds(cells: Sequence[Cell]) -> Cell:
    """One benchmark's score, by searches with several seeds: means of all. The questions are the
    same, so more seeds do not make the interval narrower."""
    if len(cells) == 1:
        return cells[0]
    ends = [(each.interval.low, each.interval.high) for each in cells]
    low, high = (_mean(each) for each in zip(*ends, strict=True))
    mean = _mean([each.score for each in cells])
    return Cell(
        cells[0].name,
        mean,
        Interval(mean, low, high),
        min(each.scored for each in cells),
        cells[0].total,
        _mean([each.at_least for each in cells]),
        _mean([each.at_most for each in cells]),
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _interval(values: Sequence[tuple[float, float]]) -> Interval:
    """Of a sum of values, or where each is at most 1 of their mean; beside each what it can be at
    most."""
    import numpy as np

    if not values:
        return Interval(math.nan, 0.0, 1.0)
    most = max(limit for _, limit in values)
    scaled = np.array([[min(1.0, value / most)] for value, _ in values])
    found = accuracy(scaled)
    scale = 1.0 if all(limit == 1.0 for _, limit in values) else most * len(values)
    return Interval(
        found.estimate * scale, max(0.0, found.low * scale), min(1.0, found.high * scale)
    )
