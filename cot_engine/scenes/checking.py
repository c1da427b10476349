"""Which sentences of a caption or a reasoning are true of a picture: the labels of a judge's marks.

Every sentence is one claim. A caption's claims name an object with all it has; a reasoning's name
parts of objects, sums, comparisons, and at the end the answer. A claim that no rule reads is false.
Where a question leaves one way to go through the objects, a claim that passes one over is false.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from cot_engine.scenes import SceneProblem
from cot_engine.scenes.charts import Bar
from cot_engine.scenes.drafts import options_of
from cot_engine.scenes.grading import facts, grade
from cot_engine.scenes.reasonings import STEPS
from cot_engine.scenes.world import COLOURS, FAMILIES, Thing

FREE = ("twins", "shared", "pair-sum", "pair-gap", "triple-sum")
"""Types that are answered by naming some objects, in no order that follows from the question."""

_SENTENCE = re.compile(r"[^.\n]*\.?\s*")

_SUM = re.compile(r"(\d+) ([+-]) (\d+) = (\d+)")
_ASKED = re.compile(r"(more than|less than|left of|right of|above|below)\? ")
_RELATION = re.compile(
    r"(\w+) is (more than|less than|the same as|left of|right of|above|below) (\w+)"
)
_OPTION = re.compile(r"([A-D]) (.+)")
_OBJECT = re.compile(rf"([A-D][1-4]|{'|'.join(COLOURS)})( (?!is\b)\w+)+")
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


class _Walk:
    """Claims held against the true ones, in their order. A claim is true if it is one of those to
    come and passes none over; the first word of a false one tells which of them it is about."""

    def __init__(self, truth: list[str]) -> None:
        self.truth, self.names = truth, [words.split(" ")[0] for words in truth]
        self.at, self.strange = 0, 0  # the next; claims since the last that are about none

    def take(self, said: str) -> bool:
        if said in self.truth[self.at :]:
            here = self.truth.index(said, self.at)
            true = here - self.at <= self.strange
            self.at, self.strange = here + 1, 0
            return true
        name = said.split(" ")[0]
        if name in self.names[self.at :]:
            self.at, self.strange = self.names.index(name, self.at) + 1, 0
        else:
            self.strange += 1
        return False

    def complete(self) -> bool:
        return self.at + self.strange >= len(self.truth)


def mark_caption(text: str, objects: tuple[Thing, ...] | tuple[Bar, ...]) -> list[Mark]:
    """A claim is true if it names an object rightly that was not named before, in reading order;
    where objects are passed over, the claim that passes them is false."""
    walk = _Walk([str(thing) for thing in objects])
    marks = [
        Mark(start, end, walk.take((facts(words) or [""])[0]))
        for start, end, words in sentences(text)
    ]
    if marks and not walk.complete():  # something is missing at the end
        marks[-1] = Mark(marks[-1].start, marks[-1].end, False)
    return marks


def _relation(x: str, words: str, y: str) -> bool:
    """ "4 is more than 3", "B is left of C"; False for words that do not go with what they join."""
    if x.isdigit() and y.isdigit():
        p, q = int(x), int(y)
        return {"more than": p > q, "less than": p < q, "the same as": p == q}.get(words, False)
    if len(x) == 1 and len(y) == 1 and {x, y} <= set(_COLUMNS):
        gap = _COLUMNS.index(x) - _COLUMNS.index(y)
        return {"left of": gap < 0, "right of": gap > 0, "the same as": gap == 0}.get(words, False)
    return False


def _step(x: str, words: str, y: str) -> bool:
    """ "B2 is above B3": the cell just there."""
    dx, dy = _COLUMNS.index(x[0]) - _COLUMNS.index(y[0]), int(x[1]) - int(y[1])
    return STEPS.get(words) == (dx, dy)


def _none(words: str, objects: tuple[Thing, ...] | tuple[Bar, ...]) -> bool:
    """ "red star": no object is one; "bar above 7": no bar is."""
    named = set(words.split(" ")) - {"object"}
    if isinstance(objects[0], Bar):
        level = words.removeprefix("bar above ")
        return level.isdigit() and all(bar.height <= int(level) for bar in objects)
    return bool(named) and not any(named <= {t.size, t.colour, t.shape} for t in objects)


def _concludes(said: str, scene: SceneProblem) -> bool:
    """ "So B." is the letter, "So red." what it stands for."""
    options = options_of(scene.question)
    return grade(said, scene.answer if said in options else options.get(scene.answer, scene.answer))


def _true(words: str, scene: SceneProblem) -> bool:
    objects = scene.objects
    if words.startswith("So "):
        return _concludes(words.removeprefix("So "), scene)
    if found := _OPTION.fullmatch(words):
        letter, text = found.groups()
        if letter in (options := options_of(scene.question)):
            return options[letter] == text
    if found := _ASKED.match(words):
        if found.group() not in scene.staged["REASONING"]:
            return False
        words = words[found.end() :]
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
    number = parts.pop() if len(parts) > 2 and parts[-1].isdigit() else ""

    def looks(other: Thing) -> bool:
        return set(parts[1:]) <= {getattr(other, family) for family in FAMILIES}

    before = objects[: objects.index(thing) + 1]  # "C2 star 2" is the second star
    return looks(thing) and (not number or sum(map(looks, before)) == int(number))


def mark_reasoning(text: str, scene: SceneProblem) -> list[Mark]:
    """Each claim on its own, but those about objects in the order of the scene's own reasoning
    (except FREE types); the last claim is also false if it does not give the answer."""
    walk = None
    if scene.type not in FREE:
        own = [words for *_, words in sentences(scene.staged["REASONING"])]
        walk = _Walk([words for words in own if _OBJECT.fullmatch(words)])

    def true(words: str) -> bool:
        if walk is not None and _OBJECT.fullmatch(words):
            return walk.take(words)
        return _true(words, scene)

    return [Mark(start, end, true(words)) for start, end, words in sentences(text)]
