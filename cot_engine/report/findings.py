"""What an ablation found, as values: made by `analysis`, shown by the report's formats.

Amounts are means per search (problem x seed) in the run's unit unless said otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from cot_engine.ablation.records import Key, Run
from cot_engine.core.usage import Role, Usage
from cot_engine.report.judging import JudgeCard
from cot_engine.statistics import Interval, Paired

Kind = Literal["search", "vote", "random", "oracle"]
Matching = Literal["", "reference", "matched", "unmatched"]


@dataclass(frozen=True, slots=True)
class Standing:
    """One line of the accuracy table.

    `kind` says where it comes from: a search of its own, or a majority vote, a random choice (in
    expectation) or an oracle over the whole responses that the cell's searches sampled. What is
    not a search of its own has the cost of generating them and no judge's.
    `matching`: the cell that sets the budgets; one whose mean spending is within 5 % of what it
    was allotted; one that is not ("unmatched"); "" for a cell outside the matching. `n` is the
    cell's parameter of that name; a strategy that fills its budget samples so many at a time.
    `seconds` are from start to end; of what is derived, the model's.
    """

    label: str
    cell: str
    kind: Kind
    strategy: str
    n: int | None
    problems: int
    searches: int
    failed: int
    accuracy: Interval
    allotted: float | None
    spent: float
    left: float | None
    by_role: dict[Role, float]
    usage: dict[Role, Usage]
    seconds: float
    matching: Matching = ""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two standings on the problems both have. `ratio` is the first's spending over the second's;
    `matched` says that they differ by at most 5 %. `p` is adjusted for the family of comparisons,
    whose size is `family`."""

    first: str
    second: str
    paired: Paired
    p: float
    family: int
    ratio: float
    matched: bool
    sentence: str


@dataclass(frozen=True, slots=True)
class Curve:
    """Accuracy as one strategy's n grows and nothing else; points are standings, by n."""

    name: str
    points: tuple[Standing, ...]


@dataclass(frozen=True, slots=True)
class Headroom:
    """At one stage of one cell: how good the best candidate was (oracle), the one that was
    selected, and a random one. `measure`: "worth" (the share of a candidate's continuations that
    end right) or "facts" (whether its own text is right). `taken` is (selected - random) /
    (oracle - random), None where there was nothing to take. Never generated: 1 - oracle; judged
    away: oracle - selected."""

    label: str
    cell: str
    stage: str
    measure: Literal["worth", "facts"]
    n: float
    problems: int
    oracle: Interval
    selected: Interval
    random: Interval
    taken: float | None


@dataclass(frozen=True, slots=True)
class TypeRow:
    """One question type: accuracies by label."""

    type: str
    problems: int
    accuracy: dict[str, Interval]


@dataclass(frozen=True, slots=True)
class Change:
    """What searching changed: a cell's score minus that of `baseline`, which does not search, on
    one type of question (None: on all problems), and how many problems it turned right and
    wrong: those whose score moved by a half or more."""

    label: str
    baseline: str
    type: str | None
    problems: int
    difference: Interval
    right: int
    wrong: int


@dataclass(frozen=True, slots=True)
class ItemOutcome:
    """One problem: the mean score by label (None: no search finished), the searches' keys, and
    their answers in the same order (None: failed)."""

    problem: str
    item: str
    type: str
    question: str
    expected: str
    correct: dict[str, float | None]
    keys: dict[str, tuple[Key, ...]]
    answers: dict[str, tuple[str | None, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Findings:
    """All of it. `headline`: sentences for the impatient; `notes`: what a reader must know
    (failures, unmatched cells, searches still missing); `missing` searches of the run have no row
    yet, whatever `where` chose."""

    run: Run
    unit: str
    where: str | None
    headline: tuple[str, ...]
    notes: tuple[str, ...]
    standings: tuple[Standing, ...]
    comparisons: tuple[Comparison, ...]
    curves: tuple[Curve, ...]
    headrooms: tuple[Headroom, ...]
    types: tuple[TypeRow, ...]
    changes: tuple[Change, ...]
    cards: tuple[JudgeCard, ...]
    outcomes: tuple[ItemOutcome, ...]
    searches: int
    failed: int
    missing: int
    commands: tuple[str, ...]
