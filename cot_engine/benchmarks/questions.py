"""A benchmark's questions as its file has them, one row at a time and no picture in memory.

The layout is VLMEvalKit's (index, question, A, B, C, ..., hint, answer, category, split, image),
MathVista's own JSON beside it. A picture stands in the cell `image`, in base64: what is kept of it
is where it stands, and it is decoded when it is needed. A short cell is the index of the row that
holds the picture, and a list of texts is several pictures, or several answers any of which will do.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from string import ascii_uppercase as LETTERS
from typing import Any

from cot_engine.core.problem import Problem
from cot_engine.errors import ImageError, InputError, shown
from cot_engine.files.reading import named, why_not
from cot_engine.files.rows import Row, read_rows, row_at
from cot_engine.images.load import Image, load_image
from cot_engine.questions.cells import entries
from cot_engine.questions.data import Item, item_from, prompt
from cot_engine.questions.grading import Grader, Unknown, is_marked, kind_of
from cot_engine.questions.pictures import FilePicture

IDS = ("index", "id", "pid", "question_id")
"""Columns that name a question, the first that there is."""
MISSING = ("", "nan", "NaN")
"""What pandas writes for nothing. None and N/A may be options."""
_PICTURES_IN = ("image", "image_path")
_SHORT = 64  # characters of an image cell that names another row


@dataclass(frozen=True, slots=True)
class Trouble:
    """What is wrong with one row: where, in which column ("" for all of it), and what; whether it
    is scored all the same."""

    place: str
    column: str
    said: str
    scored: bool = False

    def __str__(self) -> str:
        where = f"{self.place}, column {self.column}" if self.column else self.place
        return f"{where}: {self.said}."


@dataclass(frozen=True, slots=True)
class CellPicture:
    """A picture in a cell of a table, read again from the row that begins at byte `at` whenever it
    is needed. `column` counts from 0 (in JSON it is a key), `number` is its place in a list."""

    path: Path
    place: str
    at: int
    column: int | str
    number: int = 0

    @property
    def digest(self) -> str:
        """The SHA-256 of the picture's file. Raises ImageError."""
        return hashlib.sha256(self.data()).hexdigest()

    def data(self) -> bytes:
        """The picture's file. Raises ImageError for a cell that holds none."""
        fields = row_at(self.path, self.at, "questions", ImageError)
        try:
            value = fields[self.column]
            texts = value if isinstance(value, list) else listed(value)
            text = texts[self.number].partition(",")[2] or texts[self.number]
            data = base64.b64decode("".join(text.split()), validate=True)
            if not data:
                raise ValueError("it is empty")
        except (LookupError, AttributeError, TypeError, ValueError, binascii.Error) as error:
            raise ImageError(
                f"{named(self.path)}, {self.place}, column image: no readable base64: {error}.",
                "Write the picture's file in base64, whole.",
            ) from None
        return data

    def load(self) -> Image:
        """Raises ImageError, which names the row."""
        try:
            return load_image(self.data())
        except ImageError as error:
            if self.place in error.message:
                raise
            said = f"{named(self.path)}, {self.place}, column image: {error.message}"
            raise ImageError(said, error.hint) from None


