"""What a teacher is asked about: image questions with standard answers, from files of three kinds.

LLaVA-CoT-100k-style JSONL (each pair of turns a question; the standard answer is what is said
there, or its CONCLUSION), the JSONL of `cot-engine ablate`, and TSV as the public benchmarks are
given out. One row that is no good never keeps the others from being read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from cot_engine.core.grammar import conclusion
from cot_engine.core.stages import DEFAULT_PLAN
from cot_engine.errors import InputError
from cot_engine.files.reading import opened, parse_json
from cot_engine.images.download import AllowUrl
from cot_engine.questions.data import Item, item_of
from cot_engine.questions.files import QuestionRow, Source, read_file
from cot_engine.training.row import standard_answers, unlearnable
from cot_engine.training.rows import BadRow, numbered_rows

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Entry(Generic[T]):
    """One row of the input. `make` reads its picture and raises InputError where it is no good."""

    place: str  # "line 3"
    id: str
    make: Callable[[], T]


def read_questions(
    path: str | Path, images: str | Path | None = None, allow_url: AllowUrl = False
) -> list[Entry[Item]]:
    """The questions of a file, faulty rows among them (their `make` raises).

    Paths of pictures are relative to `images`, or to the file. Raises InputError if the file as a
    whole cannot be read.
    """
    path, images = Path(path), None if images is None else Path(images)
    if path.suffix.lower() not in (".jsonl", ".ndjson", ".json", ".tsv"):
        raise InputError(f"The data {str(path)!r} is no known kind.", "Give a .jsonl or .tsv file.")
    read = _conversations if _has_conversations(path) else _rows
    found = [_located(x, images) if isinstance(x, QuestionRow) else x for x in read(path)]
    every = {row.id: row for row in reversed(found) if isinstance(row, QuestionRow)}
    first: dict[str, str] = {}
    entries = []
    for one in found:
        if isinstance(one, Entry):
            entries.append(one)
        elif one.id in first:
            said = f"the id {one.id!r} is that of {first[one.id]} too."
            entries.append(faulty(path, one.place, said, "Give each its own.", one.id))
        else:
            first[one.id] = one.place
            make = partial(item_of, path, one, every, allow_url)
            entries.append(Entry(one.place, one.id, make))
    if not entries:
        raise InputError(f"The data {str(path)!r} holds no questions.", "Write some into it.")
    return entries


def faulty(path: Path, place: str, said: str, hint: str = "", id: str = "") -> Entry:
    """An entry that says, when it is made, why it cannot be."""
    return failing(place, InputError(f"{str(path)!r}, {place}: {said}", hint), id)


def failing(place: str, error: InputError, id: str = "") -> Entry:
    def make() -> Item:
        raise error

    return Entry(place, id, make)


def _has_conversations(path: Path) -> bool:
    """Is the first row that can be read one of LLaVA's? An array of rows always is."""
    if path.suffix.lower() == ".tsv":
        return False
    try:
        with opened(path, "data", InputError) as file:
            for line in file:
                text = line.decode("utf-8-sig", "replace").strip()
                if text.startswith("["):
                    return True
                try:
                    found = parse_json(text)
                except ValueError:
                    continue
                if isinstance(found, dict):
                    return "conversations" in found
    except (OSError, InputError):
        pass  # the reader explains it
    return False


def _rows(path: Path) -> Iterator[QuestionRow | Entry]:
    """Rows and faulty ones, in the order of the file."""
    bad: list[tuple[str, InputError]] = []
    good = read_file(path, lambda place, error: bad.append((place, error)))
    both: list[tuple[int, QuestionRow | Entry]]
    both = [(_line(place), failing(place, error)) for place, error in bad]
    both += [(_line(row.place), row) for row in good]
    yield from (one for _, one in sorted(both, key=lambda pair: pair[0]))


def _line(place: str) -> int:
    return int(place.removeprefix("line "))


def _conversations(path: Path) -> Iterator[QuestionRow | Entry]:
    for number, row in numbered_rows(path):
        place = f"line {number}"
        if isinstance(row, BadRow):
            yield faulty(path, place, row.said, row.hint)
            continue
        if wrong := [said for _, said in unlearnable(row)]:
            yield faulty(path, place, wrong[0], id=row.id)
            continue
        pictures: tuple[Source, ...] = tuple(("path", name) for name in row.images)
        for at, (question, response) in enumerate(row.turns, 1):
            id = f"{row.id}/{at}" if row.later else row.id
            answer = conclusion(response, DEFAULT_PLAN).strip()
            answers = (not row.later and standard_answers(row)) or (answer,)
            if not question.strip() or not answers[0]:
                said = f"there is no {'answer' if question.strip() else 'question'}."
                yield faulty(path, place, said, "Fill it in.", id)
                continue
            yield QuestionRow(place, id, question, answers, pictures=pictures)


def _located(row: QuestionRow, images: Path | None) -> QuestionRow:
    if images is None:
        return row
    folder = images.absolute()
    pictures = ((k, str(Path(folder, x)) if k == "path" else x) for k, x in row.pictures)
    return replace(row, pictures=tuple(pictures))
