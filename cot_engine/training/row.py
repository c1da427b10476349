"""One row that models are trained on, in LLaVA-CoT-100k's format.

    {"id": "7", "image": "a/7.png", "conversations": [
        {"from": "human", "value": "<image>\\nHow many?"},
        {"from": "gpt", "value": "<SUMMARY>...</SUMMARY>..."}]}

Several pictures are a list under "image" (or "images"), several questions further pairs of turns.
What a `TrainingRow` has no field for is kept in `extra`. What nobody could learn as it stands is
told by `unlearnable`, to all who use rows.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from cot_engine.errors import shown

MARKER = "<image>"
"""Where the picture stands in a human turn."""
SHOWN = 200
"""Characters of a bad line that are kept."""


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """One question with the response to be learnt, and those that follow it, if any do.

    `image` is a path relative to the image folder, as the file has it, or None; `more_images` are
    those of a row with several. `question` is the first human turn without its image markers,
    `response` the first gpt turn, `later` the (question, response) pairs after them.

    `extra` holds every other key of the line, as read. Under "id", "image", "images" and
    "conversations" it holds what was read there only if the fields do not say it all: an id that is
    a number, an image that is null, a conversation of other turns or keys, or with its markers
    elsewhere (all of it, as read: the fields count where they differ).
    """

    id: str
    image: str | None
    question: str
    response: str
    extra: dict[str, Any] = field(default_factory=dict)
    more_images: tuple[str, ...] = ()
    later: tuple[tuple[str, str], ...] = ()

    @property
    def images(self) -> tuple[str, ...]:
        """All pictures, in the order in which they are shown."""
        return () if self.image is None else (self.image, *self.more_images)

    @property
    def turns(self) -> tuple[tuple[str, str], ...]:
        """All questions with their responses."""
        return ((self.question, self.response), *self.later)


@dataclass(frozen=True, slots=True)
class BadRow:
    """A line that is no row: `line` (from 1), what was `said` to be wrong, a `hint` what to do,
    and the beginning of its `text`."""

    line: int
    said: str
    hint: str
    text: str = ""


def row_json(row: TrainingRow) -> str:
    """The row as one line of LLaVA-CoT-100k, without its line end."""
    found: dict[str, Any] = {"id": row.id}
    if isinstance(row.extra.get("id"), int) and str(row.extra["id"]) == row.id:
        found["id"] = row.extra["id"]
    found |= _image_keys(row)
    found["conversations"] = conversations(row)
    found |= {key: value for key, value in row.extra.items() if key not in {*found, *_OWN}}
    text = json.dumps(found, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half a character somewhere in `extra`: it can only be escaped
        return json.dumps(found)
    return text


def beginning(text: str) -> str:
    """The beginning of a bad line."""
    return text.strip()[:SHOWN].encode("utf-8", "replace").decode()


# --- one row -------------------------------------------------------------------------------------


class _Wrong(Exception):
    """What is wrong with a row, and a hint."""


def row_of(number: int, found: Any, text: str) -> TrainingRow | BadRow:
    try:
        text.encode()
    except UnicodeEncodeError:
        return BadRow(number, "it is not UTF-8.", "Save the file as UTF-8.", beginning(text))
    try:
        if not isinstance(found, dict):
            raise _Wrong(f"this is {_kind(found)}.", "Each line must be one JSON object.")
        return _made(found)
    except _Wrong as wrong:
        said, hint = wrong.args
        return BadRow(number, said, hint, beginning(text))


def _made(found: dict[str, Any]) -> TrainingRow:
    id, images = _id(found), _images(found)
    turns = _turns(found)
    question, response = _first(turns, "human")["value"], _first(turns, "gpt")["value"]
    question = _split(question, len(images))[1]
    first = images[0] if images else None
    row = TrainingRow(id, first, question, response, {}, images[1:], _later(turns))
    for key, value in (("id", id), *(("image", image) for image in images)):
        _whole(key, value)
    for value in (text for pair in row.turns for text in pair):
        _whole("conversation", value)
    extra = {key: value for key, value in found.items() if key not in _OWN}
    if not isinstance(found["id"], str):
        extra["id"] = found["id"]
    shown = {key: found[key] for key in _NAMED_BY if key in found}
    if shown != _image_keys(row):
        extra |= shown
    if turns != conversations(row):
        extra["conversations"] = turns
    row.extra.update(extra)
    return row


_NAMED_BY = ("image", "images")
_OWN = ("id", *_NAMED_BY, "conversations")


def _images(found: dict[str, Any]) -> tuple[str, ...]:
    """The pictures that a line names, under either key."""
    given = {key: found[key] for key in _NAMED_BY if found.get(key) is not None}
    if len(given) > 1:
        raise _Wrong("there is an image and images.", "Keep one of them.")
    for key, value in given.items():
        names = value if isinstance(value, list) else [value]
        for name in names:
            if not isinstance(name, str) or not name.strip():
                which = (
                    f"{key} holds {_kind(name)}" if names is value else f"{key} is {_kind(name)}"
                )
                raise _Wrong(f"{which}.", "Give a path or a list of paths, or leave the key out.")
        return tuple(names)
    return ()


def _image_keys(row: TrainingRow) -> dict[str, Any]:
    """A row's pictures as a line names them: as it was read, if that says the same."""
    kept = {key: row.extra[key] for key in _NAMED_BY if key in row.extra}
    with suppress(_Wrong):
        if kept and _images(kept) == row.images:
            return kept
    names = list(row.images)
    return {"image": names if len(names) > 1 else names[0]} if names else {}


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


