"""A file of questions, answered by one strategy: what is asked, what is done already, the rest.

Questions are answered `in_flight` at a time on one batch of the model; each is a line of the
predictions file as soon as it is done. What is in the file is not asked again, what failed is.
A question is searched as `cot-engine solve` searches it: its trace is the same.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cot_engine.answering.data import Questions
from cot_engine.answering.predictions import (
    Line,
    Prediction,
    Predictions,
    begun,
    check_same,
    put_aside,
    read_predictions,
    record,
)
from cot_engine.core.answers import Answer
from cot_engine.core.problem import Problem
from cot_engine.engine.code import code_version
from cot_engine.errors import BudgetError, CotEngineError, InputError, StrategyError, cut, shown
from cot_engine.files.reading import named
from cot_engine.options.config import keys_of
from cot_engine.options.problem import problem_of
from cot_engine.options.resolve import Resolved
from cot_engine.questions.data import Item
from cot_engine.questions.entries import Entry
from cot_engine.search.concurrency import bounded

if TYPE_CHECKING:
    from cot_engine.engine.facade import Engine

_NO_MATTER = keys_of("model", "running", "reading")
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Todo:
    """What a run has to do: the places of the questions to ask, in the order of asking, and the
    lines that are kept, with theirs. `lost`: bytes of a line that was cut off; `fresh`: what is
    there is put aside. `kinds`: how those that were answered are graded."""

    questions: Questions
    asked: tuple[int, ...]
    kept: tuple[tuple[int, Line], ...] = ()
    lost: int = 0
    fresh: bool = False
    kinds: set[str] = field(default_factory=set)


# --- what it is made with ------------------------------------------------------------------------


def made_with(call: Resolved) -> dict[str, Any]:
    """The options that decide what is answered, as a record keeps them."""
    values = call.plain(0)
    options = {key: value for key, value in values.items() if key not in _NO_MATTER}
    options["plan"] = asdict(call.plan)["stages"]
    return {"options": options}


def made_by(engine: Engine, call: Resolved) -> dict[str, Any]:
    """The model and the code that answer, as a record keeps them."""
    info, config = engine.backend.info, call.config
    # Of a device its kind, of a server its machine: which of several, or which port, is no matter.
    device = info.device.partition(":")[0]
    model = {"weights": info.digest or info.model, "device": device, "dtype": info.dtype}
    model |= {key: getattr(config, key) for key in ("quantize", "adapter", "max_pixels")}
    return {"model": model, "code": code_version([config], engine.profile)}


# --- what is to be done --------------------------------------------------------------------------


def plan(
    path: str | Path,
    questions: Questions,
    limit: int | None,
    shuffle: int | None,
    fresh: bool,
    made: dict[str, Any],
) -> Todo:
    """What of `questions` the predictions file lacks. Raises InputError if what it has was made
    with other options, or is about other questions."""
    had = None if fresh else begun(path)
    chosen = questions.chosen(limit, shuffle)
    if had is None:
        return Todo(questions, tuple(chosen), fresh=fresh)
    check_same(path, had, made)
    lines, lost = read_predictions(path)
    kinds: set[str] = set()
    kept = tuple(_kept(path, questions, lines, kinds))
    there = {place for place, _ in kept}
    asked = tuple(place for place in chosen if place not in there)
    return Todo(questions, asked, kept, lost, kinds=kinds)


def _kept(
    path: str | Path, questions: Questions, lines: list[Line], kinds: set[str]
) -> Iterator[tuple[int, Line]]:
    """The lines with an answer, each with the place of its question, which must still be the same.
    Raises InputError."""
    entries = reversed(list(enumerate(questions.entries)))
    places = {_written(entry.id): place for place, entry in entries}
    changed, seen = [], set()
    for line in lines:
        one = line.prediction
        if one.error:
            continue
        if one.id in seen:
            raise InputError(f"The id {shown(one.id)} is twice in {named(path)}.", "Take one out.")
        seen.add(one.id)
        if (place := places.get(_written(one.id))) is None:
            changed.append(f"there is no question {shown(one.id)} any more")
        elif said := _changed(questions, place, one, kinds):
            changed.append(said)
        else:
            yield place, line
    if changed:
        more = f", and {len(changed) - _SHOWN:,} more" if len(changed) > _SHOWN else ""
        raise InputError(
            f"The data has changed since the predictions in {named(path)} were made: "
            f"{'; '.join(changed[:_SHOWN])}{more}.",
            "Take these lines out of the file, name another --out, or begin anew with --fresh.",
        )


def _written(id: str) -> str:
    """An id as CSV and TSV have it, where a name that is no UTF-8 is spelled out."""
    return id.encode("utf-8", "backslashreplace").decode()


def _changed(questions: Questions, place: int, one: Prediction, kinds: set[str]) -> str:
    entry = questions.entries[place]
    try:
        item = entry.make()
    except InputError as error:
        return f"{entry.place}: {cut(error.message, 200)}"
    kinds.add(item.grader.kind)
    if item.digest[: len(one.item)] != one.item or not one.item:
        return f"question {shown(one.id)} ({entry.place}) or its picture or answer is another"
    return ""


# --- doing it ------------------------------------------------------------------------------------


def answer_all(
    engine: Engine,
    call: Resolved,
    todo: Todo,
    predictions: Predictions,
    traces: str | None,
    on_done: Callable[[int, Prediction], None],
) -> None:
    """Ask what is to be asked, and write each line as its question is done; `on_done` hears of it.

    What one question fails of (its data, the search) is its line; what would befall every other
    too (the model, the disk) is raised. An interrupt loses what is in flight and nothing else.
    """

    async def one(place: int) -> tuple[int, Prediction]:
        return place, await _predicted(engine, call, todo, place, traces)

    def keep(done: tuple[int, Prediction]) -> None:
        predictions.add(*done)
        on_done(*done)

    asyncio.run(bounded(map(one, todo.asked), engine.in_flight, keep))


def hopeless(todo: Todo) -> list[tuple[int, Prediction]]:
    """The lines of the questions to ask if none of them can be, so that no model has to be loaded
    for them; nothing as soon as one can."""
    found = []
    for place in todo.asked:
        entry = todo.questions.entries[place]
        try:
            _problem(entry.make())
            return []
        except InputError as error:
            found.append((place, _failed(_asked(entry), entry, error)))
    return found


async def _predicted(
    engine: Engine, call: Resolved, todo: Todo, place: int, traces: str | None
) -> Prediction:
    entry = todo.questions.entries[place]
    known = _asked(entry)
    try:
        # In threads: while a picture is read or downloaded, others are too.
        item = await asyncio.to_thread(entry.make)
        known = _known(item, known.question)
        problem = await asyncio.to_thread(_problem, item)
        answer = await engine.asolve(problem, config=call)
    except (InputError, BudgetError, StrategyError) as error:
        return _failed(known, entry, error)
    trace = ""
    if traces is not None:
        trace = os.path.join(traces, trace_name(entry.id))
        answer.trace.write(trace)
    todo.kinds.add(item.grader.kind)
    return _answered(known, item, answer, trace)


def _problem(item: Item) -> Problem:
    """Named by its content, as solve names it: so the two draw alike."""
    return problem_of(list(item.problem().images) or None, item.question, False)


def _asked(entry: Entry[Item]) -> Prediction:
    return Prediction(entry.id, entry.row.question if entry.row is not None else "")


def _known(item: Item, asked: str) -> Prediction:
    """The columns that are known before it is asked: its question as the data has it, which may be
    a part of what is asked."""
    asked, digest = asked or item.question, item.digest[:16]
    return Prediction(item.id, asked, answer=item.answer, type=item.type, item=digest)


def _answered(known: Prediction, item: Item, answer: Answer, trace: str) -> Prediction:
    return replace(
        known,
        prediction=answer.text,
        right=item.grade(answer.text) >= 0.5 if item.known else None,
        confidence=None if answer.confidence is None else round(answer.confidence, 4),
        incomplete=answer.incomplete,
        new_tokens=answer.total.decoded,
        tokens=answer.total.tokens,
        flops=answer.total.flops,
        seconds=round(answer.seconds, 3),
        trace=trace,
    )


def _failed(known: Prediction, entry: Entry[Item], error: CotEngineError) -> Prediction:
    """The line of a question that has no answer: what went wrong, with its place."""
    said = str(error)
    if entry.place not in said:
        said = f"{entry.place}{f' (id {shown(entry.id)})' if entry.id else ''}: {said}"
    return replace(known, error=said)


def trace_name(id: str) -> str:
    """The name of a question's trace: its id, as far as every file system takes it, and what tells
    it from others where that is not all of it."""
    plain = re.sub(r"[^a-z0-9_.-]+", "_", id.lower()).strip("._")[:80]
    if plain != id:
        plain += "-" + hashlib.sha256(id.encode("utf-8", "replace")).hexdigest()[:8]
    return f"{plain.lstrip('-') or 'trace'}.jsonl"


def open_predictions(
    path: str | Path,
    todo: Todo,
    made: dict[str, Any],
    about: dict[str, Any],
    tell: Callable[[str], None],
) -> Predictions:
    """The file with what is kept of it, ready for more; what it is made with stands beside it
    first, and what else is to be known of it (`about`). Raises InputError for a file that was made
    by another model or code; one that is put aside is told."""
    if todo.fresh and (old := put_aside(path)) is not None:
        tell(f"Note: the predictions from before are now {old}.")
    had = begun(path)
    if had is not None:
        check_same(path, had, made)
    record(path, {**(had or {}), **about, **made})
    return Predictions(path, ((place, line.raw) for place, line in todo.kept))


def arrange(path: str | Path, todo: Todo) -> None:
    """Put the lines of a run that was stopped behind its last answer into their order."""
    places = [place for place, _ in todo.kept]
    if todo.lost or places != sorted(places):
        Predictions(path, ((place, line.raw) for place, line in todo.kept)).close()


def check_traces(folder: str | Path, todo: Todo) -> None:
    """Raises InputError if traces of another run lie where those of this one go."""
    if todo.kept or not Path(folder).is_dir():
        return
    names = {trace_name(todo.questions.entries[place].id) for place in todo.asked}
    there = next((p.name for p in Path(folder).iterdir() if p.name in names), None)
    if there is not None:
        said = f"The folder {named(folder)} has traces of an earlier run, such as {there!r}."
        raise InputError(said, "Name another folder with --traces, or move them away.")
