"""What a model answered, as files hold it, beside the questions it was asked.

A predictions file has a row a question: its index (or id, or pid), and `prediction` (or
`response`). Harnesses write the question's columns into it, answer and categories too; where they
are not there, the benchmark's own file has them. MathVista's own JSON has the `extraction`,
VLMEvalKit's of MathVista the `res`, and its of MMVet the `score` that a model made of a prediction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cot_engine.benchmarks.catalogue import BENCHMARKS, Benchmark
from cot_engine.benchmarks.questions import (
    IDS,
    Question,
    Trouble,
    flat,
    id_column,
    id_of,
    question_of,
    read_questions,
    text_of,
)
from cot_engine.errors import InputError, shown
from cot_engine.files.reading import named
from cot_engine.files.rows import near_columns, read_rows
from cot_engine.files.sheets import without_apostrophe

PREDICTIONS = ("prediction", "response")
EXTRACTED = {"mathvista": ("extraction", "res"), "graded": ("score",)}
"""Columns that hold what a model made of a prediction, by kind of question."""
OURS = {"new_tokens", "item"}
"""Columns by which a file that `cot-engine answer` wrote is known."""
CATEGORIES = ("l2-category", "category", "l2_category")
"""Columns that scores are shown by."""
_READ = {*IDS, *PREDICTIONS, *CATEGORIES, "question", "answer", "hint", "split"}
NAMED_NOTHING = ("None", "N/A", "NA", "null", "NULL", "n/a", "<NA>", "#N/A")
"""Options that pandas, and so VLMEvalKit, takes for empty cells."""


@dataclass(frozen=True, slots=True)
class Case:
    """A question, what was predicted, and where that stands. `extracted`: what a model made of it
    before, None if that is not there. `trouble`: why it cannot be scored, "" if it can."""

    question: Question
    prediction: str = ""
    place: str = ""
    extracted: str | None = None
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Cases:
    """All that is to be scored. `troubles` are about rows, `unread` counts those of which not even
    the question is known; `notes` are sentences for the user."""

    cases: tuple[Case, ...]
    troubles: tuple[Trouble, ...] = ()
    unread: int = 0
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class _Reading:
    """What has been read so far."""

    path: Path
    kind: str
    rows: dict[str, Case] = field(default_factory=dict)
    troubles: list[Trouble] = field(default_factory=list)
    unread: int = 0

    def tell(self, place: str, column: str, said: str) -> None:
        self.troubles.append(Trouble(place, column, said))
        self.unread += 1


def read_cases(path: str | Path, benchmark: Benchmark, against: str | Path | None = None) -> Cases:
    """The predictions of a file for a benchmark's questions; `against` is the file of these, where
    the first does not have them. Raises InputError for a file that cannot be read, that lacks a
    column, or that is about other questions altogether."""
    reading = _Reading(Path(path), benchmark.kind)
    _read(reading, against is not None)
    if not reading.rows:
        raise InputError(f"{named(path)} holds no predictions.", _said(reading.troubles))
    if against is None:
        cases = list(reading.rows.values())
        notes = _of_known_size(benchmark, cases)
    else:
        asked_of: list[Trouble] = []
        questions = read_questions(against, asked_of)
        reading.troubles += [
            Trouble(f"{named(against)}, {each.place}", each.column, each.said)
            for each in asked_of
            if each.column not in ("image", "image_path")  # scoring looks at no picture
        ]
        cases, notes = _paired(reading, questions, against), []
        reading.unread = 0  # their questions are there, without a prediction
    notes += [note for each in (path, against) if (note := _of_other_name(benchmark, each))]
    return Cases(tuple(cases), tuple(reading.troubles), reading.unread, tuple(notes))


def _read(reading: _Reading, alone: bool) -> None:
    columns: tuple[str, str] | None = None
    sheet = False  # written by `answer`, for spreadsheets
    for row in read_rows(reading.path, "predictions", InputError, reading.tell):
        cells = flat(row.cells)
        if columns is None:
            columns = _columns(reading.path, cells, reading.kind, alone)
            sheet = reading.path.suffix.lower() in (".csv", ".tsv") and {*cells} >= OURS
        if sheet:
            cells = {name: without_apostrophe(cell) for name, cell in cells.items()}
        key, said = id_of(cells.get(columns[0])), cells.get(columns[1])
        if not key:
            reading.tell(row.place, columns[0], "it is empty")
            continue
        case = _case(row.place, cells, columns, reading)
        if key in reading.rows:
            first = reading.rows[key]
            both = f"{first.place} and {row.place}"
            trouble = f"{shown(key)} is there twice, in {both}"
            same = text_of(said) == first.prediction
            reading.troubles.append(Trouble(row.place, columns[0], trouble, same))
            if not same:
                reading.rows[key] = replace(first, trouble=f"two predictions, in {both}")
            continue
        reading.rows[key] = case


def _columns(path: Path, cells: Mapping[str, Any], kind: str, alone: bool) -> tuple[str, str]:
    """Those of the id and of the prediction. Raises InputError."""
    key = id_column(cells)
    prediction = next((name for name in PREDICTIONS if name in cells), "")
    missing = [] if key else [" or ".join(IDS)]
    missing += [] if prediction else [" or ".join(PREDICTIONS)]
    if not alone:
        missing += [name for name in ("question", "answer") if name not in cells]
    if missing:
        said = f"{named(path)} has no column {' and no column '.join(missing)}"
        there = f"Its columns are {', '.join(list(cells)[:20])}."
        if key and prediction:
            there = "Name the file of questions with --against."
        wanted = [*([] if prediction else PREDICTIONS), *([] if key else IDS)]
        wanted += [name for name in ("question", "answer") if name in missing]
        raise InputError(f"{said}.", " ".join([*near(wanted, cells)[:1], there]))
    return key, prediction


def near(names: Iterable[str], cells: Iterable[str]) -> list[str]:
    """Which columns may be meant by `names`, in sentences."""
    return near_columns(names, cells, _READ, 0.7)


def _case(
    place: str, cells: Mapping[str, Any], columns: tuple[str, str], reading: _Reading
) -> Case:
    kind = reading.kind
    question = question_of(place, cells)
    prediction = text_of(cells.get(columns[1]))
    extracted = next((_as_is(cells[n]) for n in EXTRACTED.get(kind, ()) if n in cells), None)
    if kind == "graded" and not text_of(extracted).strip():
        extracted = None
    trouble = ""
    if not prediction.strip() and extracted is None:
        trouble = "the prediction is empty"
        raw = cells.get(columns[1])
        if isinstance(raw, str) and raw.strip():
            trouble = f"the prediction is {raw.strip()!r}, which programs write for nothing"
        reading.troubles.append(Trouble(place, columns[1], trouble.removeprefix("the prediction ")))
    return Case(question, prediction, place, extracted, trouble)


def _as_is(value: Any) -> str:
    return "" if value is None else str(value)


def _of_known_size(benchmark: Benchmark, cases: list[Case]) -> list[str]:
    if benchmark.questions is None or len(cases) == benchmark.questions:
        return []
    return [f"{benchmark.name} has {benchmark.questions:,} questions; {len(cases):,} are here."]


def _of_other_name(benchmark: Benchmark, path: str | Path | None) -> str:
    """What is to be said of a file that is called as another benchmark: those on other pictures, or
    in another language, cannot be told apart by what is in them."""
    name = Path(path).name if path is not None else ""
    called = max((each for each in BENCHMARKS if each.lower() in name.lower()), key=len, default="")
    if called in ("", benchmark.name):
        return ""
    return f"{named(name)} is called as {called} is, and scored as {benchmark.name}."


def _paired(reading: _Reading, questions: list[Question], against: str | Path) -> list[Case]:
    """Each question with its prediction."""
    known = {question.id: question for question in questions}
    cases, found = [], 0
    for question in questions:
        case = reading.rows.get(question.id)
        if case is None:
            cases.append(Case(question, trouble="there is no prediction"))
            continue
        found += 1
        asked = case.question.question
        trouble = case.trouble
        if asked and asked.split() not in (question.question.split(), question.prompt.split()):
            trouble = f"it is about another question than {question.place} of the questions"
            reading.troubles.append(Trouble(case.place, "question", trouble))
        cases.append(replace(case, question=question, trouble=trouble))
    if not found:
        some = ", ".join(shown(key) for key in list(reading.rows)[:3])
        raise InputError(
            f"No prediction of {named(reading.path)} is for a question of {named(against)}: they"
            f" are for {some}, ...",
            "Name the questions that were answered.",
        )
    for key, case in reading.rows.items():
        if key not in known:
            column = "index"
            said = f"{shown(key)} is no question of {named(against)}"
            reading.troubles.append(Trouble(case.place, column, said))
    if absent := len(questions) - found:
        reading.troubles.append(
            Trouble(named(reading.path), "", f"{absent:,} questions have no prediction")
        )
    return cases


def _said(troubles: list[Trouble]) -> str:
    return str(troubles[0]) if troubles else "Name a file that a harness or `answer` wrote."
