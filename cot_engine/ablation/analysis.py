"""From rows to findings: what each cell came to, at what cost, and what may be said of it.

**Scores** are matrices of problems x seeds, NaN where a search failed or is still missing; what
is compared is compared on the problems that both have. Every interval is a 95 % one, and as the
resampling has a fixed seed, the same rows always give the same findings.

**Which comparisons.** Each one more costs the others power, so they are few and fixed beforehand,
and Holm corrects for all of them. With a reference: the reference against every matched cell,
against greedy and against one sample. Where a fixed amount is matched, the first matched cell that
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
from dataclasses import dataclass, fields

import numpy as np

from cot_engine.ablation import judging
from cot_engine.ablation.findings import (
    Comparison,
    Curve,
    Findings,
    Kind,
    Matching,
    Outcome,
    Standing,
    TypeRow,
)
from cot_engine.ablation.headroom import headrooms
from cot_engine.ablation.judging import Card
from cot_engine.ablation.store import Candidate, Key, Row, Run, Selection, Store
from cot_engine.ablation.telling import headline, notes
from cot_engine.answers import majority
from cot_engine.budget import Budget
from cot_engine.errors import StoreError
from cot_engine.events import Trace
from cot_engine.statistics import accuracy, holm, paired, sentence
from cot_engine.types import Role, Usage

TOLERANCE = 0.05
"""The most that two spendings may differ by, of the larger one, to count as matched."""
BASELINES = ("greedy", "one sample")
_DERIVED: dict[Kind, str] = {"vote": "majority", "random": "random", "oracle": "oracle"}


@dataclass(frozen=True, slots=True)
class _Cell:
    """A cell of the run with its rows and scores; `spent` as `scores`, in the run's unit."""

    hash: str
    label: str
    plain: dict
    rows: tuple[Row, ...]
    scores: np.ndarray
    spent: np.ndarray

    @property
    def strategy(self) -> str:
        return self.plain["strategy"]

    @property
    def n(self) -> int | None:
        return self.plain["parameters"].get("n")

    @property
    def ok(self) -> list[Row]:
        return [row for row in self.rows if row.status == "ok"]

    @property
    def samples(self) -> list[Row]:
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
class _Grid:
    """Where a search stands in a matrix of scores."""

    run: Run
    unit: str
    problems: dict[str, int]
    seeds: dict[int, int]

    def matrix(self, values: Iterator[tuple[Key, float]]) -> np.ndarray:
        """(problems, seeds), NaN where there is no value."""
        found = np.full((len(self.problems), len(self.seeds)), np.nan)
        for key, value in values:
            found[self.problems[key.item], self.seeds[key.seed]] = value
        return found

    def spent(self, row: Row) -> float:
        """In the run's unit, whichever run the search was first made for."""
        if self.unit == "seconds":
            return row.seconds
        return self.of(sum(row.usage.values(), Usage()))

    def of(self, usage: Usage) -> float:
        """In the run's unit; of seconds, those of the model."""
        if self.unit == "seconds":
            return usage.seconds
        return Budget(1.0, self.unit).of(usage)  # type: ignore[arg-type]


def analyse(store: Store, run: Run, *, where: str | None = None, cards: bool = True) -> Findings:
    """What the rows of a run say; of those that `where`, an SQL condition, chooses (see
    `Store.rows`). `cards=False` leaves the judges' cards out, which need the traces read.

    Raises StoreError for a condition that cannot be used.
    """
    rows = list(store.rows(run, where))
    grid = _grid(run)
    cells = _cells(grid, rows)
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
        headline=headline(standings, compared, room, grid.unit),
        notes=notes(run, rows, missing, failed, standings, where),
        standings=standings,
        comparisons=compared,
        curves=_curves(cells, standings),
        headrooms=room,
        types=_types(grid, cells),
        cards=_cards(store, run, rows) if cards else (),
        outcomes=_outcomes(grid, cells, scores),
        searches=len(rows),
        failed=sum(row.status == "failed" for row in rows),
        missing=len(missing),
        commands=(run.command, shlex.join(report)),
    )


