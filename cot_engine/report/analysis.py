"""From rows to findings: what each cell came to, at what cost, and what may be said of it.

**Scores** are matrices of problems x seeds, NaN where a search failed or is still missing; what
is compared is compared on the problems that both have. Every interval is a 95 % one, and as the
resampling has a fixed seed, the same rows always give the same findings.

**Which comparisons.** Each one more costs the others power, so they are few and fixed beforehand,
and Holm corrects for all of them. With a reference: the reference against every matched cell,
against greedy and one sample, and against each cell that changes one thing of it other than n (its
judge, say; n is for the curves). Where a fixed amount is matched, the first matched cell that
is no majority vote stands in for the reference. Without matching: every cell against greedy (of
the same plan and detail), since that is what one has without any search. What is derived from
another cell's candidates is never compared: an oracle is a bound, not a method.
"""

from __future__ import annotations

import contextlib
import math
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields

import numpy as np

from cot_engine.ablation.records import Key, ResultRow, Run, SelectionRecord
from cot_engine.ablation.store import Store
from cot_engine.core.answers import majority
from cot_engine.core.trace import Trace
from cot_engine.core.usage import Role, Usage
from cot_engine.errors import NoTrace
from cot_engine.report import judging
from cot_engine.report.changes import changes
from cot_engine.report.findings import (
    Comparison,
    Curve,
    Findings,
    ItemOutcome,
    Kind,
    Matching,
    Standing,
    TypeRow,
)
from cot_engine.report.headroom import headrooms
from cot_engine.report.judging import JudgeCard
from cot_engine.report.scores import (
    BASELINES,
    Grid,
    ScoredCell,
    make_cells,
    make_grid,
    mean,
    near,
    spending_ratio,
)
from cot_engine.report.telling import headline, notes
from cot_engine.statistics import accuracy, holm, paired, sentence

_DERIVED: dict[Kind, str] = {"vote": "majority", "random": "random", "oracle": "oracle"}


def analyse(store: Store, run: Run, *, where: str | None = None, cards: bool = True) -> Findings:
    """What the rows of a run say; of those that `where`, an SQL condition, chooses (see
    `Store.rows`). `cards=False` leaves the judges' cards out, which need the traces read.

    Raises StoreError for a condition that cannot be used.
    """
    rows = list(store.rows(run, where))
    grid = make_grid(run, rows)
    cells = make_cells(grid, rows)
    standings, scores = _standings(grid, cells)
    compared = _comparisons(grid, cells)
    room = headrooms(run, rows, grid.matrix)
    done = store.done(run)
    failed = done - store.done(run, failed=False)
    missing = [key for key in run.keys() if key not in done]  # noqa: SIM118
    report = ["cot-engine", "report", str(store.path), "--run", run.id]
    report += ["--where", where] if where else []
    return Findings(
        run=run,
        unit=grid.unit,
        where=where,
        headline=headline(run, standings, compared, room, grid.unit),
        notes=notes(run, rows, missing, failed, standings, where),
        standings=standings,
        comparisons=compared,
        curves=_curves(cells, standings),
        headrooms=room,
        types=_types(grid, cells),
        changes=changes(grid, cells),
        cards=_cards(store, run, rows) if cards else (),
        outcomes=_outcomes(grid, cells, scores),
        searches=len(rows),
        failed=sum(row.status == "failed" for row in rows),
        missing=len(missing),
        commands=(run.command, shlex.join(report)),
    )


# --- standings -----------------------------------------------------------------------------------


def _standings(
    grid: Grid, cells: list[ScoredCell]
) -> tuple[tuple[Standing, ...], dict[str, np.ndarray]]:
    """A line for each cell, then those derived from candidates; and the scores by label."""
    found = [_searched(grid, cells, cell) for cell in cells]
    scores = {cell.label: cell.scores for cell in cells}
    for cell in cells:
        if not any(len(row.candidates) > 1 for row in cell.samples):
            continue
        for kind, name in _DERIVED.items():
            if kind == "vote" and cell.strategy == "majority":
                continue  # that is what it did itself
            label = f"{name} of {cell.label}"
            picked = ((row.key, _picked(kind, row)) for row in cell.samples)
            scores[label] = grid.matrix(picked)
            found.append(_derived(grid, cell, kind, label, scores[label]))
    return tuple(found), scores