@dataclass(frozen=True, slots=True)
class Question:
    """One question. `answers` are those of which any will do, () where the file has none;
    `columns` is everything else in its row, such as category and split, and the answer as it
    stands there."""

    place: str
    id: str
    question: str
    options: dict[str, str] = field(default_factory=dict)
    answers: tuple[str, ...] = ()
    hint: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict, repr=False)
    pictures: tuple[CellPicture | FilePicture, ...] = field(default=(), repr=False)

    @property
    def prompt(self) -> str:
        """What a model is asked: hint, question, options."""
        return prompt(self.question, self.options, self.hint)

    @property
    def letter(self) -> str:
        """That of the right option, which may be given as its text; "" if it is no letter."""
        given = self.answers[0].strip() if self.answers else ""
        same = [key for key, text in self.options.items() if text.strip() == given]
        if given.upper() not in self.options and len(same) == 1:
            return same[0]
        return given.upper() if len(given) == 1 and given.upper() in LETTERS else ""

    def problem(self) -> Problem:
        """The question as an engine is asked it. Raises ImageError, naming row and column."""
        return Problem(self.id, self.prompt, tuple(each.load() for each in self.pictures))

    def item(self, rule: str = "auto", marked: bool | None = None) -> Item:
        """The question with our own grading of its answers, as `ablate` takes it; nothing is graded
        where it has none. `rule` is one of `grading.RULES`; `marked` says that the file writes
        answers as MM-Vet does (None: this one will tell). Each picture is read once, for its
        digest. Raises InputError for an answer that is no option, ImageError."""
        answers = (self.letter,) if self.options and self.answers else self.answers
        if self.options and answers and answers[0] not in self.options:
            said = f"{self.place}, column answer: {shown(self.answers[0])} is no option."
            raise InputError(said, f"There are {', '.join(self.options)}.")
        grader: Grader | Unknown = Unknown()
        if answers:
            if marked is None:
                marked = any(map(is_marked, answers))
            kind = kind_of(rule, answers, self.options, marked)
            grader = Grader(kind, answers, tuple(self.options.items()))
        return item_from(self.id, self.prompt, grader, self.pictures, self.of("category"))

    def of(self, column: str) -> str:
        """The text of another column; "" where it has none."""
        return text_of(self.columns.get(column))


def text_of(value: Any) -> str:
    """A cell as a text; "" for what stands for nothing."""
    if value is None or (isinstance(value, float) and value != value):
        return ""
    text = value if isinstance(value, str) else str(value)
    return "" if text.strip() in MISSING else text


def listed(value: Any) -> list[str]:
    """The texts of a cell that holds one or a list of them."""
    if isinstance(value, (list, tuple)):
        return [str(each) for each in value]
    text = text_of(value)
    return (entries(text) or [text]) if text else []


def id_column(cells: Iterable[str]) -> str:
    """The column that names the question; "" if there is none."""
    names = set(cells)
    return next((name for name in IDS if name in names), "")


def id_of(value: Any) -> str:
    """A question's name: of a whole number that a program wrote as 3.0, without its point."""
    text = text_of(value).strip()
    return text.removesuffix(".0") if text.removesuffix(".0").isdigit() else text


def flat(cells: Mapping[str, Any]) -> dict[str, Any]:
    """A row with what MathVista has as its metadata beside the rest; names in lower case, but for
    the letters of options, as VLMEvalKit makes them."""
    more = cells.get("metadata")
    merged = {**cells, **more} if isinstance(more, dict) else dict(cells)
    return {
        name if name in LETTERS else name.lower(): value
        for name, value in merged.items()
        if name != "metadata"
    }


_OWN = {*IDS, "question", "hint", "image", "image_path", "images", *LETTERS}


def question_of(place: str, cells: Mapping[str, Any]) -> Question:
    """The question in a row, without its pictures."""
    options = {c: text_of(cells[c]) for c in LETTERS if text_of(cells.get(c)).strip()}
    answer = cells.get("answer")
    return Question(
        place,
        id_of(cells.get(id_column(cells))),
        text_of(cells.get("question")),
        options,
        tuple(dict.fromkeys(each for each in listed(answer) if each.strip())),
        text_of(cells.get("hint")).strip(),
        {name: value for name, value in cells.items() if name not in _OWN},
    )


def is_benchmark(path: Path) -> bool:
    """Is it in the layout in which public benchmarks are given out? Its rows have an index (or pid,
    question_id), a question and a picture."""
    if path.suffix.lower() == ".json":
        return True
    if path.suffix.lower() != ".tsv":
        return False
    try:
        rows = read_rows(path, "data set", InputError, lambda *_: None)
        columns = set(flat(next(iter(rows)).cells))
    except (InputError, StopIteration):
        return False  # the other reader explains it
    return (
        id_column(columns - {"id"}) != ""
        and "question" in columns
        and not columns.isdisjoint(_PICTURES_IN)
    )


