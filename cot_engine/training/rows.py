"""The row format that models are trained on: LLaVA-CoT-100k's, one JSON object a line.

    {"id": "7", "image": "a/7.png", "conversations": [
        {"from": "human", "value": "<image>\\nHow many?"},
        {"from": "gpt", "value": "<SUMMARY>...</SUMMARY>..."}]}

Reading streams, and a line that is no row is a `BadRow` among the others: it never ends a file.
What a `Row` has no field for is kept in `extra`, so that reading and writing give back an object
equal to the one read.
"""

from __future__ import annotations

import difflib
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from cot_engine.errors import InputError
from cot_engine.reading import DECODER, check_depth, opened, parse_json

MARKER = "<image>"
"""Where the picture stands in a human turn."""
MAX_LINE = 8 * 2**20
"""Bytes that a row may have; LLaVA-CoT-100k's longest have some 20,000. More is no row."""

_CHUNK = 2**20
_SHOWN = 200  # characters of a bad line that are kept


@dataclass(frozen=True, slots=True)
class Row:
    """One question with the response to be learnt.

    `image` is a path relative to the image folder, as the file has it, or None. `question` is the
    first human turn without its image marker, `response` the first gpt turn.

    `extra` holds every other key of the line, as read. Under "id", "image" and "conversations" it
    holds what was read there only if the fields do not say it all: an id that is a number, an
    image that is null, a conversation of more turns, of more keys, or with its marker elsewhere
    (all of it, as read: the fields count where they differ).
    """

    id: str
    image: str | None
    question: str
    response: str
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BadRow:
    """A line that is no row: `line` (from 1), what was `said` to be wrong, a `hint` what to do,
    and the beginning of its `text`."""

    line: int
    said: str
    hint: str
    text: str = ""


def read_rows(path: str | os.PathLike[str]) -> Iterator[Row | BadRow]:
    """The rows of a file: JSONL, or a JSON array as some LLaVA files are; UTF-8, with or without
    a BOM. Memory is bounded by one row. Blank lines are skipped.

    In an array, nothing can be read after an element that is not JSON: its BadRow is the last.
    Raises InputError, at the first row asked for, if there is no such file or it is not text.
    """
    return (row for _, row in numbered_rows(path))


def numbered_rows(path: str | os.PathLike[str]) -> Iterator[tuple[int, Row | BadRow]]:
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


