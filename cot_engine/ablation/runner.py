"""Runs a grid: every search that the store does not hold yet, many at a time on one model.

`plan_run` says what is to be done, `search_row` does one piece of it (here or on another machine),
`run_local` keeps the model busy. Only what calls them writes to the store.
"""

from __future__ import annotations

import asyncio
import hashlib
import platform
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from cot_engine.ablation.grid import Ablation, Cell
from cot_engine.ablation.matching import matched, spent
from cot_engine.ablation.records import CandidateRecord, ItemRecord, Key, ResultRow, Run
from cot_engine.ablation.store import Store
from cot_engine.ablation.worth import selections
from cot_engine.core.answers import Answer
from cot_engine.core.grammar import conclusion, tier
from cot_engine.core.problem import Problem
from cot_engine.engine.code import code_version
from cot_engine.errors import BudgetError, InputError, StrategyError, cut
from cot_engine.images.thumbnails import Thumbnail, thumbnail
from cot_engine.options.resolve import checked, resolve
from cot_engine.questions.data import DataSet, Item
from cot_engine.search.budget import Budget, Unit
from cot_engine.search.concurrency import bounded
from cot_engine.search.session import counts_flops, uncounted

if TYPE_CHECKING:
    from cot_engine.engine.facade import Engine


@dataclass(frozen=True, slots=True)
class SearchTask:
    """One search to be done: everything it needs but the model. `allotted` in the budget's unit;
    `unit` is what its spending is stated in."""

    key: Key
    cell: Cell
    item: Item
    unit: Unit = "flops"
    allotted: float | None = None


@dataclass(frozen=True, slots=True)
class Work:
    """A run and the parts it is made of, by the names that its keys use."""

    run: Run
    cells: dict[str, Cell]
    items: dict[str, Item]

    def phases(self, store: Store, *, retry: bool = True) -> Iterator[tuple[SearchTask, ...]]:
        """What the store lacks: first the cells that depend on nothing, then, once their rows are
        there, those whose budgets these set. What failed is taken up again, but for `retry=False`.

        A phase is made when it is asked for, so the rows of the one before must be stored by then.
        """
        depending = {h for h, c in self.cells.items() if c.match and c.match.reference}
        for later in (False, True):
            yield tuple(self._tasks(store, retry, {h: h in depending for h in self.cells}, later))

    def _tasks(
        self, store: Store, retry: bool, depends: dict[str, bool], later: bool
    ) -> Iterator[SearchTask]:
        done = store.done(self.run, failed=not retry)
        costs = {
            cell.match.reference: store.spent(self.run, cell.match.reference)
            for cell in self.cells.values()
            if later and cell.match and cell.match.reference
        }
        for key in self.run.keys():  # noqa: SIM118
            cell, item = self.cells[key.cell], self.items[key.item]
            if key in done or depends[key.cell] is not later:
                continue
            if cell.match is None:
                yield SearchTask(key, cell, item, self.unit)
            elif cell.match.reference is None:
                yield SearchTask(key, cell, item, self.unit, cell.match.amount)
            elif found := costs[cell.match.reference].get((key.seed, key.item)):
                usage, seconds = found["usage"], found["seconds"]
                timed = self.unit == "seconds"
                amount = seconds if timed else Budget(1.0, self.unit).of(usage)
                yield SearchTask(key, cell, item, self.unit, amount)
            # else the reference failed on this problem: there is nothing to match

    @property
    def unit(self) -> Unit:
        """What spending is stated in: the unit of the match, or FLOPs."""
        return next((cell.match.unit for cell in self.cells.values() if cell.match), "flops")

    @property
    def one_at_a_time(self) -> bool:
        """Seconds mean something only for a search that has the model to itself."""
        return self.unit == "seconds"


def plan_run(ablation: Ablation, data: DataSet, engine: Engine, command: str) -> Work:
    """The run that a grid, a data set and a loaded model make. Equal ones have equal ids.

    Raises InputError or StrategyError for a judge that cannot be made for this model."""
    info = engine.backend.info
    here = info.name == "local"
    device, dtype = (info.device, info.dtype) if here else (None, None)
    ablation = ablation.on(engine.profile.judge, device, dtype, info.model)
    matched = any(cell.match and cell.match.unit == "flops" for cell in ablation.cells)
    if matched and not counts_flops(engine.backend):
        raise uncounted(engine.backend)
    for cell in ablation.cells:
        engine.profile.make_judge(cell.config.judge)  # else every search of it would fail
        checked(resolve(engine.profile, cell.config))
    cells = {cell.hash: cell for cell in ablation.cells}
    items = {item.digest: item for item in data.items}
    code = code_version((cell.config for cell in ablation.cells), engine.profile)
    records = tuple(
        ItemRecord(item.digest, item.id, item.type, item.question, item.answer)
        for item in data.items
    )
    named = "|".join([code, info.digest, data.digest, *cells, *map(str, ablation.seeds)])
    run = Run(
        id=hashlib.sha256(named.encode()).hexdigest()[:12],
        name=ablation.name,
        command=command,
        code=code,
        model=info.digest,
        data=data.digest,
        cells={digest: (cell.label, cell.plain()) for digest, cell in cells.items()},
        items=records,
        seeds=ablation.seeds,
        reference=ablation.cell(ablation.reference).hash if ablation.reference else None,
        about={
            "data": {"name": data.name, "digest": data.digest, "rule": data.rule},
            "model": {"name": info.model, "digest": info.digest, "dtype": info.dtype},
            "architecture": info.architecture,
            "device": info.device,
            "machine": f"{platform.system()} {platform.machine()}",
            "python": sys.version.split()[0],
            "added": [digest for digest, cell in cells.items() if cell.added],
        },
    )
    return Work(run, cells, items)