def _grid(run: Run) -> _Grid:
    matches = [plain["match"] for _, plain in run.cells.values() if plain["match"]]
    return _Grid(
        run,
        matches[0]["unit"] if matches else "flops",
        {item.digest: at for at, item in enumerate(run.items)},
        {seed: at for at, seed in enumerate(run.seeds)},
    )


def _cells(grid: _Grid, rows: list[Row]) -> list[_Cell]:
    by_cell: dict[str, list[Row]] = {}
    for row in rows:
        by_cell.setdefault(row.key.cell, []).append(row)
    found = []
    for hash, (label, plain) in grid.run.cells.items():
        own = by_cell.get(hash, [])
        ok = [row for row in own if row.status == "ok"]
        scores = grid.matrix((row.key, row.correct) for row in ok)  # type: ignore[misc]
        spent = grid.matrix((row.key, grid.spent(row)) for row in ok)
        found.append(_Cell(hash, label, plain, tuple(own), scores, spent))
    return found


# --- standings -----------------------------------------------------------------------------------


def _standings(
    grid: _Grid, cells: list[_Cell]
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
            picked = ((row.key, _picked(kind, row.candidates)) for row in cell.samples)
            scores[label] = grid.matrix(picked)
            found.append(_derived(grid, cell, kind, label, scores[label]))
    return tuple(found), scores


def _searched(grid: _Grid, cells: list[_Cell], cell: _Cell) -> Standing:
    budgeted = [row for row in cell.ok if row.allotted is not None and row.unit == grid.unit]
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
        allotted=_mean([row.allotted for row in budgeted]) if budgeted else None,
        spent=_mean(cell.spent[~np.isnan(cell.spent)]),
        left=_mean(left) if left else None,
        by_role={role: grid.of(used) for role, used in usage.items()},
        usage=usage,
        seconds=_mean([row.seconds for row in cell.ok]),
        matching=_matching(grid, cells, cell),
    )


def _derived(grid: _Grid, cell: _Cell, kind: Kind, label: str, scores: np.ndarray) -> Standing:
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


def _picked(kind: Kind, candidates: tuple[Candidate, ...]) -> float:
    """The score of what is chosen among whole responses; for a random one in expectation."""
    scores = [candidate.correct for candidate in candidates]
    if kind == "oracle":
        return max(scores)
    if kind == "random":
        return sum(scores) / len(scores)
    sound = [c for c in candidates if c.sound] or list(candidates)
    agreeing = majority([c.answer for c in sound], tie=[math.exp(c.likelihood) for c in sound])
    return max((sound[i] for i in agreeing), key=lambda c: c.likelihood).correct


def _matching(grid: _Grid, cells: list[_Cell], cell: _Cell) -> Matching:
    """Whether it spent what it was to: what the reference did on the same searches, or else the
    amount that all were given."""
    if cell.hash == grid.run.reference:
        return "reference"
    goal = cell.plain["match"]
    if goal is None:
        return ""
    if goal["reference"] is None:
        ratio = _mean(cell.spent[~np.isnan(cell.spent)]) / goal["amount"]
    else:
        ratio = _ratio(cell, next(c for c in cells if c.hash == goal["reference"]))
    return "matched" if _near(ratio) else "unmatched"


def _ratio(first: _Cell, second: _Cell) -> float:
    """The first's spending over the second's, on the searches that both have; NaN without any."""
    both = ~np.isnan(first.spent) & ~np.isnan(second.spent)
    base = _mean(second.spent[both])
    return _mean(first.spent[both]) / base if base else math.nan


def _near(ratio: float) -> bool:
    """The same for a ratio and its inverse; an unknown one (NaN) is not near."""
    return ratio > 0 and min(ratio, 1 / ratio) >= 1 - TOLERANCE - 1e-9


def _usage(rows: list[Row]) -> dict[Role, Usage]:
    """The mean per search, by role."""
    total: dict[Role, Usage] = {}
    for row in rows:
        for role, used in row.usage.items():
            total[role] = total.get(role, Usage()) + used  # type: ignore[index, arg-type]
    return {
        role: Usage(**{f.name: getattr(used, f.name) / len(rows) for f in fields(Usage)})
        for role, used in total.items()
    }


