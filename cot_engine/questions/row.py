"""One question as a file has it, whatever the file's kind, and what each of its values must be.
Every error names the file and the line.
"""

from __future__ import annotations

import json
import math
import re
import string
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cot_engine.errors import InputError, cut
from cot_engine.questions.cells import entries

LETTERS = string.ascii_uppercase
MEANT = frozenset("id image images question answer choices hint type category split".split())
"""What is read of a question."""
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
MAX_ID = 1000
"""Characters of a question's id: it stands in every table and every message."""


@dataclass(frozen=True, slots=True)
class QuestionRow:
    """One question as a file has it. `pictures` are not read yet; a "row" is the id of another.
    `listed`: its answers stood in one text, written as a list. `unread`: columns that mean nothing
    here."""

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
    unread: tuple[str, ...] = ()


Source = tuple[Literal["path", "base64", "url", "row"], str]
"""Where a picture is: what kind of a place, and which one."""
Faulty = Callable[[str, InputError], None]
"""Told the place of a faulty row and what is wrong with it."""


def wrong(path: Path, place: str, said: str, hint: str) -> InputError:
    """An error about one line of a file."""
    return InputError(f"{str(path)!r}, {place}: {said}", hint)


def text_of(path: Path, place: str, key: str, value: Any) -> str:
    """A text, or a number as text; not empty, and fit to be written as UTF-8."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and math.isfinite(value):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        hint = 'Write "yes" or "no".' if isinstance(value, bool) else "Give a text or a number."
        raise wrong(path, place, f"{key} is {cut(json.dumps(value))}.", hint)
    if "\0" in value:
        raise wrong(path, place, f"{key} holds a NUL character.", "Take it out.")
    check_characters(path, place, key, value)
    return value


def check_characters(path: Path, place: str, key: str, text: str) -> None:
    """Raises InputError for a text that UTF-8 cannot say: one with bytes that were not UTF-8, which
    a lenient reader keeps as lone surrogates, or with half a character."""
    if text.isascii():
        return
    odd = next((ord(char) for char in text if "\ud800" <= char <= "\udfff"), 0)
    if 0xDC80 <= odd <= 0xDCFF:
        said = f"{key} holds the byte 0x{odd & 0xFF:02x}, which is not UTF-8."
        raise wrong(path, place, said, "Save the file as UTF-8, all of it.")
    if odd:
        said = f"{key} holds half a character (a lone surrogate)."
        raise wrong(path, place, said, "Write it whole.")


def id_of(path: Path, place: str, text: str) -> str:
    text = text.strip()
    if len(text) > MAX_ID:
        said = f"its id has {len(text):,} characters; the limit is {MAX_ID:,}: {cut(text)}."
        raise wrong(path, place, said, "Give a shorter one.")
    return text


def kind_of_picture(text: str, folder: Path) -> Literal["path", "base64", "url"]:
    """What a text that stands for a picture is. Base64 is long, and a path to a picture has a dot
    in it, which base64 has not."""
    if text.startswith("data:"):
        return "base64"
    if URL.match(text):
        return "url"
    if len(text) > 4096 or (len(text) >= 64 and "." not in text):
        return "path" if _exists(folder / text) else "base64"
    return "path"


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that no file can have
        return False


def spellings(path: Path, place: str, cell: str) -> list[str]:
    """The answers of a cell that lists them, each once: benchmarks repeat what several people
    answered. Raises InputError if all are empty."""
    found = list(dict.fromkeys(text.strip() for text in entries(cell) or [] if text.strip()))
    if not found:
        raise wrong(path, place, f"there is no answer in {cut(cell)}.", "Fill it in.")
    return found