# --- one search ----------------------------------------------------------------------------------


@lru_cache(maxsize=1)  # the cells of a problem follow each other: its pictures are read once
def _problem(item: Item) -> tuple[Problem, Thumbnail]:
    problem = item.problem()
    return problem, thumbnail(problem.images)


async def search_row(engine: Engine, task: SearchTask) -> ResultRow:
    """Do one search. An error of the search, its problem or a part of it (strategy, judge) makes a
    row that says so; one of the model or the machine is raised, since it would befall every other
    search too."""
    cell, item = task.cell, task.item
    config = replace(cell.config, seed=task.key.seed)
    try:
        problem, picture = _problem(item)
        if task.allotted is None:
            answer = await engine.asolve(problem, config=config)
        else:
            answer, config = await matched(engine, problem, config, task.allotted, task.unit)
        judged = await selections(
            answer.trace, item, engine=engine, problem=problem, config=config,
            rollouts=cell.rollouts,
        )  # fmt: skip
    except (StrategyError, InputError, BudgetError) as error:
        return ResultRow(task.key, "failed", str(error), unit=task.unit, allotted=task.allotted)
    cost, finished = spent(answer, task.unit), answer.trace.finished
    assert finished is not None  # of a search that answered
    return ResultRow(
        task.key,
        "ok",
        answer=answer.text,
        correct=item.grade(answer.text),
        unit=task.unit,
        allotted=task.allotted,
        spent=cost,
        remaining=None if task.allotted is None else max(0.0, task.allotted - cost),
        seconds=answer.seconds,
        usage=dict(answer.usage),
        candidates=_candidates(answer, item),
        selections=judged,
        faults=finished.faults,
        incomplete=answer.incomplete,
        trace=answer.trace,
        picture=picture,
    )


def _candidates(answer: Answer, item: Item) -> tuple[CandidateRecord, ...]:
    """The whole responses that the search grew from the question, in the order it sampled them."""
    trace = answer.trace
    plan, found = trace.started.plan, []
    whole = [growth for growth in trace.fold().growths.values() if growth.unit == "end"]
    for chain in (chain for growth in whole for chain in growth.chains):
        text = conclusion(chain.text, plan)
        sound = tier(chain.faults) == 0
        if chain.parent == "r":
            score = item.grade(text)
            cut = chain.last is not None and chain.last.finish == "budget"
            found.append(CandidateRecord(chain.id, text, score, chain.likelihood(), sound, cut))
    return tuple(found)


# --- many on this machine ------------------------------------------------------------------------


def run_local(
    engine: Engine, tasks: Iterable[SearchTask], on_row: Callable[[ResultRow], None], in_flight: int
) -> None:
    """Do the tasks, `in_flight` at a time on one batch of the model. `on_row` gets each row as
    soon as it is there, in this thread; an interrupt loses only what is in flight."""

    asyncio.run(bounded((search_row(engine, task) for task in tasks), in_flight, on_row))


Execute = Callable[[Iterable[SearchTask], Callable[[ResultRow], None]], None]
"""Does tasks and hands over each row as it comes: `run_local` or `ray_workers.run_ray`, bound to
a model."""


def ablate(
    work: Work,
    store: Store,
    execute: Execute,
    *,
    on_row: Callable[[ResultRow], None] = lambda row: None,
    retry: bool = True,
) -> None:
    """Do what the store lacks of a run, and with `retry` what failed, and store it. The store must
    be held (`store.writing`)."""
    store.begin(work.run)
    pictured = store.pictured()

    def keep(row: ResultRow) -> None:
        if row.picture is not None and row.key.item not in pictured:
            store.add_picture(row.key.item, row.picture)
            pictured.add(row.key.item)
        store.add(work.run, row)
        on_row(row)

    for tasks in work.phases(store, retry=retry):
        execute(tasks, keep)


# --- what failed ---------------------------------------------------------------------------------

_CAUSES = 3
"""As many causes are told, the most frequent ones; a report has them all."""


def told(run: Run, rows: Iterable[ResultRow]) -> str:
    """How many of a run's searches failed and why: of each cause how often, and the first one. ""
    if none did. Errors that differ in numbers alone have one cause."""
    causes: dict[str, list[ResultRow]] = {}
    for row in rows:
        if row.status == "failed":
            causes.setdefault(re.sub(r"\d+", "#", row.error), []).append(row)
    if not causes:
        return ""
    problems = {item.digest: item.problem for item in run.items}
    ordered = sorted(causes.values(), key=len, reverse=True)
    total, all_ = sum(map(len, ordered)), len(run.items) * len(run.seeds) * len(run.cells)
    sentences = [f"{total:,} of {all_:,} searches failed; the rest is stored."]
    for failed in ordered[:_CAUSES]:
        first = failed[0]
        where = f"problem {problems[first.key.item]}, {run.cells[first.key.cell][0]}"
        times = "once" if len(failed) == 1 else f"{len(failed):,} times, first"
        sentences.append(f"{cut(first.error, 300)} ({times}: {where}, seed {first.key.seed}.)")
    if len(ordered) > _CAUSES:
        sentences.append(f"There are {len(ordered) - _CAUSES:,} more causes.")
    return " ".join(sentences)
