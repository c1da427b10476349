"""Data sets from files: JSONL, one question a line, and tables (`columns.py`).

Both become `QuestionRow`s, checked as far as one row can be; what needs all of them (ids, grading)
is `data.py`'s. Every error names the file and the line.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cot_engine.errors import InputError, cut, shown
from cot_engine.files.reading import check_utf8, parse_json, read_bytes
from cot_engine.questions.cells import entries
from cot_engine.questions.columns import DELIMITERS, table
from cot_engine.questions.row import (
    LETTERS,
    MEANT,
    Faulty,
    QuestionRow,
    Source,
    id_of,
    kind_of_picture,
    spellings,
    text_of,
    wrong,
)

_BOM = "\ufeff"
_NOTHING: tuple[Any, ...] = (None, "", [], "[]")


def read_file(
    path: str | Path, faulty: Faulty | None = None, *, loose: bool = False
) -> list[QuestionRow]:
    """The questions of a .jsonl, .tsv or .csv file. Raises InputError; with `faulty`, that is told
    of each row that cannot be read, and the others are. `loose`: nothing is needed but a question,
    no answer, no picture and no id (which is then the number of its line)."""
    path, found = Path(path), 0

    def tell(place: str, error: InputError) -> None:
        nonlocal found
        if faulty is None:
            raise error
        found += 1
        faulty(place, error)

    text = _decoded(path, faulty is not None)
    read = table if path.suffix.lower() in DELIMITERS else _jsonl
    rows = list(read(path, text, tell, loose)) if text.strip() else []
    if not rows and not found:
        raise InputError(f"The data set {str(path)!r} holds no questions.", "Write some into it.")
    return rows


def _decoded(path: Path, lenient: bool = False) -> str:
    """The file's text. `lenient` keeps bytes that are not UTF-8 as lone surrogates, for which the
    rows that hold them are refused, and no others."""
    hint = "Name a .jsonl or .tsv file." if os.path.exists(path) else _near(path)
    data = read_bytes(path, "data set", InputError, hint or "Check its name.")
    check_utf8(path, data[:4096], InputError)
    try:
        # With or without a BOM, or with one for each of the files that were joined.
        return data.decode("utf-8", "surrogateescape" if lenient else "strict").lstrip(_BOM)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise wrong(
            path,
            f"line {line}",
            f"the byte 0x{data[error.start]:02x} is not UTF-8.",
            "Save the file as UTF-8.",
        ) from None


def _near(path: Path) -> str:
    folder = path.parent
    try:
        names = [entry.name for entry in folder.iterdir()]
    except (NotADirectoryError, FileNotFoundError):
        return f"There is no folder {str(folder)!r} either."
    except (OSError, ValueError):
        return ""
    close = difflib.get_close_matches(path.name, names, n=1)
    return f"Did you mean {str(folder / close[0])!r}?" if close else ""


# --- JSONL ---------------------------------------------------------------------------------------


def _jsonl(path: Path, text: str, tell: Faulty, loose: bool) -> Iterator[QuestionRow]:
    # Not splitlines: U+2028 ends no line. A bare carriage return cannot stand inside JSON's texts.
    for number, line in enumerate(re.split("\r\n|\n|\r", text), 1):
        if line.strip():
            try:
                yield _from_json(path, number, line.lstrip(_BOM), loose)
            except InputError as error:
                tell(f"line {number}", error)


def _from_json(path: Path, number: int, line: str, loose: bool) -> QuestionRow:
    place = f"line {number}"
    try:
        found = parse_json(line)
    except ValueError as error:
        raise wrong(
            path, place, f"this is not JSON: {error}.", "Each line must be one JSON object."
        ) from None
    if not isinstance(found, dict):
        kind = type(found).__name__
        raise wrong(path, place, f"this is a {kind}.", "Each line must be one JSON object.")
    return row_of(path, place, found, str(number), loose)


def row_of(path: Path, place: str, found: dict[str, Any], id: str, loose: bool) -> QuestionRow:
    """A question from its keys, or columns, with their values. `id` is for one that has none.
    Raises InputError."""

    def text(key: str, value: Any) -> str:
        return text_of(path, place, key, value)

    for key in ("question",) if loose else ("question", "answer"):
        if found.get(key) in _NOTHING:
            near = difflib.get_close_matches(key, [k for k in found if k not in MEANT], n=1)
            hint = f"Is {near[0]!r} it?" if near else f"Its keys are {', '.join(found) or 'none'}."
            raise wrong(path, place, f"there is no {key}.", hint)
    answer = found.get("answer")
    if loose and answer in _NOTHING:
        answer = []
    if listed := isinstance(answer, str) and entries(answer) is not None:
        answer = spellings(path, place, answer)
    if "type" in found and "category" in found:
        raise wrong(path, place, "there is a type and a category.", "Keep one: they are the same.")
    optional = {key: found.get(key) for key in ("hint", "split")}
    optional["type"] = found.get("type", found.get("category"))
    return QuestionRow(
        place,
        id if found.get("id") is None else id_of(path, place, text("id", found["id"])),
        text("question", found["question"]),
        tuple(text("answer", a) for a in (answer if isinstance(answer, list) else [answer])),
        _choices(path, place, found.get("choices")),
        pictures=_json_pictures(path, place, found),
        listed=listed,
        unread=tuple(key for key in found if key not in MEANT),
        **{k: "" if v in (None, "") else text(k, v) for k, v in optional.items()},
    )


def _choices(path: Path, place: str, value: Any) -> dict[str, str]:
    if value in (*_NOTHING, {}):  # of an open question among others with options
        return {}
    there = isinstance(value, (list, dict)) and 2 <= len(value) <= len(LETTERS)
    if not there:
        hint = 'Give 2 to 26 texts, as a list or as {"A": "one", "B": "two"}.'
        raise wrong(path, place, f"choices is {shown(value)}.", hint)
    if isinstance(value, list):
        value = dict(zip(LETTERS, value, strict=False))
    texts = {key: text_of(path, place, f"choice {key}", text) for key, text in value.items()}
    choices = {key.strip().upper(): text for key, text in texts.items()}
    odd = [letter for letter in choices if len(letter) != 1 or letter not in LETTERS]
    if odd or len(choices) < len(value):
        said = f"choices has the key {odd[0]!r}." if odd else "choices has a letter twice."
        raise wrong(path, place, said, "The keys must be different letters, A to Z.")
    return choices


def _json_pictures(path: Path, place: str, found: dict[str, Any]) -> tuple[Source, ...]:
    if found.get("image") is not None and found.get("images") is not None:
        raise wrong(path, place, "there is an image and images.", "Keep one of them.")
    value = found.get("image") if found.get("image") is not None else found.get("images")
    values = value if isinstance(value, list) else [] if value is None else [value]
    pictures = []
    for one in values:
        if not isinstance(one, str) or not one.strip():
            raise wrong(
                path, place, f"an image is {cut(json.dumps(one))}.", "Give a path or base64."
            )
        pictures.append((kind_of_picture(one, path.parent), one))
    return tuple(pictures)
