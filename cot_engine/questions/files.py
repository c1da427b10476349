"""Data sets from files: JSONL, one question a line, and TSV as the public benchmarks are given out.

Both become `QuestionRow`s, checked as far as one row can be; what needs all of them (ids, grading)
is `data.py`'s. Every error names the file and the line.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import math
import os
import re
import string
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cot_engine.errors import InputError, cut, shown
from cot_engine.files.reading import parse_json, read_bytes
from cot_engine.questions.cells import entries

LETTERS = string.ascii_uppercase
_JSON_KEYS = "id image images question answer choices hint type category split".split()
_TSV_KEYS = ("index", "question", "answer", "image", "image_path")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
# No path to a picture looks like this: it would have a dot in it.
_BASE64 = re.compile(r"[A-Za-z0-9+/=\s]{64,}")
_CSV_LOCK = threading.Lock()
_BOM = "\ufeff"
MAX_ID = 1000
"""Characters of a question's id: it stands in every table and every message."""


@dataclass(frozen=True, slots=True)
class QuestionRow:
    """One question as a file has it. `pictures` are not read yet; a "row" is the id of another.
    `listed`: its answers stood in one text, written as a list."""

    place: str  # "line 3"
    id: str
    question: str
    answers: tuple[str, ...]
    choices: dict[str, str] = field(default_factory=dict)
    hint: str = ""
    type: str = ""
    split: str = ""
    pictures: tuple[Source, ...] = ()
    listed: bool = False


Source = tuple[Literal["path", "base64", "url", "row"], str]
"""Where a picture is: what kind of a place, and which one."""
Faulty = Callable[[str, InputError], None]
"""Told the place of a faulty row and what is wrong with it."""


def read_file(path: str | Path, faulty: Faulty | None = None) -> list[QuestionRow]:
    """The questions of a .jsonl or .tsv file. Raises InputError; with `faulty`, that is told of
    each row that cannot be read, and the others are."""
    path, found = Path(path), 0

    def tell(place: str, error: InputError) -> None:
        nonlocal found
        if faulty is None:
            raise error
        found += 1
        faulty(place, error)

    text = _decoded(path, faulty is not None)
    read = _tsv if path.suffix.lower() == ".tsv" else _jsonl
    rows = list(read(path, text, tell)) if text.strip() else []
    if not rows and not found:
        raise InputError(f"The data set {str(path)!r} holds no questions.", "Write some into it.")
    return rows


def wrong(path: Path, place: str, said: str, hint: str) -> InputError:
    """An error about one line of a file."""
    return InputError(f"{str(path)!r}, {place}: {said}", hint)


def _decoded(path: Path, lenient: bool = False) -> str:
    """The file's text. `lenient` keeps bytes that are not UTF-8 as lone surrogates, for which the
    rows that hold them are refused, and no others."""
    hint = "Name a .jsonl or .tsv file." if os.path.exists(path) else _near(path)
    data = read_bytes(path, "data set", InputError, hint or "Check its name.")
    start = data[:4096]
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or start.count(0) * 4 > len(start):
        raise InputError(
            f"{str(path)!r} is not a text file, or not in UTF-8.", "Save it as UTF-8 (not UTF-16)."
        )
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


def _jsonl(path: Path, text: str, tell: Faulty) -> Iterator[QuestionRow]:
    # Not splitlines: U+2028 ends no line. A bare carriage return cannot stand inside JSON's texts.
    for number, line in enumerate(re.split("\r\n|\n|\r", text), 1):
        if line.strip():
            try:
                yield _from_json(path, number, line.lstrip(_BOM))
            except InputError as error:
                tell(f"line {number}", error)


