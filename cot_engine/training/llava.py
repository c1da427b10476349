"""LLaVA's teacher (arXiv 2304.08485, section 3): a text-only model that is told of a picture by its
captions and bounding boxes, and writes a conversation, a detailed description or a question that
takes reasoning, as if it saw the picture.

    {"id": "7", "image": "7.jpg", "captions": ["A dog by a car."],
     "boxes": [{"label": "dog", "box": [0.1, 0.52, 0.34, 0.9]}]}

A box is [left, top, right, bottom], each as a fraction, 0 to 1, of the picture's width or height.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeGuard

from cot_engine.errors import ImageError, InputError, UnknownNameError, cut
from cot_engine.files.reading import parse_json, read_bytes
from cot_engine.questions.entries import Entry, failing, faulty
from cot_engine.training.rows import TrainingRow
from cot_engine.training.staged import relative
from cot_engine.training.tasks import Fault, RowDraft
from cot_engine.training.teacher import Message

Kind = Literal["conversation", "detail", "reasoning"]
KINDS: tuple[Kind, ...] = ("conversation", "detail", "reasoning")

_SEEN = """\
Below, a picture is described to you: captions, each by another person, then what is where in it, \
as "thing: [left, top, right, bottom]" in fractions of its width and height. Take it that you see \
the picture itself. Never mention captions, boxes, coordinates or a description, and state nothing \
that does not follow from them.