def read_questions(path: str | Path, troubles: list[Trouble]) -> list[Question]:
    """The questions of a benchmark's file, pictures found and not decoded. What is wrong with a
    row is added to `troubles`, and the row left out. Raises InputError for a file that cannot be
    read, has no column for ids or questions, or holds none."""
    path = Path(path)

    def tell(place: str, column: str, said: str) -> None:
        troubles.append(Trouble(place, column, said))

    questions: dict[str, Question] = {}
    images: dict[str, tuple[Row, list[str]]] = {}
    for row in _rows(path, tell):
        cells = row.cells
        question = question_of(row.place, cells)
        if not question.id or not question.question.strip():
            column = "question" if question.id else id_column(cells)
            tell(row.place, column, "it is empty")
        elif question.id in questions:
            before = questions[question.id].place
            tell(row.place, id_column(cells), f"{shown(question.id)} is that of {before}, too")
        else:
            questions[question.id] = question
            # Of a picture only how long it is, of the index of another row what it says.
            held = [each if len(each) <= _SHORT else "" for each in listed(cells.get("image"))]
            paths = listed(cells.get("image_path")) if not held else []
            images[question.id] = (Row(row.place, {"paths": paths}, row.at), held)
    if not questions:
        raise InputError(f"{named(path)} holds no questions.", "Name a benchmark's file.")
    at = _column_of_images(path)
    for key, question in questions.items():
        try:
            pictures = tuple(_pictures(path, key, images, at))
        except _Wrong as wrong:
            tell(question.place, "image", str(wrong))
            continue
        if pictures:
            questions[key] = replace(question, pictures=pictures)
    return list(questions.values())


class _Wrong(Exception):
    """What is wrong with a row's picture."""


def _rows(path: Path, tell: Any) -> Iterator[Row]:
    checked = False
    for row in read_rows(path, "questions", InputError, tell):
        cells = flat(row.cells)
        if not checked:
            missing = [name for name in ("question",) if name not in cells]
            missing += [] if id_column(cells) else ["index"]
            if missing:
                said = f"{named(path)} has no column {' and no column '.join(missing)}"
                raise InputError(f"{said}.", f"Its columns are {', '.join(list(cells)[:20])}.")
            checked = True
        yield Row(row.place, cells, row.at)


def _column_of_images(path: Path) -> int | str:
    """Where the column stands: by it a row is read again."""
    if path.suffix.lower() not in (".tsv", ".csv"):
        return "image"
    header = row_at(path, 0, "questions", InputError)
    names = [name.strip().lstrip("\ufeff").lower() for name in header]
    return names.index("image") if "image" in names else -1


def _pictures(
    path: Path, key: str, images: dict[str, tuple[Row, list[str]]], column: int | str
) -> Iterator[CellPicture | FilePicture]:
    row, held = images[key]
    for name in row.cells["paths"]:
        if (picture := _in_file(path, name)) is None:
            raise _Wrong(f"the picture {shown(name)} is not there")
        yield picture
    for number, short in enumerate(held):
        if short and short not in images and (picture := _in_file(path, short)) is not None:
            yield picture
            continue
        holder, at, seen = row, number, [key]
        while short:
            if short in seen:
                raise _Wrong(f"it goes round in a circle: {' -> '.join([*seen, short])}")
            if short not in images:
                raise _Wrong(f"there is no row {shown(short)}, which it names")
            seen.append(short)
            holder, others = images[short]
            if not others:
                raise _Wrong(f"row {shown(short)}, which it names, has none")
            short, at = others[0], 0
        if holder.at is None:
            raise _Wrong("pictures in base64 are read from TSV, CSV and JSONL files")
        yield CellPicture(path, holder.place, holder.at, column, at)


def _in_file(table: Path, name: str) -> FilePicture | None:
    """The picture of that name beside a table; None if there is none. Raises _Wrong for one that
    cannot be read, which is the fault of its row alone."""
    path = table.parent / name
    try:
        data = path.read_bytes() if path.is_file() else None
    except OSError as error:  # also of a name that is longer than any file's
        raise _Wrong(f"the picture {shown(name)} cannot be read: {why_not(error)}") from None
    return None if data is None else FilePicture(path, hashlib.sha256(data).hexdigest())
