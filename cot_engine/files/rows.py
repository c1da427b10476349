"""Rows of tables that others wrote, one at a time: TSV, CSV, JSON, JSON lines, XLSX.

A file of 3 GB is read in the memory that its largest row takes. Each row of a TSV, CSV or JSONL
file says at which byte it begins, so that it can be read again (`row_at`) for what was too large to
be kept: a benchmark's pictures stand in its cells.

What is wrong with one row is told, with its place and column, and the others are read.
"""

from __future__ import annotations

import csv
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from io import BufferedReader
from itertools import chain
from pathlib import Path
from typing import Any

from cot_engine.errors import CotEngineError, cut, install, shown
from cot_engine.files.reading import Path_, check_utf8, named, opened, parse_json, read_json

KINDS = (".tsv", ".csv", ".jsonl", ".ndjson", ".json", ".xlsx")
MAX_CELL = 2**28
"""Characters of one cell. A picture of 100 megapixels takes about half as many; what is longer is a
quote that nobody closed."""
_START = 4096  # bytes
_BUFFER = 2**20  # bytes: lines with pictures are long
_DELIMITERS = {".tsv": "\t", ".csv": ","}
_LOCK = threading.Lock()

Tell = Callable[[str, str, str], None]
"""Told the place of a faulty row, the column ("" for all of it), and what is wrong there."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row: `place` as errors name it, the values by column (texts, but for JSON, which has
    whatever it holds), and the byte at which it begins, None where it cannot be read alone."""

    place: str
    cells: dict[str, Any]
    at: int | None = None


def near_columns(
    names: Iterable[str], cells: Iterable[str], read: Collection[str], alike: float
) -> list[str]:
    """Which columns that nobody reads (`read` are) are called nearly as those `names`, in
    sentences; `alike` of 0 to 1 is how nearly."""
    others = [name for name in cells if name not in read]
    near = ((name, get_close_matches(name, others, n=1, cutoff=alike)) for name in names)
    return [f"Is {shown(found[0])} the column {name}?" for name, found in near if found]


def read_rows(path: Path_, what: str, kind: type[CotEngineError], tell: Tell) -> Iterator[Row]:
    """The rows of a file, by the end of its name. `what` is "predictions" or the like. Raises
    `kind` for a file that cannot be read, or whose columns have no names of their own."""
    end = Path(path).suffix.lower()
    if end not in KINDS:
        said = f"The {what} {named(path)} must be one of {', '.join(KINDS)}, by its name."
        raise kind(said, "Rename it, or write it as one of these.")
    if end in _DELIMITERS:
        with opened(path, what, kind) as file:
            file = BufferedReader(file.raw, _BUFFER)  # nothing of it has been read
            check_utf8(path, file.peek(_START)[:_START], kind)
            yield from _separated(file, path, _DELIMITERS[end], kind, tell)
    elif end == ".json":
        yield from _json(read_json(path, what, kind), path, kind, tell)
    elif end == ".xlsx":
        yield from _sheet(path, what, kind, tell)
    else:
        with opened(path, what, kind) as file:
            check_utf8(path, file.peek(_START)[:_START], kind)
            yield from _lines_of_json(file, tell)


