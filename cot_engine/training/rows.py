"""Files of rows, one JSON object a line (`row.py` has the format of one), read and written.

Reading streams, and a line that is no row is a `BadRow` among the others: it never ends a file.
Reading and writing give back an object equal to the one read.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from typing import IO

from cot_engine.errors import InputError
from cot_engine.files.reading import DECODER, check_depth, opened, parse_json
from cot_engine.files.writing import writing
from cot_engine.training.row import SHOWN, BadRow, TrainingRow, beginning, row_json, row_of

MAX_LINE = 8 * 2**20
"""Bytes that a row may have; LLaVA-CoT-100k's longest have some 20,000. More is no row."""

_CHUNK = 2**20


def read_rows(path: str | os.PathLike[str]) -> Iterator[TrainingRow | BadRow]:
    """The rows of a file: JSONL, or a JSON array as some LLaVA files are; UTF-8, with or without
    a BOM. Memory is bounded by one row. Blank lines are skipped.

    In an array, nothing can be read after an element that is not JSON: its BadRow is the last.
    Raises InputError, at the first row asked for, if there is no such file or it is not text.
    """
    return (row for _, row in numbered_rows(path))


def numbered_rows(path: str | os.PathLike[str]) -> Iterator[tuple[int, TrainingRow | BadRow]]:
    """As `read_rows`, each with the number of the line that it begins on."""
    with _opened(Path(path)) as file:
        try:
            start = file.peek(4096)[:4096]
            if b"\0" in start:
                raise InputError(
                    f"{str(path)!r} is not a text file, or not in UTF-8.",
                    "Give JSONL in UTF-8, one row a line.",
                )
            if start.startswith(b"\xef\xbb\xbf"):
                file.read(3)
                start = start[3:]
            yield from _array(file) if start.lstrip()[:1] == b"[" else _lines(file)
        except OSError as error:
            raise InputError(
                f"{str(path)!r} cannot be read on: {error.strerror or error}.",
                "Check the disk, or copy the file again.",
            ) from None


def write_rows(path: str | os.PathLike[str], rows: Iterable[TrainingRow]) -> int:
    """Write the rows, one a line, and return how many. The file is there when all are written, or
    stays as it was. Raises InputError if it cannot be written."""
    number = 0
    with writing(path, "", InputError) as put:
        for row in rows:
            put(row_json(row) + "\n")
            number += 1
    return number


# --- lines ---------------------------------------------------------------------------------------


def _opened(path: Path) -> BufferedReader:
    inside: list[str] = []
    with suppress(OSError, ValueError):  # no folder, or none that may be looked into
        inside = sorted(p.name for p in path.iterdir() if p.suffix in (".jsonl", ".json"))
    hint = f"Name a file in it, such as {inside[0]!r}." if inside else "Name a .jsonl file."
    return opened(path, "data", InputError, hint)


def _lines(file: IO[bytes]) -> Iterator[tuple[int, TrainingRow | BadRow]]:
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            begin = beginning(line[: 4 * SHOWN].decode("utf-8", "replace"))
            while line and not line.endswith(b"\n"):  # the rest of it
                line = file.readline(_CHUNK)
            said = f"the line has more than {MAX_LINE:,} bytes."
            yield number, BadRow(number, said, "Write one row a line.", begin)
            continue
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            said = f"the byte 0x{line[error.start]:02x} is not UTF-8."
            begin = beginning(line.decode("utf-8", "replace"))
            yield number, BadRow(number, said, "Save the file as UTF-8.", begin)
            continue
        if text.strip():
            yield number, _parsed(number, text)


def _array(file: IO[bytes]) -> Iterator[tuple[int, TrainingRow | BadRow]]:
    """The elements of a JSON array, of which no more than one and a chunk is held."""
    # Bytes that are not UTF-8 become lone surrogates, which `_row` refuses where they stand.
    stream = io.TextIOWrapper(file, "utf-8", errors="surrogateescape")
    buffer, at, line, first = stream.read(_CHUNK), 0, 1, True

    def more() -> bool:
        nonlocal buffer, at
        chunk = stream.read(_CHUNK)
        buffer, at = buffer[at:] + chunk, 0
        return bool(chunk)

    def blank() -> str:
        """Skips what is blank; the character behind it, "" at the end of the file."""
        nonlocal at, line
        while True:
            found = _BLANK.match(buffer, at)
            assert found is not None  # where there is no blank it is empty
            end = found.end()
            line += buffer.count("\n", at, end)
            at = end
            if at < len(buffer):
                return buffer[at]
            if not more():
                return ""

    def stop(said: str) -> tuple[int, BadRow]:
        hint = "Mend it there: nothing after it can be read. Or write one object a line."
        return line, BadRow(line, said, hint, beginning(buffer[at : at + SHOWN]))

    blank()
    at += 1  # the bracket that opens it
    while (char := blank()) != "]":
        if not first:
            if char != ",":
                yield stop("there is no comma after an element." if char else _UNCLOSED)
                return
            at += 1
            char = blank()
        first = False
        if not char:
            yield stop(_UNCLOSED)
            return
        while True:
            try:
                found, end = DECODER.raw_decode(buffer, at)
                check_depth(found)
                if end < len(buffer) or not more():
                    break
            except json.JSONDecodeError as error:
                if len(buffer) - at > MAX_LINE:
                    yield stop(f"an element is not JSON, or has more than {MAX_LINE:,} bytes.")
                    return
                if not more():
                    yield stop(f"this is not JSON: {error.msg}.")
                    return
            except (ValueError, RecursionError) as error:
                yield stop(f"this is not JSON: {error}.")
                return
        yield line, row_of(line, found, buffer[at:end])
        line += buffer.count("\n", at, end)
        at = end
    at += 1
    if blank():
        yield stop("there is more after the array's end.")


_UNCLOSED = "the array is not closed: the file was cut off."
_BLANK = re.compile(r"[ \t\n\r]*")


def _parsed(number: int, text: str) -> TrainingRow | BadRow:
    hint = "Each line must be one JSON object."
    try:
        found = parse_json(text.rstrip())  # else a line cut off is wrong in the next one
    except json.JSONDecodeError as error:
        said = f"this is not JSON: {error.msg}, at character {error.colno}."
        return BadRow(number, said, hint, beginning(text))
    except ValueError as error:  # a number too long, too deep a nesting
        return BadRow(number, f"this is not JSON: {error}.", hint, beginning(text))
    return row_of(number, found, text)
