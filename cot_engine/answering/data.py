"""What is to be answered: a file of questions, a folder of pictures with one question, a data set
folder of Hugging Face's, or the bundled scenes. Entries are light; pictures are read one by one.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from cot_engine.benchmarks.questions import Trouble, is_benchmark, read_questions
from cot_engine.errors import ConfigError, InputError, UnknownNameError, shown
from cot_engine.files.reading import named
from cot_engine.images.download import AllowUrl
from cot_engine.options.problem import check_question
from cot_engine.questions.data import SOURCES, Item, about_lists, item_of, load_data
from cot_engine.questions.entries import Entry, entries_of, failing, rows_of
from cot_engine.questions.row import MEANT, QuestionRow, Source

FILES = (".jsonl", ".ndjson", ".tsv", ".csv", ".json")
PICTURES = frozenset(".png .jpg .jpeg .gif .webp .bmp .tif .tiff .avif .heic".split())
_KNOWN = sorted({*MEANT, "index", "image_path"})


@dataclass(frozen=True, slots=True)
class Questions:
    """Entries in the order of the data, each with its place in that order (from 0); `notes` are
    sentences for the user. `stem` is what files about it are called after."""

    name: str
    stem: str
    entries: tuple[Entry[Item], ...] = field(repr=False)
    notes: tuple[str, ...] = ()

    def chosen(self, limit: int | None, shuffle: int | None) -> list[int]:
        """The places of those to be answered, in the order in which they are asked. A shuffle
        depends on the seed and the ids alone: a larger limit has the smaller one's questions."""
        places = list(range(len(self.entries)))
        if shuffle is not None:
            places.sort(key=lambda place: _drawn(shuffle, self.entries[place]))
        return places[:limit]


def read_data(
    source: str | Path,
    question: str | None = None,
    split: str | None = None,
    allow_url: AllowUrl = False,
) -> Questions:
    """The questions of `source`; `question` is what a folder of pictures is asked, `split` keeps
    one part of a data set. Raises InputError where it cannot be read as a whole."""
    text = os.fspath(source)
    if not text.strip():
        raise InputError("The data has no name.", "Name a file or a folder.")
    if question is not None:
        check_question(question)
    path = Path(text)
    if os.path.isdir(path) and not _is_data_set(path):
        return _folder(path, question, split)
    if question is not None:
        raise InputError(
            f"There is a question beside {named(path)}, whose rows have their own.",
            "--question is for a folder of pictures.",
        )
    if text in SOURCES:
        return _scenes(text, split)
    if os.path.isdir(path):
        from cot_engine.answering.hub import read_data_set

        rows, entries = read_data_set(path, split, allow_url)
        return Questions(path.name, _stem(path), tuple(entries), _notes(rows))
    return _file(path, split, allow_url)


def _drawn(seed: int, entry: Entry[Item]) -> bytes:
    return hashlib.sha256(f"{seed}|{entry.id or entry.place}".encode("utf-8", "replace")).digest()


# --- files ---------------------------------------------------------------------------------------


def _file(path: Path, split: str | None, allow_url: AllowUrl) -> Questions:
    end = path.suffix.lower()
    if end in PICTURES:
        raise InputError(
            f"{named(path)} is a picture.",
            "Give the folder it is in and --question, or ask cot-engine solve about it.",
        )
    if end not in FILES:
        near = difflib.get_close_matches(str(path), SOURCES, n=1) if not path.exists() else []
        hint = f"Did you mean {near[0]}?" if near else f"It must be one of {', '.join(FILES)}."
        said = f"The data {named(path)} is no file of questions, by its name, and no folder."
        raise InputError(said, hint)
    if is_benchmark(path):
        return _benchmark(path, split)
    found = of_split(path, list(rows_of(path, loose=True)), split)
    rows = [row for row in found if isinstance(row, QuestionRow)]
    entries = entries_of(path, found, allow_url, apart=False)
    return Questions(path.name, _stem(path), tuple(entries), _notes(rows))


def of_split(
    path: Path, rows: list[QuestionRow | Entry], split: str | None
) -> list[QuestionRow | Entry]:
    """Those of a split, and those that cannot be read. Raises UnknownNameError."""
    if split is None:
        return rows
    known = {row.split for row in rows if isinstance(row, QuestionRow) and row.split}
    if split not in known:
        if not known:
            raise ConfigError(
                f"split is {shown(split)}, but no question of {named(path)} has one.",
                "Leave it out: all are taken.",
            )
        raise UnknownNameError(f"split in {named(path)} called", split, known)
    return [row for row in rows if not isinstance(row, QuestionRow) or row.split == split]