def _searched(grid: Grid, cells: list[ScoredCell], cell: ScoredCell) -> Standing:
    budgeted = [row for row in cell.ok if row.allotted is not None and row.unit == grid.unit]
    allotted = [row.allotted for row in budgeted if row.allotted is not None]
    left = [row.remaining for row in budgeted if row.remaining is not None]
    usage = _usage(cell.ok)
    return Standing(
        label=cell.label,
        cell=cell.hash,
        kind="search",
        strategy=cell.strategy,
        n=cell.n,
        problems=_problems(cell.scores),
        searches=len(cell.rows),
        failed=len(cell.rows) - len(cell.ok),
        accuracy=accuracy(cell.scores),
        allotted=mean(allotted) if allotted else None,
        spent=mean(cell.spent[~np.isnan(cell.spent)]),
        left=mean(left) if left else None,
        by_role={role: grid.of(used) for role, used in usage.items()},
        usage=usage,
        seconds=mean([row.seconds for row in cell.ok]),
        matching=_matching(grid, cells, cell),
    )


def _derived(grid: Grid, cell: ScoredCell, kind: Kind, label: str, scores: np.ndarray) -> Standing:
    usage: dict[Role, Usage]
    usage = {r: used for r, used in _usage(cell.samples).items() if r == "generate"}
    by_role = {role: grid.of(used) for role, used in usage.items()}
    return Standing(
        label=label,
        cell=cell.hash,
        kind=kind,
        strategy=cell.strategy,
        n=cell.n,
        problems=_problems(scores),
        searches=len(cell.samples),
        failed=0,
        accuracy=accuracy(scores),
        allotted=None,
        spent=sum(by_role.values()),
        left=None,
        by_role=by_role,
        usage=usage,
        seconds=sum(used.seconds for used in usage.values()),
    )


def _picked(kind: Kind, row: ResultRow) -> float:
    """The score of what is chosen among whole responses; for a random one in expectation."""
    scores = [candidate.correct for candidate in row.candidates]
    if kind == "oracle":
        # What it answered is one of them, or one that the budget cut off, brought to its end.
        return max(*scores, row.correct or 0.0)
    if kind == "random":
        return sum(scores) / len(scores)
    # As the strategy of that name votes, so that both come to the same on the same responses.
    voting = [c for c in row.candidates if not c.cut] or list(row.candidates)
    agreeing = majority([c.answer for c in voting], tie=[math.exp(c.likelihood) for c in voting])
    return max((voting[i] for i in agreeing), key=lambda c: c.likelihood).correct


def _matching(grid: Grid, cells: list[ScoredCell], cell: ScoredCell) -> Matching:
    """Whether it spent what it was to: what the reference did on the same searches, or else the
    amount that all were given."""
    if cell.hash == grid.run.reference:
        return "reference"
    goal = cell.plain["match"]
    if goal is None:
        return ""
    if goal["reference"] is None:
        ratio = mean(cell.spent[~np.isnan(cell.spent)]) / goal["amount"]
    else:
        ratio = spending_ratio(cell, next(c for c in cells if c.hash == goal["reference"]))
    return "matched" if near(ratio) else "unmatched"


def _usage(rows: list[ResultRow]) -> dict[Role, Usage]:
    """The mean per search, by role."""
    total: dict[Role, Usage] = {}
    for row in rows:
        for role, used in row.usage.items():
            total[role] = total.get(role, Usage()) + used
    return {
        role: Usage(**{f.name: getattr(used, f.name) / len(rows) for f in fields(Usage)})
        for role, used in total.items()
    }


def _problems(scores: np.ndarray) -> int:
    return int((~np.isnan(scores)).any(axis=1).sum())


# --- comparisons and curves ----------------------------------------------------------------------


def _comparisons(grid: Grid, cells: list[ScoredCell]) -> tuple[Comparison, ...]:
    have = [cell for cell in cells if cell.ok]
    pairs = [(a, b) for a, b in _pairs(grid.run, cells) if a in have and b in have]
    tests = [paired(a.scores, b.scores) for a, b in pairs]
    found = []
    for (a, b), test, p in zip(pairs, tests, holm([test.p for test in tests]), strict=True):
        ratio = spending_ratio(a, b)
        matched = near(ratio)
        of = "compute" if grid.unit == "flops" else grid.unit
        first = a.label if matched else f"{a.label} (at {_times(ratio)} times the {of})"
        said = sentence(first, b.label, test, p)
        found.append(Comparison(a.label, b.label, test, p, len(pairs), ratio, matched, said))
    return tuple(found)


def _pairs(run: Run, cells: list[ScoredCell]) -> list[tuple[ScoredCell, ScoredCell]]:
    """The comparisons of the family, by the rule at the top of this file."""
    matched = [cell for cell in cells if cell.plain["match"] is not None]
    chosen = [cell for cell in cells if cell.hash == run.reference]
    chosen = chosen or [c for c in matched if c.strategy != "majority"] or matched
    if chosen:
        base = chosen[0]
        others = [cell for cell in matched if cell is not base]
        others += [c for name in BASELINES for c in cells if _is_baseline(c, name, base)]
        others += [c for c in cells if c not in others and _changes(c, base) == 1 and c.n == base.n]
        return [(base, other) for other in others if other is not base]
    return [
        (cell, other)
        for cell in cells
        if cell.strategy != "greedy"
        for other in cells
        if _is_baseline(other, "greedy", cell)
    ]


