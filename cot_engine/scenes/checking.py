"""Which sentences of a caption or a reasoning are true of a picture: the labels of a judge's marks.

Every sentence is one claim. A caption's claims name an object with all it has; a reasoning's name
parts of objects, sums, comparisons, and at the end the answer. A claim that no rule reads is false.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from .charts import Bar
from .grading import facts, grade
from .world import COLOURS, FAMILIES, Thing

_SENTENCE = re.compile(r"[^.\n]*\.?\s*")

_SUM = re.compile(r"(\d+) ([+-]) (\d+) = (\d+)")
_RELATION = re.compile(
    r"(\w+) is (more than|less than|the same as|left of|right of|above|below) (\w+)"
)
_COLUMNS, _ROWS = "ABCD", "1234"


@dataclass(frozen=True, slots=True)
class Mark:
    """Characters `start` to `end` of a text are one claim, true or not."""

    start: int
    end: int
    true: bool


def sentences(text: str) -> Iterator[tuple[int, int, str]]:
    """(start, end, words without the full stop) of every sentence."""
    for found in _SENTENCE.finditer(text):
        if words := found.group().strip().rstrip(".").strip():
            yield found.start(), found.end(), words


def mark_caption(text: str, objects: tuple[Thing, ...] | tuple[Bar, ...]) -> list[Mark]:
    """A claim is true if it names an object rightly that was not named before, in reading order;
    where objects are passed over, the claim that passes them is false."""
    truth, names = (
        [str(thing) for thing in objects],
        [str(thing).split(" ")[0] for thing in objects],
    )
    at, strange = 0, 0  # the next object; claims since the last one that name none of them
    marks: list[Mark] = []
    for start, end, words in sentences(text):
        said = (facts(words) or [""])[0]
        if said in truth[at:]:
            here = truth.index(said, at)
            marks.append(Mark(start, end, here - at <= strange))
            at, strange = here + 1, 0
            continue
        marks.append(Mark(start, end, False))
        name = said.split(" ")[0]
        if name in names[at:]:
            at, strange = names.index(name, at) + 1, 0
        else:
            strange += 1
    if marks and at + strange < len(truth):  # something is missing at the end
        marks[-1] = Mark(marks[-1].start, marks[-1].end, False)
    return marks


def _relation(x: str, words: str, y: str) -> bool:
    if x.isdigit() and y.isdigit() and words in ("more than", "less than", "the same as"):
        p, q = int(x), int(y)
        if words in ("more than", "less than", "the same as"):
            return {"more than": p > q, "less than": p < q, "the same as": p == q}[words]
    if len(x) == 1 and len(y) == 1 and {x, y} <= set(_COLUMNS):
        gap = _COLUMNS.index(x) - _COLUMNS.index(y)
        return {"left of": gap < 0, "right of": gap > 0, "the same as": gap == 0}.get(words, False)
    return False


def _step(x: str, words: str, y: str) -> bool:
    """ "B2 is above B3": the cell just there."""
    dx, dy = _COLUMNS.index(x[0]) - _COLUMNS.index(y[0]), int(x[1]) - int(y[1])
    return {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}.get(
        words
    ) == (dx, dy)


def _none(words: str, objects: tuple[Thing, ...] | tuple[Bar, ...]) -> bool:
    """ "red star": no object is one; "bar above 7": no bar is."""
    named = set(words.split(" ")) - {"object"}
    if isinstance(objects[0], Bar):
        level = words.removeprefix("bar above ")
        return level.isdigit() and all(bar.height <= int(level) for bar in objects)
    return bool(named) and not any(named <= {t.size, t.colour, t.shape} for t in objects)


def _true(words: str, objects: tuple[Thing, ...] | tuple[Bar, ...], answer: str) -> bool:
    if words.startswith("So "):
        return grade(words.removeprefix("So ").split(", ")[-1], answer)
    if words.startswith("No "):
        return _none(words.removeprefix("No "), objects)
    if words.startswith("All "):
        return words == f"All {len(objects)}"
    if found := _SUM.fullmatch(words):
        x, sign, y, total = found.groups()
        return (int(x) + int(y) if sign == "+" else int(x) - int(y)) == int(total)
    if found := _RELATION.fullmatch(words):
        x, how, y = found.groups()
        if re.fullmatch("[A-D][1-4]", x) and re.fullmatch("[A-D][1-4]", y):
            return _step(x, how, y)
        if x in _ROWS and y in _ROWS and how in ("above", "below", "the same as"):
            gap = int(x) - int(y)
            return {"above": gap < 0, "below": gap > 0, "the same as": gap == 0}[how]
        return _relation(x, how, y)
    parts = words.split(" ")
    ranks = [w for w in parts if w in ("second", "highest", "lowest")]
    parts = [w for w in parts if w not in ranks]
    if isinstance(objects[0], Bar):
        heights = {bar.colour: bar.height for bar in objects}
        if len(parts) not in (2, 3) or parts[0] not in COLOURS or not parts[1].isdigit():
            return False
        if heights.get(parts[0]) != int(parts[1]):
            return False
        if not ranks:
            return True
        order = sorted(heights.values(), reverse="highest" in ranks)
        return order[1 if "second" in ranks else 0] == int(parts[1])
    thing = next((t for t in objects if t.cell == parts[0]), None)
    if thing is None or len(parts) < 2:
        return False
    if len(parts) > 2 and parts[-1].isdigit():
        parts = parts[:-1]
    return set(parts[1:]) <= {getattr(thing, family) for family in FAMILIES}


def mark_reasoning(
    text: str, objects: tuple[Thing, ...] | tuple[Bar, ...], answer: str
) -> list[Mark]:
    """Each claim on its own; the last one is also false if it does not give the answer."""
    return [
        Mark(start, end, _true(words, objects, answer)) for start, end, words in sentences(text)
    ]