def _notes(rows: Sequence[QuestionRow]) -> tuple[str, ...]:
    """What a user should know before hours are spent: questions asked without what was meant."""
    notes = []
    if blind := sum(not row.pictures for row in rows):
        notes.append(f"{blind:,} of {len(rows):,} questions have no image.")
    if open_ := sum(not row.answers for row in rows):
        if open_ < len(rows):
            notes.append(f"{open_:,} of {len(rows):,} questions have no standard answer.")
        else:
            notes.append("No question has a standard answer: nothing is graded.")
    for name in dict.fromkeys(name for row in rows for name in row.unread):
        if near := difflib.get_close_matches(name.lower(), _KNOWN, n=1, cutoff=0.75):
            notes.append(f"{shown(name)} is not read. Is it {near[0]!r}?")
    return (*notes, *about_lists([row for row in rows if row.answers]))


def _stem(path: Path) -> str:
    return path.absolute().resolve().name.removesuffix(path.suffix) or "answers"


def _benchmark(path: Path, split: str | None) -> Questions:
    """Read by the benchmarks' own reader: a row at a time, pictures left in their cells."""
    troubles: list[Trouble] = []
    asked = read_questions(path, troubles)
    entries: list[Entry[Item]] = [
        failing(each.place, InputError(f"{named(path)}, {each}", "Correct it there."))
        for each in troubles
    ]
    faulty = {each.place for each in troubles}
    for each in asked:
        if each.place in faulty:  # its picture, which scoring does not look at
            continue
        seen: tuple[Source, ...] = (("row", each.id),) if each.pictures else ()
        row = QuestionRow(
            *(each.place, each.id, each.question, each.answers, each.options),
            type=each.of("category"),
            split=each.of("split"),
            pictures=seen,
        )
        entries.append(Entry(each.place, each.id, each.item, row))
    entries.sort(key=lambda entry: _line(entry.place))
    of_split(path, [entry.row for entry in entries if entry.row is not None], split)
    kept = [e for e in entries if split is None or e.row is None or e.row.split == split]
    rows = [entry.row for entry in kept if entry.row is not None]
    return Questions(path.name, _stem(path), tuple(kept), _notes(rows))


def _line(place: str) -> int:
    found = re.match(r"line (\d+)", place)
    return int(found[1]) if found else 0


# --- pictures and scenes -------------------------------------------------------------------------


def _folder(folder: Path, question: str | None, split: str | None) -> Questions:
    """The pictures of a folder and those below it, each asked the same. Its id is its path."""
    if question is None:
        raise InputError(
            f"{named(folder)} is a folder, and there is no question.",
            'Say what its pictures are asked: --question "What is shown?"',
        )
    if split is not None:
        raise ConfigError(f"split is {shown(split)}.", "A folder of pictures has none.")
    found = [
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in PICTURES and not path.name.startswith(".")
    ]
    if not found:
        raise InputError(
            f"The folder {named(folder)} holds no pictures.",
            f"It must have files that end in {', '.join(sorted(PICTURES))}.",
        )
    entries = []
    for number, name in enumerate(sorted(found, key=_natural), 1):
        # The row stands in the folder, at the picture: what is wrong with it is told so.
        row = QuestionRow(f"picture {number}", name, question, (), pictures=(("path", name),))
        make = partial(item_of, folder / "*", row, {})
        entries.append(Entry(row.place, name, make, row))
    return Questions(folder.name, _stem(folder), tuple(entries))


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """2.png before 10.png."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return [(False, int(p), "") if p[0] in "0123456789" else (True, 0, p) for p in parts]


def _scenes(source: str, split: str | None) -> Questions:
    data = load_data(source, split=split)
    entries = [
        Entry(f"scene {number}", item.id, partial(_same, item))
        for number, item in enumerate(data.items, 1)
    ]
    return Questions(data.name, source.replace("/", "-"), tuple(entries))


def _same(item: Item) -> Item:
    return item


def _is_data_set(folder: Path) -> bool:
    """Is it a data set of Hugging Face's, as saved or as downloaded?"""
    if any((folder / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
        return True
    patterns = ("*.parquet", "*.arrow", "data/*.parquet", "*/*.parquet")
    return any(next(folder.glob(pattern), None) is not None for pattern in patterns)
