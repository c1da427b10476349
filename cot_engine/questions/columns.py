"""Questions in tables: TSV as the public benchmarks are given out, and CSV."""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from cot_engine.errors import InputError, cut, shown
from cot_engine.files.rows import records
from cot_engine.questions.cells import entries
from cot_engine.questions.row import (
    LETTERS,
    URL,
    Faulty,
    QuestionRow,
    Source,
    check_characters,
    id_of,
    spellings,
    text_of,
    wrong,
)

DELIMITERS = {".tsv": "\t", ".csv": ","}
"""By the end of a file's name."""
_KEYS = ("index", "question", "answer", "image", "image_path")
_NAMES = frozenset([*_KEYS, *LETTERS, "id", "hint", "category", "type", "split"])
_NEEDED = "A TSV needs the columns index, question, answer, and image (base64) or image_path"
_LOOSE = (
    "It needs a column question; index (or id), image (base64 or a path), image_path, answer, A, B,"
    " ..., hint, category (or type) and split are read where they are"
)
_PATH = 1024  # characters of a longer path; of base64 there are more


def table(path: Path, text: str, tell: Faulty, loose: bool = False) -> Iterator[QuestionRow]:
    """Columns index, question, answer, image or image_path; hint, A, B, ..., category, split.

    `loose`: all but question may be missing, id is index and type is category, and an image may be
    a path.
    """
    lines = _lines(path, text, tell)
    header = [name.strip() for name in next(lines, ("", []))[1]]
    missing = [key for key in (("question",) if loose else _KEYS[:3]) if key not in header]
    if not loose and "image" not in header and "image_path" not in header:
        missing.append("image")
    named = [name for name in header if name]  # programs write an index or a last tab without one
    twins = [pair for pair in (("index", "id"), ("category", "type")) if {*pair} <= {*named}]
    if missing or len(set(named)) < len(named) or (loose and twins):
        twice = next((name for name in named if named.count(name) > 1), "")
        if missing:
            said = f"there is no column {' and none '.join(missing)}"
        elif twice:
            said = f"the column {cut(twice)} is there twice"
        else:
            said = f"there are the columns {twins[0][0]} and {twins[0][1]}, which mean the same"
        said = f"{said}; the columns are {cut(', '.join(named))}."
        raise wrong(path, "line 1", said, _meant(path, named, missing, loose))
    unread = tuple(name for name in named if name not in _NAMES)
    for place, cells in lines:
        try:
            if len(cells) != len(header):
                said = f"there are {len(cells)} fields, but {len(header)} columns"
                without = header[len(cells) :]
                said += f": none for {cut(', '.join(without))}." if without else "."
                marks = "commas" if _delimiter(path) == "," else "tabs"
                hint = f"Separate them by {marks}; quote fields that hold {marks}."
                raise wrong(path, place, said, hint)
            if [cell.strip() for cell in cells] == header:
                raise wrong(path, place, "this is the line of columns again.", "Take it out.")
            found = dict(zip(header, cells, strict=True))
            yield _from_cells(path, place, found, unread, loose)
        except InputError as error:
            tell(place, error)


def _delimiter(path: Path) -> str:
    return DELIMITERS[path.suffix.lower()]


def _meant(path: Path, header: list[str], missing: list[str], loose: bool) -> str:
    """What to do about columns that are not there."""
    needed = _LOOSE if loose else _NEEDED
    marks = {",": "commas", ";": "semicolons", "\t": "tabs"}
    own = marks.pop(_delimiter(path))
    others = [name for mark, name in marks.items() if mark in header[0]]
    if len(header) == 1 and others:
        return f"{needed}, separated by {own}: these are {others[0]}."
    for key in missing:
        near = difflib.get_close_matches(key, [name.lower() for name in header], n=1)
        if near:
            meant = next(name for name in header if name.lower() == near[0])
            return f"Is {shown(meant)} the column {key}? {needed}."
    return f"{needed}."


def _lines(path: Path, text: str, tell: Faulty) -> Iterator[tuple[str, list[str]]]:
    """("line 3", its fields): a quoted field may hold tabs and line ends."""
    found: list[tuple[str, list[str]]] = []
    try:
        for start, cells in records(io.StringIO(text, newline=""), _delimiter(path)):
            if any(cell.strip() for cell in cells):
                found.append((f"line {start}", cells))
    except csv.Error as error:
        place = f"line {error.args[1]}"
        hint = 'A field with quotes must be quoted itself, each " in it doubled'
        hint += "; nothing after this line is read."
        said = f"this is not {path.suffix[1:].upper()}: {error.args[0]}."
        tell(place, wrong(path, place, said, hint))
    return iter(found)


def _from_cells(
    path: Path, place: str, cells: dict[str, str], unread: tuple[str, ...], loose: bool
) -> QuestionRow:
    for key, cell in cells.items():
        if "\0" in cell:
            raise wrong(path, place, f"{cut(key)} holds a NUL character.", "Take it out.")
        check_characters(path, place, cut(key), cell)
    for key in ("question",) if loose else _KEYS[:3]:
        if cells[key].strip() in ("", "[]" if key == "answer" else ""):
            hint = "Test splits are often given out without answers: use another."
            hint = hint if key == "answer" else "Fill it in."
            raise wrong(path, place, f"there is no {key}.", hint)
    choices = {c: cells[c] for c in LETTERS if cells.get(c, "").strip()}
    if len(choices) == 1:
        raise wrong(path, place, "there is only one option.", "Give two or more, or none.")
    pictures: tuple[Source, ...] = ()
    if image := cells.get("image", "").strip():
        pictures = tuple((_kind_of(x, loose), x) for x in _listed(image))
    elif named := cells.get("image_path", "").strip():
        pictures = tuple(("url" if URL.match(x) else "path", x) for x in _listed(named))
    answer = cells.get("answer", "").strip()
    listed = entries(answer) is not None
    answers = spellings(path, place, answer) if listed else [answer]
    if answer in ("", "[]"):  # which only a loose reader lets pass
        answers, listed = [], False
    id = next((cells[key] for key in ("index", "id") if cells.get(key, "").strip()), None)
    return QuestionRow(
        place,
        place.removeprefix("line ") if id is None else id_of(path, place, id),
        cells["question"],
        tuple(text_of(path, place, "answer", text) for text in answers),
        choices,
        cells.get("hint", "").strip(),
        cells.get("category", cells.get("type", "") if loose else ""),
        cells.get("split", ""),
        pictures,
        listed,
        unread,
    )


def _kind_of(cell: str, loose: bool) -> Literal["path", "base64", "url", "row"]:
    """What is in a cell of pictures: a picture takes more than 64 characters; shorter, it names the
    row that holds it."""
    if loose and URL.match(cell):
        return "url"
    if loose and "." in cell and len(cell) <= _PATH and not cell.startswith("data:"):
        return "path"
    return "base64" if len(cell) > 64 else "row"


def _listed(cell: str) -> list[str]:
    """A cell that holds several pictures writes them as a list of texts."""
    return [text for text in entries(cell) or [] if text] or [cell]