def _from_json(path: Path, number: int, line: str) -> QuestionRow:
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

    def text_of(key: str, value: Any) -> str:
        return _text(path, place, key, value)

    for key in ("question", "answer"):
        if found.get(key) in (None, "", [], "[]"):
            near = difflib.get_close_matches(key, [k for k in found if k not in _JSON_KEYS], n=1)
            hint = f"Is {near[0]!r} it?" if near else f"Its keys are {', '.join(found) or 'none'}."
            raise wrong(path, place, f"there is no {key}.", hint)
    answer = found["answer"]
    if listed := isinstance(answer, str) and entries(answer) is not None:
        answer = _spellings(path, place, answer)
    if "type" in found and "category" in found:
        raise wrong(path, place, "there is a type and a category.", "Keep one: they are the same.")
    optional = {key: found.get(key) for key in ("hint", "split")}
    optional["type"] = found.get("type", found.get("category"))
    return QuestionRow(
        place,
        str(number) if found.get("id") is None else _id(path, place, text_of("id", found["id"])),
        text_of("question", found["question"]),
        tuple(text_of("answer", a) for a in (answer if isinstance(answer, list) else [answer])),
        _choices(path, place, found.get("choices")),
        pictures=_json_pictures(path, place, found),
        listed=listed,
        **{k: "" if v in (None, "") else text_of(k, v) for k, v in optional.items()},
    )