def _is_baseline(cell: ScoredCell, name: str, of: ScoredCell) -> bool:
    """Is it that baseline, drawn as the other cell draws its responses?"""
    drawn = ["plan", "detail", "mode"]
    drawn += ["temperature", "top_p", "top_k"] if name != "greedy" else []  # no matter to greedy
    mine, other = cell.plain["config"], of.plain["config"]
    return cell.baseline() == name and all(mine.get(key) == other.get(key) for key in drawn)


def _changes(cell: ScoredCell, base: ScoredCell) -> int:
    """How many parameters and settings of an unmatched cell differ from those of another one that
    has its strategy; 0 for any other."""
    if cell.strategy != base.strategy or cell.plain["match"] is not None:
        return 0
    mine = cell.plain["parameters"] | cell.plain["config"]
    other = base.plain["parameters"] | base.plain["config"]
    return sum(mine.get(key) != other.get(key) for key in mine.keys() | other.keys())


def _times(ratio: float) -> str:
    """Two digits: "1.8", "12", "0.73"."""
    return f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.2g}"


def _curves(cells: list[ScoredCell], standings: tuple[Standing, ...]) -> tuple[Curve, ...]:
    """Cells that differ in n alone; and the majority and the oracle of their candidates, for which
    one candidate is all there is at n=1."""
    groups: dict[str, list[ScoredCell]] = {}
    for cell in cells:
        if cell.n is not None and cell.ok:
            rest = {k: v for k, v in cell.plain["parameters"].items() if k != "n"}
            # Continuations tell what candidates were worth; they change nothing.
            groups.setdefault(repr(cell.plain | {"parameters": rest, "rollouts": 0}), []).append(
                cell
            )
    by_label = {standing.label: standing for standing in standings}
    found = []
    for group in groups.values():
        group = sorted(group, key=lambda cell: cell.n or 0)
        if len({cell.n for cell in group}) < 2:
            continue
        name = re.sub(r" ?\bn=\d+", "", group[-1].label).strip()
        found.append(Curve(name, tuple(by_label[cell.label] for cell in group)))
        for prefix in ("majority", "oracle"):
            labels = [c.label if c.n == 1 else f"{prefix} of {c.label}" for c in group]
            points = tuple(by_label[label] for label in labels if label in by_label)
            if len(points) > 1 and any(point.kind != "search" for point in points):
                found.append(Curve(f"{prefix} of {name}", points))
    return tuple(found)


# --- by type, by problem, by judge ---------------------------------------------------------------


def _types(grid: Grid, cells: list[ScoredCell]) -> tuple[TypeRow, ...]:
    """Of searches only, in the order in which the types appear; none for data of a single type."""
    have = [cell for cell in cells if cell.ok]
    by_type: dict[str, list[int]] = {}
    seen = {row.key.item for cell in have for row in cell.ok}
    for at, item in enumerate(grid.run.items):
        if item.digest in seen:
            by_type.setdefault(item.type, []).append(at)
    if len(by_type) < 2:
        return ()
    return tuple(
        TypeRow(type, len(at), {cell.label: accuracy(cell.scores[at]) for cell in have})
        for type, at in by_type.items()
    )


def _outcomes(
    grid: Grid, cells: list[ScoredCell], scores: dict[str, np.ndarray]
) -> tuple[ItemOutcome, ...]:
    keys: dict[str, dict[str, tuple[Key, ...]]] = {}
    answers: dict[str, dict[str, tuple[str | None, ...]]] = {}
    for cell in cells:
        for row in cell.rows:
            own, said = keys.setdefault(row.key.item, {}), answers.setdefault(row.key.item, {})
            own[cell.label] = (*own.get(cell.label, ()), row.key)
            said[cell.label] = (*said.get(cell.label, ()), row.answer)
    found = []
    for at, item in enumerate(grid.run.items):
        if item.digest in keys:
            rows = {label: values[at][~np.isnan(values[at])] for label, values in scores.items()}
            correct = {label: mean(v) if len(v) else None for label, v in rows.items()}
            about = (item.problem, item.digest, item.type, item.question, item.expected)
            found.append(ItemOutcome(*about, correct, keys[item.digest], answers[item.digest]))
    return tuple(found)


def _cards(store: Store, run: Run, rows: list[ResultRow]) -> tuple[JudgeCard, ...]:
    """Traces are read one at a time, and only of searches of which something is known."""

    def searches() -> Iterator[tuple[Trace, tuple[SelectionRecord, ...]]]:
        for row in rows:
            if any(len(s.candidates) > 1 and (s.worth or s.facts) for s in row.selections):
                with contextlib.suppress(NoTrace):  # one that was stored without its trace
                    yield store.trace(run, row.key), row.selections

    return judging.cards(searches())