def records(lines: Iterable[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Each record with the number of its first line, blank ones too; a quoted field may hold tabs
    and line ends. Raises csv.Error for what is no such table, of which nothing more is read; its
    second argument is the first line of that record."""
    lines, start = iter(lines), 1
    for line in lines:
        bare = line.rstrip("\r\n")
        if '"' not in bare and "\r" not in bare:  # most are so, and csv takes ten times as long
            yield start, bare.split(delimiter)
            start += 1
            continue
        reader = csv.reader(chain((line,), lines), delimiter=delimiter, strict=True)
        with _LOCK:  # the limit is the whole interpreter's
            before = csv.field_size_limit(MAX_CELL)
            try:
                fields = next(reader)
            except csv.Error as error:
                raise csv.Error(str(error), start) from None
            finally:
                csv.field_size_limit(before)
        yield start, fields
        start += reader.line_num


def row_at(path: Path_, at: int, what: str, kind: type[CotEngineError]) -> Any:
    """The fields of the record of a TSV or CSV file that begins at a byte, or what a line of JSON
    holds. Raises `kind` if there is none any more."""
    end = Path(path).suffix.lower()
    with opened(path, what, kind) as file:
        file.seek(at)
        try:
            if end in _DELIMITERS:
                return next(records(_Lines(file), _DELIMITERS[end]))[1]
            return parse_json(file.readline().decode("utf-8"))
        except (csv.Error, StopIteration, ValueError):
            said = f"The {what} {named(path)} has changed since it was read."
            raise kind(said, "Read it again.") from None


# --- separated by tabs or commas ----------------------------------------------------------------


class _Lines:
    """A file's lines as texts, and how many bytes of it were read. What is not UTF-8 is kept as
    lone surrogates, by which its row is known."""

    def __init__(self, file: BufferedReader) -> None:
        self.file, self.at, self.first = file, file.tell(), True

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self.file.readline()
        if not line:
            raise StopIteration
        self.at += len(line)
        first, self.first = self.first, False
        text = line.decode("utf-8", "surrogateescape")
        return text.lstrip("\ufeff") if first else text


def _separated(
    file: BufferedReader, path: Path_, delimiter: str, kind: type[CotEngineError], tell: Tell
) -> Iterator[Row]:
    lines = _Lines(file)
    read, at, header = records(lines, delimiter), 0, None
    while True:
        try:
            start, fields = next(read)
        except StopIteration:
            return
        except csv.Error as error:
            said = f"this is no table: {error.args[0]}; nothing after this line is read"
            tell(f"line {error.args[1]}", "", said)
            return
        begin, at = at, lines.at
        if not any(field.strip() for field in fields):
            continue
        if header is None:
            header = _header(path, fields, delimiter, kind)
        elif len(fields) != len(header):
            tell(f"line {start}", "", f"there are {len(fields)} fields for {len(header)} columns")
        else:
            cells = {name: field for name, field in zip(header, fields, strict=True) if name}
            if _is_whole(f"line {start}", cells, tell):
                yield Row(f"line {start}", cells, begin)


def _header(
    path: Path_, fields: list[str], delimiter: str, kind: type[CotEngineError]
) -> list[str]:
    header = [field.strip() for field in fields]
    names = [name for name in header if name]  # programs write an index without a name
    if twice := next((name for name in names if names.count(name) > 1), ""):
        said = f"{named(path)}, line 1: the column {shown(twice)} is there twice."
        raise kind(said, "Take one of them out.")
    if len(names) == 1 and (other := "," if delimiter == "\t" else "\t") in fields[0]:
        now, then = ("tabs", "commas") if other == "," else ("commas", "tabs")
        said = f"{named(path)}, line 1: its fields are separated by {then}, not by {now}."
        raise kind(said, f"Call it {'.csv' if other == ',' else '.tsv'}.")
    return header


def _is_whole(place: str, cells: dict[str, str], tell: Tell) -> bool:
    for name, text in cells.items():
        if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
            byte = next(ord(char) for char in text if "\ud800" <= char <= "\udfff") & 0xFF
            tell(place, name, f"the byte 0x{byte:02x} is not UTF-8")
            return False
    return True


# --- JSON and sheets ----------------------------------------------------------------------------


def _lines_of_json(file: BufferedReader, tell: Tell) -> Iterator[Row]:
    at = 0
    for number, line in enumerate(file, 1):
        begin, at, place = at, at + len(line), f"line {number}"
        try:
            text = line.decode("utf-8").lstrip("\ufeff")
            if not text.strip():
                continue
            found = parse_json(text)
        except UnicodeDecodeError as error:
            tell(place, "", f"the byte 0x{line[error.start]:02x} is not UTF-8")
        except ValueError as error:
            tell(place, "", f"this is not JSON: {error}")
        else:
            if isinstance(found, dict):
                yield Row(place, found, begin)
            else:
                tell(place, "", f"this is a {type(found).__name__}, and no object")


def _json(found: Any, path: Path_, kind: type[CotEngineError], tell: Tell) -> Iterator[Row]:
    """A list of objects, or one of them by their names."""
    if isinstance(found, dict):
        named_ = [(f"entry {cut(key)!r}", value) for key, value in found.items()]
    elif isinstance(found, list):
        named_ = [(f"entry {number}", value) for number, value in enumerate(found, 1)]
    else:
        said = f"{named(path)} is a {type(found).__name__}."
        raise kind(said, "It must be a list of objects, or an object of them.")
    for place, value in named_:
        if isinstance(value, dict):
            yield Row(place, value)
        else:
            tell(place, "", f"this is {shown(value)}, and no object")


def _sheet(path: Path_, what: str, kind: type[CotEngineError], tell: Tell) -> Iterator[Row]:
    try:
        from openpyxl import load_workbook
    except ImportError:
        raise kind(f"Reading {named(path)} takes the package openpyxl.", install("xlsx")) from None
    with opened(path, what, kind) as file:
        try:
            book = load_workbook(file, read_only=True, data_only=True)
            sheet, header, empty = book.active, None, True
            sheet.reset_dimensions()  # as it says; some programs write that it is one cell
            beside = f"sheet {cut(sheet.title)!r}, " if len(book.sheetnames) > 1 else ""
            for number, values in enumerate(sheet.iter_rows(values_only=True), 1):
                fields = [_text(value) for value in values]
                if not any(field.strip() for field in fields):
                    continue
                if header is None:
                    header = _header(path, fields, "\t", kind)
                else:  # cells at a row's end that are empty may be left out
                    fields += [""] * (len(header) - len(fields))
                    cells = {name: field for name, field in zip(header, fields, strict=False)}
                    yield Row(f"{beside}row {number}", {k: v for k, v in cells.items() if k})
                    empty = False
            if empty and beside:
                said = f"{named(path)}, {beside}which is the one that it opens with, has no rows."
                raise kind(said, "Save it with the other one open.")
        except CotEngineError:
            raise
        except Exception as error:  # of zip, XML and openpyxl, many kinds
            said = f"The {what} {named(path)} cannot be read as a sheet: {error}."
            raise kind(said, "Save it again, or as TSV.") from None


def _text(value: Any) -> str:
    """A cell as it looks: a whole number without a point."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
