"""Questions one by one: one that is no good is an entry that says so, and keeps none of the others
from being read. Pictures are read, and questions checked, when an entry is made into an item.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from cot_engine.errors import InputError
from cot_engine.images.download import AllowUrl
from cot_engine.questions.data import Item, item_of
from cot_engine.questions.files import read_file
from cot_engine.questions.grading import is_marked
from cot_engine.questions.row import QuestionRow

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Entry(Generic[T]):
    """One row of the input. `make` reads its picture and raises InputError where it is no good.
    `row` is what is known of it without its picture, where it could be read."""

    place: str  # "line 3"
    id: str
    make: Callable[[], T]
    row: QuestionRow | None = None


def faulty(path: Path, place: str, said: str, hint: str = "", id: str = "") -> Entry:
    """An entry that says, when it is made, why it cannot be."""
    return failing(place, InputError(f"{str(path)!r}, {place}: {said}", hint), id)


def failing(place: str, error: InputError, id: str = "") -> Entry:
    """An entry that raises this when it is made."""

    def make() -> Item:
        raise error

    return Entry(place, id, make)


def rows_of(path: Path, *, loose: bool = False) -> Iterator[QuestionRow | Entry]:
    """The rows of a .jsonl, .tsv or .csv file, and those that cannot be read, in its order."""
    bad: list[tuple[str, InputError]] = []
    good = read_file(path, lambda place, error: bad.append((place, error)), loose=loose)
    both: list[tuple[int, QuestionRow | Entry]]
    both = [(_line(place), failing(place, error)) for place, error in bad]
    both += [(_line(row.place), row) for row in good]
    yield from (one for _, one in sorted(both, key=lambda pair: pair[0]))


def _line(place: str) -> int:
    return int(place.removeprefix("line "))


def entries_of(
    path: Path, rows: Iterable[QuestionRow | Entry], allow_url: AllowUrl, *, apart: bool = True
) -> list[Entry[Item]]:
    """Each row as an entry. Of several with one id the first is good, for results are kept by id.
    `apart`: how each is graded is its own; else the answers of all say how they are written."""
    found = list(rows)
    own = [row for row in found if isinstance(row, QuestionRow)]
    every = {row.id: row for row in reversed(own)}
    marked = (
        None if apart else any(map(is_marked, (a for r in own if not r.choices for a in r.answers)))
    )
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
            make = partial(item_of, path, one, every, allow_url, marked)
            entries.append(Entry(one.place, one.id, make, one))
    return entries