def _problems(scores: np.ndarray) -> int:
    return int((~np.isnan(scores)).any(axis=1).sum())


def _mean(values) -> float:
    """NaN without any."""
    return float(sum(values) / len(values)) if len(values) else math.nan


# --- comparisons and curves ----------------------------------------------------------------------


def _comparisons(grid: _Grid, cells: list[_Cell]) -> tuple[Comparison, ...]:
    have = [cell for cell in cells if cell.ok]
    pairs = [(a, b) for a, b in _pairs(grid.run, cells) if a in have and b in have]
    tests = [paired(a.scores, b.scores) for a, b in pairs]
    found = []
    for (a, b), test, p in zip(pairs, tests, holm([test.p for test in tests]), strict=True):
        ratio = _ratio(a, b)
        matched = _near(ratio)
        of = "compute" if grid.unit == "flops" else grid.unit
        first = a.label if matched else f"{a.label} (at {_times(ratio)} times the {of})"
        said = sentence(first, b.label, test, p)
        found.append(Comparison(a.label, b.label, test, p, len(pairs), ratio, matched, said))
    return tuple(found)


def _pairs(run: Run, cells: list[_Cell]) -> list[tuple[_Cell, _Cell]]:
    """The comparisons of the family, by the rule at the top of this file."""
    matched = [cell for cell in cells if cell.plain["match"] is not None]
    chosen = [cell for cell in cells if cell.hash == run.reference]
    chosen = chosen or [c for c in matched if c.strategy != "majority"] or matched
    if chosen:
        base = chosen[0]
        others = [cell for cell in matched if cell is not base]
        others += [c for name in BASELINES for c in cells if _is_baseline(c, name, base)]
        return [(base, other) for other in others if other is not base]
    return [
        (cell, other)
        for cell in cells
        if cell.strategy != "greedy"
        for other in cells
        if _is_baseline(other, "greedy", cell)
    ]


def _is_baseline(cell: _Cell, name: str, of: _Cell) -> bool:
    """Is it that baseline, drawn as the other cell draws its responses?"""
    drawn = ["plan", "detail", "mode"]
    drawn += ["temperature", "top_p", "top_k"] if name != "greedy" else []  # no matter to greedy
    mine, other = cell.plain["config"], of.plain["config"]
    return cell.baseline() == name and all(mine.get(key) == other.get(key) for key in drawn)


def _times(ratio: float) -> str:
    """Two digits: "1.8", "12", "0.73"."""
    return f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.2g}"


def _curves(cells: list[_Cell], standings: tuple[Standing, ...]) -> tuple[Curve, ...]:
    """Cells that differ in n alone; and the majority and the oracle of their candidates, for which
    one candidate is all there is at n=1."""
    groups: dict[str, list[_Cell]] = {}
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


def _types(grid: _Grid, cells: list[_Cell]) -> tuple[TypeRow, ...]:
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
    grid: _Grid, cells: list[_Cell], scores: dict[str, np.ndarray]
) -> tuple[Outcome, ...]:
    keys: dict[str, dict[str, tuple[Key, ...]]] = {}
    for cell in cells:
        for row in cell.rows:
            own = keys.setdefault(row.key.item, {})
            own[cell.label] = (*own.get(cell.label, ()), row.key)
    found = []
    for at, item in enumerate(grid.run.items):
        if item.digest in keys:
            rows = {label: values[at][~np.isnan(values[at])] for label, values in scores.items()}
            correct = {label: _mean(v) if len(v) else None for label, v in rows.items()}
            about = (item.problem, item.digest, item.type, item.question, item.expected)
            found.append(Outcome(*about, correct, keys[item.digest]))
    return tuple(found)


def _cards(store: Store, run: Run, rows: list[Row]) -> tuple[Card, ...]:
    """Traces are read one at a time, and only of searches of which something is known."""

    def searches() -> Iterator[tuple[Trace, tuple[Selection, ...]]]:
        for row in rows:
            if any(len(s.candidates) > 1 and (s.worth or s.facts) for s in row.selections):
                with contextlib.suppress(StoreError):  # one that was stored without its trace
                    yield store.trace(run, row.key), row.selections

    return judging.cards(searches())