def _later(turns: list[dict[str, Any]]) -> tuple[tuple[str, str], ...]:
    """Questions and responses after the first, where people take turns; () where they do not."""
    if [turn["from"] for turn in turns] != ["human", "gpt"] * (len(turns) // 2):
        return ()
    values = [turn["value"] for turn in turns[2:]]
    return tuple(zip(values[::2], values[1::2], strict=True))


def _split(value: str, images: int) -> tuple[str, str, str]:
    """A human turn as (markers before, question, markers behind), no more of them than pictures."""
    if images:
        more = images - 1
        if before := re.match(rf"(?:{MARKER}[ \t]*\n?){{0,{more}}}{MARKER}\n?", value):
            return before[0], value[before.end() :], ""
        if after := re.search(rf"\n?{MARKER}(?:\n?[ \t]*{MARKER}){{0,{more}}}\Z", value):
            return "", value[: after.start()], after[0]
    return "", value, ""


def conversations(row: TrainingRow) -> list[dict[str, Any]]:
    """A row's turns, as they are written."""
    kept = row.extra.get("conversations")
    if kept is None:
        markers = f"{MARKER}\n" * len(row.images)
        pairs = ((markers + row.question, row.response), *row.later)
        who = ("human", "gpt")
        return [
            {"from": name, "value": value}
            for pair in pairs
            for name, value in zip(who, pair, strict=True)
        ]
    turns = [dict(turn) for turn in kept]
    human, gpt = _first(turns, "human"), _first(turns, "gpt")
    before, _, after = _split(human["value"], len(row.images))
    human["value"], gpt["value"] = before + row.question + after, row.response
    if len(_later(turns)) == len(row.later):
        for turn, value in zip(
            turns[2:], (text for pair in row.later for text in pair), strict=False
        ):
            turn["value"] = value
    return turns


def unlearnable(row: TrainingRow) -> Iterator[tuple[str, str]]:
    """What of a row nobody could learn as it stands: (name of a check, what is wrong), the same for
    all who use rows, so that nothing vanishes without a word.

    A model is asked by turns, the pictures before the first question: a row with turns of others,
    or out of turn, or with other places for its pictures would be learnt as something it is not.
    """
    turns = conversations(row)
    who = [turn["from"] for turn in turns]
    if strange := [(at, name) for at, name in enumerate(who, 1) if name not in ("human", "gpt")]:
        at, name = strange[0]
        hint = "Write what it says into the question, or leave it out."
        yield (
            "turns",
            f"Turn {at} is from {shown(name, 40)}, and a model is asked without such. {hint}",
        )
    elif who != ["human", "gpt"] * (len(who) // 2):
        said = ", ".join(who[:6]) + (", ..." if len(who) > 6 else "")
        yield "turns", f"The turns are from {said}: each question needs one reply, in turn."
    markers = sum(turn["value"].count(MARKER) for turn in turns if turn["from"] == "human")
    if markers not in (0, len(row.images)):
        yield "image-marker", f"It has {markers} {MARKER}, and {len(row.images)} pictures."
    elif any(MARKER in question for question, _ in row.turns):
        said = f"{MARKER} stands amid the text or in a later question"
        yield "image-marker", f"{said}: pictures are shown before the first question."
    if any(MARKER in response for _, response in row.turns):
        yield "image-marker", f"The response holds {MARKER}."


def standard_answers(row: TrainingRow) -> tuple[str, ...]:
    """The standard answers that a row carries, of which any will do; () if it carries none."""
    found = row.extra.get("answer")
    found = found if isinstance(found, list) else [found]
    texts = [str(one) for one in found if type(one) in (str, int, float)]
    return tuple(texts) if len(texts) == len(found) and all(map(str.strip, texts)) else ()


def standard_answer(row: TrainingRow) -> str | None:
    """One of them: the one that the response ends with, else the first."""
    found = standard_answers(row)
    same = [one for one in found if row.response.rstrip().endswith(f">{one}</CONCLUSION>")]
    return next(iter((*same, *found)), None)


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
    if isinstance(value, dict):
        return "an object"
    return "a list" if isinstance(value, list) else "a number"
