"""The questions of a table's benchmarks: read a row at a time, pictures left where they are, and
what is wrong with a row named, so that the rest is asked and scored."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from cot_engine.ablation.data import is_marked_file
from cot_engine.benchmarks import circular
from cot_engine.benchmarks.catalogue import Benchmark
from cot_engine.benchmarks.questions import Question, Trouble, read_questions
from cot_engine.errors import ImageError, InputError
from cot_engine.options.problem import check_question
from cot_engine.questions.data import DataSet, Item, check_n, data_set, item_from
from cot_engine.questions.grading import Unknown


@dataclass(frozen=True, slots=True)
class Asked:
    """A benchmark's questions as they are asked. `data` lacks those that cannot be, for which
    `faults` says why, by id; `questions` has them all. `troubles` are rows that are no question.
    `held` is how many the file has."""

    path: Path
    questions: tuple[Question, ...] = field(repr=False)
    data: DataSet = field(repr=False)
    faults: dict[str, str]
    troubles: tuple[Trouble, ...]
    held: int


def ask(path: Path, of: Benchmark, n: int | None = None) -> Asked:
    """The first `n` questions of a benchmark's file, a group of CircularEval being one; all, if
    None. Raises InputError for a file that cannot be read, or where none can be asked."""
    check_n(n, "problems")
    troubles: list[Trouble] = []
    held = read_questions(path, troubles)
    asked = _first(held, of, n)
    places = {each.place: each.said for each in troubles if each.column == "image"}
    marked = is_marked_file(held)
    items: list[Item] = []
    faults: dict[str, str] = {}
    for question in asked:
        if question.place in places:
            faults[question.id] = f"column image: {places[question.place]}"
            continue
        try:
            check_question(question.prompt)
            items.append(_item(question, marked))
        except InputError as error:
            faults[question.id] = error.message
    if not items:
        place, said = next(iter(faults.items()))
        raise InputError(f"No question of {str(path)!r} can be asked.", f"{place}: {said}")
    rows = tuple(each for each in troubles if each.column != "image")
    return Asked(path, tuple(asked), data_set(of.name, items), faults, rows, len(held))


def _item(question: Question, marked: bool) -> Item:
    """With our own grading, for what is shown while it runs, or without any where the standard
    answer is none: the benchmark's rules say what that comes to."""
    try:
        return question.item(marked=marked)
    except ImageError:
        raise
    except InputError:
        prompt, kind = question.prompt, question.of("category")
        return item_from(question.id, prompt, Unknown(), question.pictures, kind)


def _first(held: list[Question], of: Benchmark, n: int | None) -> list[Question]:
    if n is None:
        return held
    if of.shape != "circular":
        return held[:n]
    groups: dict[str, list[Question]] = {}
    for each in held:
        groups.setdefault(_group(each), []).append(each)
    chosen = set(list(groups)[:n])
    return [each for each in held if _group(each) in chosen]


def _group(question: Question) -> str:
    try:
        return circular.group_of(question.id, question.of("g_index"))
    except ValueError:  # scoring names it
        return question.id