def _choices(path: Path, place: str, value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if isinstance(value, list) and len(value) <= len(LETTERS):
        value = dict(zip(LETTERS, value, strict=False))
    if not isinstance(value, dict) or len(value) < 2:
        raise wrong(
            path,
            place,
            f"choices is {shown(value)}.",
            'Give 2 to 26 texts, as a list or as {"A": "one", "B": "two"}.',
        )
    texts = {key: _text(path, place, f"choice {key}", text) for key, text in value.items()}
    choices = {key.strip().upper(): text for key, text in texts.items()}
    odd = [letter for letter in choices if len(letter) != 1 or letter not in LETTERS]
    if odd or len(choices) < len(value):
        said = f"choices has the key {odd[0]!r}." if odd else "choices has a letter twice."
        raise wrong(path, place, said, "The keys must be different letters, A to Z.")
    return choices


def _text(path: Path, place: str, key: str, value: Any) -> str:
    """A text, or a number as text; not empty, and fit to be written as UTF-8."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and math.isfinite(value):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        hint = 'Write "yes" or "no".' if isinstance(value, bool) else "Give a text or a number."
        raise wrong(path, place, f"{key} is {cut(json.dumps(value))}.", hint)
    if "\0" in value:
        raise wrong(path, place, f"{key} holds a NUL character.", "Take it out.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise wrong(
            path, place, f"{key} holds half a character (a lone surrogate).", "Write it whole."
        ) from None
    return value


def _id(path: Path, place: str, text: str) -> str:
    text = text.strip()
    if len(text) > MAX_ID:
        said = f"its id has {len(text):,} characters; the limit is {MAX_ID:,}: {cut(text)}."
        raise wrong(path, place, said, "Give a shorter one.")
    return text


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
        pictures.append((_kind(one, path.parent), one))
    return tuple(pictures)


def _kind(text: str, folder: Path) -> Literal["path", "base64", "url"]:
    if text.startswith("data:"):
        return "base64"
    if _URL.match(text):
        return "url"
    if len(text) > 4096 or _BASE64.fullmatch(text):
        return "path" if os.path.exists(folder / text) else "base64"
    return "path"


# --- TSV -----------------------------------------------------------------------------------------


def _tsv(path: Path, text: str, tell: Faulty) -> Iterator[QuestionRow]:
    """Columns index, question, answer, image or image_path; hint, A, B, ..., category, split."""
    lines = _lines(path, text, tell)
    header = [name.strip() for name in next(lines, ("", []))[1]]
    missing = [key for key in _TSV_KEYS[:3] if key not in header]
    if "image" not in header and "image_path" not in header:
        missing.append("image")
    named = [name for name in header if name]  # programs write an index or a last tab without one
    if missing or len(set(named)) < len(named):
        twice = next((name for name in named if named.count(name) > 1), "")
        absent = f"there is no column {' and none '.join(missing)}"
        said = absent if missing else f"the column {cut(twice)} is there twice"
        raise wrong(
            path,
            "line 1",
            f"{said}; the columns are {cut(', '.join(named))}.",
            _meant(named, missing),
        )
    for place, cells in lines:
        try:
            if len(cells) != len(header):
                said = f"there are {len(cells)} fields, but {len(header)} columns"
                without = header[len(cells) :]
                said += f": none for {cut(', '.join(without))}." if without else "."
                hint = "Separate them by tabs; quote fields that hold tabs."
                raise wrong(path, place, said, hint)
            if [cell.strip() for cell in cells] == header:
                raise wrong(path, place, "this is the line of columns again.", "Take it out.")
            yield _from_cells(path, place, dict(zip(header, cells, strict=True)))
        except InputError as error:
            tell(place, error)


def _meant(header: list[str], missing: list[str]) -> str:
    """What to do about columns that are not there."""
    needed = "A TSV needs the columns index, question, answer, and image (base64) or image_path"
    separators = [
        name for mark, name in ((",", "commas"), (";", "semicolons")) if mark in header[0]
    ]
    if len(header) == 1 and separators:
        return f"{needed}, separated by tabs: these are {separators[0]}."
    for key in missing:
        near = difflib.get_close_matches(key, [name.lower() for name in header], n=1)
        if near:
            meant = next(name for name in header if name.lower() == near[0])
            return f"Is {shown(meant)} the column {key}? {needed}."
    return f"{needed}."


def _lines(path: Path, text: str, tell: Faulty) -> Iterator[tuple[str, list[str]]]:
    """("line 3", its fields): a quoted field may hold tabs and line ends."""
    # The limit is the interpreter's: a picture is longer than the usual 131,072 characters.
    with _CSV_LOCK:
        before = csv.field_size_limit(2**31 - 1)
        try:
            reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t", strict=True)
            start, found = 1, []
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    found.append((f"line {start}", cells))
                start = reader.line_num + 1
        except csv.Error as error:
            hint = 'A field with quotes must be quoted itself, each " in it doubled'
            hint += "; nothing after this line is read."
            tell(f"line {start}", wrong(path, f"line {start}", f"this is not TSV: {error}.", hint))
        finally:
            csv.field_size_limit(before)
    return iter(found)


def _from_cells(path: Path, place: str, cells: dict[str, str]) -> QuestionRow:
    for key, cell in cells.items():
        if "\0" in cell:
            raise wrong(path, place, f"{cut(key)} holds a NUL character.", "Take it out.")
    for key in _TSV_KEYS[:3]:
        if cells[key].strip() in ("", "[]" if key == "answer" else ""):
            hint = "Test splits are often given out without answers: use another."
            hint = hint if key == "answer" else "Fill it in."
            raise wrong(path, place, f"there is no {key}.", hint)
    choices = {c: cells[c] for c in LETTERS if cells.get(c, "").strip()}
    if len(choices) == 1:
        raise wrong(path, place, "there is only one option.", "Give two or more, or none.")
    pictures: tuple[Source, ...] = ()
    if image := cells.get("image", "").strip():
        # A picture takes more than 64 characters; shorter, it names the row that holds it.
        pictures = tuple(("base64" if len(x) > 64 else "row", x) for x in _listed(image))
    elif named := cells.get("image_path", "").strip():
        pictures = tuple(("url" if _URL.match(x) else "path", x) for x in _listed(named))
    answer = cells["answer"].strip()
    listed = entries(answer) is not None
    answers = _spellings(path, place, answer) if listed else [answer]
    return QuestionRow(
        place,
        _id(path, place, cells["index"]),
        cells["question"],
        tuple(_text(path, place, "answer", text) for text in answers),
        choices,
        cells.get("hint", "").strip(),
        cells.get("category", ""),
        cells.get("split", ""),
        pictures,
        listed,
    )


def _spellings(path: Path, place: str, cell: str) -> list[str]:
    """The answers of a cell that lists them, each once: benchmarks repeat what several people
    answered. Raises InputError if all are empty."""
    found = list(dict.fromkeys(text.strip() for text in entries(cell) or [] if text.strip()))
    if not found:
        raise wrong(path, place, f"there is no answer in {cut(cell)}.", "Fill it in.")
    return found


def _listed(cell: str) -> list[str]:
    """A cell that holds several pictures writes them as a list of texts."""
    return [text for text in entries(cell) or [] if text] or [cell]
