"""What a grid asks. A benchmark's table is read a row at a time and its pictures stay where they
are until they are asked about, so that a file of some GB takes some MB; anything else is read as
`questions.data.load_data` reads it, whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cot_engine.benchmarks.questions import Question, Trouble, is_benchmark, read_questions, text_of
from cot_engine.errors import InputError
from cot_engine.images.download import AllowUrl
from cot_engine.options.problem import check_question
from cot_engine.questions.cells import entries
from cot_engine.questions.data import DataSet, Item, check_n, data_set, load_data, notes_of
from cot_engine.questions.grading import RULES, is_marked
from cot_engine.questions.row import QuestionRow


def read_data(
    source: Any, *, folder: str | Path = "", allow_url: AllowUrl = False, **given: Any
) -> DataSet:
    """The data set that a grid's [data] names; `given` are the other arguments of `load_data`. The
    items are the same, digests and all, whichever way they are read. Raises what it raises."""
    if isinstance(source, str) and source.endswith(".tsv"):
        found = _by_row(Path(folder, source), **given)
        if found is not None:
            return found
    return load_data(source, folder=folder, allow_url=allow_url, **given)


def _by_row(
    path: Path, n: Any = None, split: Any = None, rule: Any = None, seed: Any = 0
) -> DataSet | None:
    """Read a row at a time; None for what is no benchmark's table, or has anything wrong in it or
    in these arguments: the other reader says what, and knows pictures that this one does not."""
    check_n(n)
    if rule not in (None, *RULES) or rule == "choice" or not is_benchmark(path):
        return None
    troubles: list[Trouble] = []
    try:
        held = read_questions(path, troubles)
        if split is not None:
            held = [each for each in held if each.of("split") == split]
        taken = held[:n]
        if not taken or not _sound(taken, troubles) or not all(each.answers for each in held):
            return None
        items = items_of(taken, rule or "auto", held)
    except (InputError, TypeError):
        return None
    name = path.name if split is None else f"{path.name}/{split}"
    rows = [_row(each) for each in taken]
    return data_set(name, items, notes_of(name, items, rows, n, len(held)))


def _sound(taken: Sequence[Question], troubles: Sequence[Trouble]) -> bool:
    """Has nothing been found wrong but with pictures of questions that are not taken?"""
    places = {each.place for each in taken}
    return all(each.column == "image" and each.place not in places for each in troubles)


def items_of(questions: Sequence[Question], rule: str, every: Sequence[Question]) -> list[Item]:
    """Questions of a benchmark as items, with our own grading. `every` question of the file says
    how its answers are written. Raises InputError and ImageError."""
    marked = is_marked_file(every)
    for question in questions:
        check_question(question.prompt)
    return [question.item(rule, marked) for question in questions]


def is_marked_file(questions: Sequence[Question]) -> bool:
    """Does the file write alternatives as MM-Vet does?"""
    return any(is_marked(text) for q in questions if not q.options for text in q.answers)


def _row(question: Question) -> QuestionRow:
    """What is told of answers that are written as lists."""
    listed = entries(text_of(question.columns.get("answer"))) is not None
    return QuestionRow(
        question.place, question.id, question.question, question.answers, listed=listed
    )