def row_json(row: Row) -> str:
    """The row as one line of LLaVA-CoT-100k, without its line end."""
    found: dict[str, Any] = {"id": row.id}
    if isinstance(row.extra.get("id"), int) and str(row.extra["id"]) == row.id:
        found["id"] = row.extra["id"]
    if row.image is not None or "image" in row.extra:
        found["image"] = row.image
    found["conversations"] = _conversations(row)
    found |= {key: value for key, value in row.extra.items() if key not in found and key != "image"}
    text = json.dumps(found, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half a character somewhere in `extra`: it can only be escaped
        return json.dumps(found)
    return text


def write_rows(path: str | os.PathLike[str], rows: Iterable[Row]) -> int:
    """Write the rows, one a line, and return how many. The file is there when all are written, or
    stays as it was. Raises InputError if it cannot be written."""
    number = 0
    with writing(path) as put:
        for row in rows:
            put(row_json(row))
            number += 1
    return number


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[Callable[[str], None]]:
    """`put(line)` writes into a file beside `path` that takes its place when the block ends, and
    is removed if it raises. Raises InputError if the file cannot be written."""
    target = Path(os.path.realpath(path))  # a link stays one
    beside = target.with_name(f".{target.name}.{os.getpid()}.part")

    def failed(error: OSError) -> InputError:
        return InputError(
            f"{str(path)!r} cannot be written: {error.strerror or error}.",
            "Free some space, or choose another place.",
        )

    try:
        if target.is_dir():
            raise InputError(f"{str(path)!r} is a folder.", "Name a file to write.")
        target.parent.mkdir(parents=True, exist_ok=True)
        file = beside.open("w", encoding="utf-8", newline="\n")
    except OSError as error:
        raise failed(error) from None

    def put(line: str) -> None:
        try:
            file.write(line + "\n")
        except OSError as error:
            raise failed(error) from None

    try:
        yield put
        try:
            file.flush()
            os.fsync(file.fileno())
            file.close()
            os.replace(beside, target)
        except OSError as error:
            raise failed(error) from None
    finally:
        with suppress(OSError):  # closing writes what is left, where the disk may be full
            file.close()
        beside.unlink(missing_ok=True)


# --- lines ---------------------------------------------------------------------------------------


def _opened(path: Path) -> IO[bytes]:
    inside: list[str] = []
    with suppress(OSError, ValueError):  # no folder, or none that may be looked into
        inside = sorted(p.name for p in path.iterdir() if p.suffix in (".jsonl", ".json"))
    hint = f"Name a file in it, such as {inside[0]!r}." if inside else "Name a .jsonl file."
    return opened(path, "data", InputError, hint)


def _lines(file: IO[bytes]) -> Iterator[tuple[int, Row | BadRow]]:
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            begin = line[: 4 * _SHOWN].decode("utf-8", "replace")
            while line and not line.endswith(b"\n"):  # the rest of it
                line = file.readline(_CHUNK)
            said = f"the line has more than {MAX_LINE:,} bytes."
            yield number, BadRow(number, said, "Write one row a line.", begin[:_SHOWN])
            continue
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            said = f"the byte 0x{line[error.start]:02x} is not UTF-8."
            shown = line.decode("utf-8", "replace").strip()[:_SHOWN]
            yield number, BadRow(number, said, "Save the file as UTF-8.", shown)
            continue
        if text.strip():
            yield number, _parsed(number, text)


def _array(file: IO[bytes]) -> Iterator[tuple[int, Row | BadRow]]:
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
            end = _BLANK.match(buffer, at).end()
            line += buffer.count("\n", at, end)
            at = end
            if at < len(buffer):
                return buffer[at]
            if not more():
                return ""

    def stop(said: str) -> tuple[int, BadRow]:
        hint = "Mend it there: nothing after it can be read. Or write one object a line."
        return line, BadRow(line, said, hint, _shown(buffer[at : at + _SHOWN]))

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
        yield line, _row(line, found, buffer[at:end])
        line += buffer.count("\n", at, end)
        at = end
    at += 1
    if blank():
        yield stop("there is more after the array's end.")


_UNCLOSED = "the array is not closed: the file was cut off."
_BLANK = re.compile(r"[ \t\n\r]*")


def _parsed(number: int, text: str) -> Row | BadRow:
    hint = "Each line must be one JSON object."
    try:
        found = parse_json(text.rstrip())  # else a line cut off is wrong in the next one
    except json.JSONDecodeError as error:
        said = f"this is not JSON: {error.msg}, at character {error.colno}."
        return BadRow(number, said, hint, _shown(text))
    except ValueError as error:  # a number too long, too deep a nesting
        return BadRow(number, f"this is not JSON: {error}.", hint, _shown(text))
    return _row(number, found, text)


def _shown(text: str) -> str:
    return text.strip()[:_SHOWN].encode("utf-8", "replace").decode()


# --- one row -------------------------------------------------------------------------------------


class _Wrong(Exception):
    """What is wrong with a row, and a hint."""


def _row(number: int, found: Any, text: str) -> Row | BadRow:
    try:
        text.encode()
    except UnicodeEncodeError:
        return BadRow(number, "it is not UTF-8.", "Save the file as UTF-8.", _shown(text))
    try:
        if not isinstance(found, dict):
            raise _Wrong(f"this is {_kind(found)}.", "Each line must be one JSON object.")
        return _made(found)
    except _Wrong as wrong:
        return BadRow(number, *wrong.args, _shown(text))


def _made(found: dict[str, Any]) -> Row:
    id, image = _id(found), found.get("image")
    if isinstance(image, list):
        raise _Wrong(f"image is a list of {len(image)}.", "Give one path: a row has one picture.")
    if image is not None and (not isinstance(image, str) or not image.strip()):
        raise _Wrong(f"image is {_kind(image)}.", "Give a path, or leave the key out.")
    turns = _turns(found)
    question = _split(_first(turns, "human")["value"], image)[1]
    row = Row(id, image, question, _first(turns, "gpt")["value"])
    for key, value in (("question", question), ("response", row.response), ("id", id)):
        _whole(key, value)
    if image is not None:
        _whole("image", image)
    extra = {key: value for key, value in found.items() if key not in _OWN}
    if not isinstance(found["id"], str):
        extra["id"] = found["id"]
    if image is None and "image" in found:
        extra["image"] = None
    if turns != _conversations(row):
        extra["conversations"] = turns
    row.extra.update(extra)
    return row


_OWN = ("id", "image", "conversations")


def _id(found: dict[str, Any]) -> str:
    if "id" not in found:
        keys = ", ".join(map(repr, list(found)[:5])) or "none"
        raise _Wrong("there is no id.", f"Give every row one of its own; its keys are {keys}.")
    id = found["id"]
    if isinstance(id, bool) or not isinstance(id, (str, int)) or not str(id).strip():
        raise _Wrong(f"id is {_kind(id)}.", "Give a text or a whole number.")
    return str(id)


def _turns(found: dict[str, Any]) -> list[dict[str, Any]]:
    turns = found.get("conversations")
    form = '{"from": "human" or "gpt", "value": "..."}'
    if turns is None:
        near = difflib.get_close_matches("conversations", found, n=1) or [
            key for key in ("messages", "dialog") if key in found
        ]
        hint = f"Is {near[0]!r} it? " if near else ""
        raise _Wrong("there are no conversations.", f"{hint}Give a list of {form}.")
    if not isinstance(turns, list):
        raise _Wrong(f"conversations is {_kind(turns)}.", f"Give a list of {form}.")
    for place, turn in enumerate(turns, 1):
        if not isinstance(turn, dict) or not all(
            isinstance(turn.get(key), str) for key in ("from", "value")
        ):
            raise _Wrong(f"turn {place} lacks a from or a value that is text.", f"Write {form}.")
    return turns


def _first(turns: list[dict[str, Any]], who: str) -> dict[str, Any]:
    """The first human turn, or the first gpt turn after it."""
    names = [turn["from"] for turn in turns]
    start = names.index("human") if "human" in names else 0
    if who not in names[start:]:
        said = f"there is no turn from {who!r}" + (" after the question." if start else ".")
        here = ", ".join(map(repr, sorted(set(names))[:5])) or "nobody"
        raise _Wrong(said, f"Its turns are from {here}.")
    return turns[names.index(who, start)]


def _split(value: str, image: str | None) -> tuple[str, str, str]:
    """A human turn as (marker before, question, marker behind); no markers without a picture."""
    if image is not None:
        for before in (MARKER + "\n", MARKER):
            if value.startswith(before):
                return before, value[len(before) :], ""
        for after in ("\n" + MARKER, MARKER):
            if value.endswith(after):
                return "", value[: -len(after)], after
    return "", value, ""


def _conversations(row: Row) -> list[dict[str, Any]]:
    turns = row.extra.get("conversations")
    if turns is None:
        marker = MARKER + "\n" if row.image is not None else ""
        return [
            {"from": "human", "value": marker + row.question},
            {"from": "gpt", "value": row.response},
        ]
    turns = [dict(turn) for turn in turns]
    human, gpt = _first(turns, "human"), _first(turns, "gpt")
    before, _, after = _split(human["value"], row.image)
    human["value"], gpt["value"] = before + row.question + after, row.response
    return turns


def _whole(key: str, value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _Wrong(
            f"its {key} holds half a character (a lone surrogate).", "Write it whole."
        ) from None


def _kind(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, str):
        return "a text" if value.strip() else "an empty text"
    return {dict: "an object", list: "a list"}.get(type(value), "a number")
