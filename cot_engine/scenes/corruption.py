"""True texts of a scene made false: pairs for a judge that cost no sampling.

A corrupted caption describes a picture that is nearly the right one, as a model's mistakes do; a
corrupted reasoning or response ends in a wrong answer, mostly for a reason.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from . import SceneProblem
from .charts import TALLEST, Bar
from .grading import grade, grade_caption
from .world import COLOURS, FAMILIES, GRID, SHAPES, SIZES, USUAL, Thing, random_look

Objects = tuple[Thing, ...] | tuple[Bar, ...]
About = Literal["CAPTION", "REASONING", "whole"]
WORDINGS = (0.6, 0.25, 0.15)  # how often an object is named in each of its wordings

_OPPOSITES = {"yes": "no", "more": "less", "left": "right", "above": "below"}
_OPPOSITES |= {after: before for before, after in _OPPOSITES.items()}
_FAMILY = {value: values for values in map(tuple, FAMILIES.values()) for value in values}
_CELL = re.compile(r"[A-D][1-4]")
_CLAIM = re.compile(r"[A-D][1-4]\b|\d+|[a-z]+")
_TRIES = 20


@dataclass(frozen=True, slots=True)
class Corrupted:
    """Two turns that begin with `shared` and go on with `true` and `false`, tags included."""

    shared: str
    true: str
    false: str


def corrupt(rng: random.Random, scene: SceneProblem, about: About, most: int = 2) -> Corrupted:
    """The scene's own stage, or all its stages, and the same with up to `most` mistakes: a caption
    of another picture, a reasoning or a response that ends in another answer.

    Raises ValueError if the scene has no such stage or, which no scene was seen to do, is true
    whatever is changed.
    """
    if about != "whole" and about not in scene.staged:
        raise ValueError(f"{scene.id} has no {about}.")
    staged = dict(scene.staged)
    if "CAPTION" in staged:
        staged["CAPTION"] = caption(rng, scene.objects)
    tags = list(staged)
    for _ in range(_TRIES):
        mistakes = rng.randint(1, most)
        wrong = _corrupted(rng, scene, staged, about, mistakes)
        if wrong is not None:
            at = 0 if about == "whole" else tags.index(about)
            end = len(tags) if about == "whole" else at + 1
            return Corrupted(
                _written(staged, tags[:at]), _written(staged, tags[at:end]), _written(wrong, tags[at:end])
            )
    raise ValueError(f"{scene.id}: nothing makes its {about} false.")


def _corrupted(
    rng: random.Random, scene: SceneProblem, staged: dict[str, str], about: About, mistakes: int
) -> dict[str, str] | None:
    """The stages with mistakes in them, or None where they came out true."""
    wrong = dict(staged)
    if about == "CAPTION":
        wrong["CAPTION"] = caption(rng, corrupt_objects(rng, scene.objects, mistakes))
        right, there = grade_caption(wrong["CAPTION"], scene.objects)
        return wrong if right < there else None
    # A wrong answer mostly comes of something: of what was seen, or of how it was reasoned.
    if about == "whole" and "CAPTION" in staged and rng.random() < 0.5:
        wrong["CAPTION"] = caption(rng, corrupt_objects(rng, scene.objects, mistakes))
    answer = corrupt_text(rng, scene.answer, 1)
    if grade(answer, scene.answer):
        return None
    wrong["CONCLUSION"] = answer
    body, so, said = staged["REASONING"].rpartition("So ")
    body = corrupt_text(rng, body, rng.randint(0, mistakes))
    wrong["REASONING"] = body + so + said.replace(scene.answer, answer)
    return wrong if wrong["REASONING"] != staged["REASONING"] else None


def _written(staged: dict[str, str], tags: Sequence[str]) -> str:
    return "".join(f"<{tag}>{staged[tag]}</{tag}>" for tag in tags)


def caption(rng: random.Random, objects: Objects) -> str:
    """The objects in reading order, each in one of its wordings."""
    return " ".join(rng.choices(thing.wordings(), WORDINGS)[0] + "." for thing in objects)


def corrupt_objects(rng: random.Random, objects: Objects, mistakes: int) -> Objects:
    """Other objects, in reading order, `mistakes` changes away: mostly a wrong shape or height, as
    models mistake them, sometimes one too many, too few or elsewhere."""
    found = list(objects)
    for _ in range(mistakes):
        change = _change_thing if isinstance(found[0], Thing) else _change_bar
        change(rng, found)
    if isinstance(found[0], Thing):
        found.sort(key=lambda thing: (thing.row, thing.column))
    return tuple(found)


def _change_thing(rng: random.Random, things: list[Thing]) -> None:
    i = rng.randrange(len(things))
    thing, drawn = things[i], rng.random()
    taken = {(t.row, t.column) for t in things}
    free = [(r, c) for r in range(GRID) for c in range(GRID) if (r, c) not in taken]
    if drawn < 0.6:
        things[i] = replace(thing, shape=_other(rng, thing.shape, SHAPES))
    elif drawn < 0.72:
        things[i] = replace(thing, colour=_other(rng, thing.colour, tuple(COLOURS)))
    elif drawn < 0.82:
        things[i] = replace(thing, size=_other(rng, thing.size, SIZES))
    elif drawn < 0.9 and len(things) > 2:
        del things[i]
    elif not free:
        things[i] = replace(thing, shape=_other(rng, thing.shape, SHAPES))
    else:
        row, column = rng.choice(free)
        if rng.random() < 0.5:
            things[i] = replace(thing, row=row, column=column)
        else:
            things.append(Thing(column, row, **random_look(rng, USUAL)))


def _change_bar(rng: random.Random, bars: list[Bar]) -> None:
    i = rng.randrange(len(bars))
    bar, drawn = bars[i], rng.random()
    if drawn < 0.85 or len(bars) <= 3:
        near = [bar.height + step for step in (-2, -1, -1, 1, 1, 2)]
        bars[i] = replace(bar, height=rng.choice([h for h in near if 1 <= h <= TALLEST]))
    elif drawn < 0.93:
        unused = [c for c in COLOURS if c not in {b.colour for b in bars}]
        if unused:
            bars[i] = replace(bar, colour=rng.choice(unused))
    else:
        del bars[i]


def corrupt_text(rng: random.Random, text: str, mistakes: int) -> str:
    """The text with that many of its numbers, cells, attributes and words of comparison changed;
    as it is where it has none."""
    for _ in range(mistakes):
        words = [m for m in _CLAIM.finditer(text) if _changeable(m.group())]
        option = re.fullmatch("[A-D]", text)
        if option:
            text = _other(rng, text, tuple("ABCD"))
            continue
        if not words:
            break
        word = rng.choice(words)
        text = text[: word.start()] + _changed(rng, word.group()) + text[word.end() :]
    return text


def _changeable(word: str) -> bool:
    return word.isdigit() or bool(_CELL.fullmatch(word)) or word in _FAMILY or word in _OPPOSITES


def _changed(rng: random.Random, word: str) -> str:
    if word.isdigit():
        near = {max(0, int(word) + step) for step in (-3, -2, -1, 1, 2, 3)} - {int(word)}
        return str(rng.choice(sorted(near)))
    if _CELL.fullmatch(word):
        return _other(rng, word, tuple(c + r for c in "ABCD" for r in "1234"))
    return _OPPOSITES.get(word) or _other(rng, word, _FAMILY[word])


def _other(rng: random.Random, value: str, values: Sequence[str]) -> str:
    return rng.choice([v for v in values if v != value])