"""
_TURNS = """\
Write every question on a line that begins with "Q:" and every answer on a line that begins with \
"A:", and nothing else."""
_ASKED: dict[Kind, str] = {
    "conversation": "Write a conversation between somebody who asks about this picture and an"
    " assistant who sees it. Ask of different things: what there is, how many, of what kind and"
    " colour, what is being done, where things are and how they stand to each other. Then one or"
    " two questions that lead on from what is seen. Ask only what has a definite answer here, or"
    f" definitely none. Four to six questions. {_TURNS}",
    "detail": "Describe the picture in detail: everything that matters in it, how many there are,"
    " where they are, what they do, in flowing sentences. Write the description and nothing else.",
    "reasoning": "Think of one question about this picture that cannot be answered by naming what"
    " is in it: why something is so, what will or should happen, what follows from how things are."
    " Do not let the question give away what is seen. Answer it step by step from what is seen."
    f" One question, one answer. {_TURNS}",
}
_DETAIL = (
    "Describe this picture in detail.",
    "What does this picture show? Leave nothing out that matters.",
    "Please give a thorough description of what can be seen here.",
    "Walk me through everything in this picture.",
    "Can you tell me in detail what is in this picture?",
    "Write down all that you notice in this picture.",
)
_GIVES_AWAY = re.compile(
    r"\bcaptions?\b|\bbounding box|\bcoordinates?\b|\[\s*0?\.\d+\s*,|\b(?:the|this|your|provided)"
    r" descriptions?\b|\bas described\b",
    re.IGNORECASE,
)
# "Q: ", "A:", and as models write them too: "**Q:** ", "Q1: ", "- A: "
_TURN = re.compile(r"^[ \t*#>_-]*([QA]) ?\d*[*_]*:[*_]*[ \t]*", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class DescribedTask:
    """One picture, told in words, and the kind of text to write about it."""

    row: str
    kind: Kind
    image: str
    captions: tuple[str, ...]
    boxes: tuple[tuple[str, tuple[float, float, float, float]], ...]

    @property
    def id(self) -> str:
        return f"{self.row}-{self.kind}"

    @property
    def digest(self) -> str:
        parts = [self.row, self.kind, self.captions, self.boxes]
        return hashlib.sha256(json.dumps(["described-1", *parts]).encode()).hexdigest()

    @property
    def question(self) -> str:
        """Of a detailed description: which of the ways to ask for one, drawn by the row."""
        return _DETAIL[int(self.digest[:8], 16) % len(_DETAIL)] if self.kind == "detail" else ""

    @property
    def answer(self) -> str:
        return ""

    def messages(self) -> list[Message]:
        boxes = (f"{label}: [{', '.join(f'{x:.3f}' for x in box)}]" for label, box in self.boxes)
        told = "\n".join([*self.captions, "", *boxes]).strip()
        return [{"role": "user", "content": f"{_SEEN}{_ASKED[self.kind]}\n\n{told}"}]

    def read(self, text: str) -> RowDraft | Fault:
        if found := _GIVES_AWAY.search(text):
            return Fault("gives away", f"it says {found[0]!r}")
        if self.kind == "detail":
            return RowDraft(TrainingRow(self.id, self.image, self.question, text))
        turns = _turns(text)
        if isinstance(turns, Fault):
            return turns
        if self.kind == "reasoning" and len(turns) != 2:
            return Fault("stages", f"{len(turns) // 2} questions where one was asked for")
        later = tuple(zip(turns[2::2], turns[3::2], strict=True))
        return RowDraft(TrainingRow(self.id, self.image, turns[0], turns[1], {}, (), later))

    def save(self) -> None:
        """Its picture is where it was."""


def _turns(text: str) -> list[str] | Fault:
    """Question, answer, question, ... or what is wrong with them."""
    pieces = _TURN.split(text)
    who, turns = pieces[1::2], [piece.strip() for piece in pieces[2::2]]
    if not turns:
        return Fault("stages", 'no line begins with "Q:"')
    if who != ["Q", "A"] * (len(who) // 2):
        return Fault("stages", f"the turns are {cut(' '.join(who))}")
    if not all(turns):
        return Fault("stages", f"turn {turns.index('') + 1} is empty")
    return turns


def read_described(
    path: str | Path,
    out: str | Path,
    kinds: tuple[Kind, ...] = KINDS,
    images: str | Path | None = None,
) -> list[Entry[DescribedTask]]:
    """A task for each row and kind. Pictures must be there, but are neither read nor shown; their
    paths are relative to `images`, or to the file. Raises InputError if the file as a whole cannot
    be read, UnknownNameError for a kind that there is not."""
    path, out = Path(path), Path(out)
    for kind in kinds:
        if kind not in KINDS:
            raise UnknownNameError("kind of text called", kind, KINDS)
    lines = read_bytes(path, "data", InputError).split(b"\n")
    entries: list[Entry] = []
    first: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        place = f"line {number}"
        if not line.strip():
            continue
        try:
            id, image, captions, boxes = _told(line.removeprefix(b"\xef\xbb\xbf"), number)
            if id in first:
                raise InputError(f"the id {id!r} is that of {first[id]} too.", "Give it its own.")
            first[id] = place
            picture = Path(images or path.parent).absolute() / image
            if not os.path.isfile(picture):
                said = f"{str(path)!r}, {place}: there is no picture {image!r}."
                raise ImageError(said, f"Paths are relative to {str(picture.parent)!r}.")
        except ImageError as error:
            entries.append(failing(place, error, id))
            continue
        except InputError as error:
            entries.append(faulty(path, place, error.message, error.hint))
            continue
        name = relative(picture, out)
        for kind in kinds:
            task = DescribedTask(id, kind, name, captions, boxes)
            entries.append(Entry(place, task.id, functools.partial(_itself, task)))
    if not entries:
        raise InputError(f"The data {str(path)!r} holds no rows.", "Write some into it.")
    return entries


def _told(line: bytes, number: int) -> tuple[str, str, tuple, tuple]:
    """Id, picture, captions and boxes of a line. Raises InputError."""
    try:
        found = parse_json(line.decode())
    except ValueError as error:
        raise InputError(f"this is not JSON: {error}.", "Write an object a line.") from None
    if not isinstance(found, dict):
        raise InputError(f"this is a {type(found).__name__}.", "Each line must be an object.")
    id, image = found.get("id", number), found.get("image")
    if isinstance(id, bool) or not (isinstance(id, int) or _is_text(id)):
        raise InputError(f"id is {cut(json.dumps(id))}.", "Give a text or a whole number.")
    if not _is_text(image) or "\0" in image:
        raise InputError(f"image is {cut(json.dumps(image))}.", "Give the picture's path.")
    captions = found.get("captions")
    captions = [captions] if isinstance(captions, str) else captions
    if not isinstance(captions, list) or not captions or not all(map(_is_text, captions)):
        said = f"captions is {cut(json.dumps(captions))}."
        raise InputError(said, "Give a list of one text or more.")
    boxes = found.get("boxes", [])
    if not isinstance(boxes, list):
        raise InputError(f"boxes is {cut(json.dumps(boxes))}.", "Give a list, or leave it out.")
    one_line = tuple(" ".join(caption.split()) for caption in captions)
    return str(id), image, one_line, tuple(map(_box, boxes))


def _itself(task: DescribedTask) -> DescribedTask:
    return task


def _box(found: Any) -> tuple[str, tuple[float, float, float, float]]:
    form = 'Write {"label": "dog", "box": [left, top, right, bottom]}, in fractions, 0 to 1.'
    label, box = (found.get("label"), found.get("box")) if isinstance(found, dict) else (None, None)
    said = f"a box is {cut(json.dumps(found))}."
    if not _is_text(label) or not isinstance(box, list) or len(box) != 4:
        raise InputError(said, form)
    if not all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in box):
        raise InputError(said, form)
    left, top, right, bottom = box
    if not (all(map(math.isfinite, box)) and 0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        hint = "Divide pixels by the picture's width and height." if max(box) > 1 else form
        raise InputError(said, hint)
    return " ".join(label.split()), (float(left), float(top), float(right), float(bottom))


def _is_text(value: Any) -> TypeGuard[str]:
    if not isinstance(value, str) or not value.strip():
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # half a character
        return False
    return True
