"""Texts of a scene made false: pairs for a judge that cost no sampling.

A corrupted caption describes a picture that is nearly the right one, as a model's mistakes do; a
corrupted reasoning or response ends in a wrong answer, mostly for a reason.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from cot_engine.scenes import SceneProblem, caption
from cot_engine.scenes.charts import TALLEST, Bar
from cot_engine.scenes.drafts import concluded, ending, missed, options_of
from cot_engine.scenes.grading import grade, grade_caption
from cot_engine.scenes.guesses import wrong_guess
from cot_engine.scenes.world import (
    COLOURS,
    FAMILIES,
    GRID,
    SHAPES,
    SIZES,
    USUAL,
    Thing,
    random_look,
)

Objects = tuple[Thing, ...] | tuple[Bar, ...]
About = Literal["CAPTION", "REASONING", "whole"]
MISSED = 0.25  # of the questions with options, how often a right answer gets a wrong letter
GUESSED = 0.8  # of the other questions that can be guessed at, how many are
REWORDED = 0.08  # of the rest, how many have words changed; in the others something is seen wrongly
SAID = 0.85  # of these, how many captions say so
BEFORE = (0.75, 0.2, 0.05)  # how often the better caption has 0, 1 or 2 mistakes already

_OPPOSITES = {"yes": "no", "more": "less", "left": "right", "above": "below"}
_OPPOSITES |= {after: before for before, after in _OPPOSITES.items()}
_FAMILY = {value: values for values in map(tuple, FAMILIES.values()) for value in values}
_CELL = re.compile(r"[A-D][1-4]")
_CLAIM = re.compile(r"[A-D][1-4]\b|\d+|[a-z]+")
_TRIES = 30


@dataclass(frozen=True, slots=True)
class Corrupted:
    """Two turns that begin with `shared` and go on with `better` and `worse`, tags included; what
    each is worth as the outcome of a candidate is: the share of the objects that a caption names
    rightly, whether the answer is right."""

    shared: str
    better: str
    worse: str
    values: tuple[float, float]


def corrupt(rng: random.Random, scene: SceneProblem, about: About, most: int = 2) -> Corrupted:
    """The scene's own stage, or all its stages, and the same with up to `most` mistakes more.

    The better text is mostly without mistakes: a caption may have some already (BEFORE), and so may
    the caption of a response with the right answer. Raises ValueError if the scene has no such
    stage or, which no scene was seen to do, nothing makes it worse.
    """
    if about != "whole" and about not in scene.staged:
        raise ValueError(f"{scene.id} has no {about}.")
    tags = list(scene.staged)
    at = 0 if about == "whole" else tags.index(about)
    end = len(tags) if about == "whole" else at + 1
    for _ in range(_TRIES):
        better, objects = dict(scene.staged), scene.objects
        if "CAPTION" in better:
            if about != "REASONING":
                objects = corrupt_objects(rng, objects, rng.choices((0, 1, 2), BEFORE)[0])
            better["CAPTION"] = caption(rng, objects)
        made = _worse(rng, scene, better, objects, about, rng.randint(1, most))
        if made is not None:
            worse, values = made
            shown = (_written(better, tags[at:end]), _written(worse, tags[at:end]))
            return Corrupted(_written(better, tags[:at]), *shown, values)
    raise ValueError(f"{scene.id}: nothing makes its {about} worse.")


def _worse(
    rng: random.Random,
    scene: SceneProblem,
    better: dict[str, str],
    objects: Objects,
    about: About,
    mistakes: int,
) -> tuple[dict[str, str], tuple[float, float]] | None:
    """Stages with more mistakes in them, and what both are worth; None where it is no less."""
    worse = dict(better)
    if about == "CAPTION":
        worse["CAPTION"] = caption(rng, corrupt_objects(rng, objects, mistakes))
        shares = [grade_caption(s["CAPTION"], scene.objects) for s in (better, worse)]
        first, second = (right / there for right, there in shares)
        return (worse, (first, second)) if first > second else None
    options = options_of(scene.question)
    if options and rng.random() < MISSED:
        told = scene.tell(scene.objects)
        assert told is not None  # of its own objects, a question has an answer
        end, worse["CONCLUSION"] = missed(rng, told[1], options)
        worse["REASONING"] = told[0] + end
        return worse, (1.0, 0.0)
    if rng.random() < GUESSED and (guess := wrong_guess(rng, scene)) is not None:
        worse["REASONING"], worse["CONCLUSION"] = guess
        return worse, (1.0, 0.0)
    misled = None if rng.random() < REWORDED else _misled(rng, scene, options, mistakes)
    if misled is not None:
        believed, worse["REASONING"], worse["CONCLUSION"] = misled
        if about == "whole" and "CAPTION" in better and rng.random() < SAID:
            worse["CAPTION"] = caption(rng, believed)
        return worse, (1.0, 0.0)
    worse["REASONING"], worse["CONCLUSION"] = _reworded(rng, scene, options, mistakes)
    wrong = not grade(worse["CONCLUSION"], scene.answer)
    return (worse, (1.0, 0.0)) if wrong and worse["REASONING"] != better["REASONING"] else None


def _misled(
    rng: random.Random, scene: SceneProblem, options: Mapping[str, str], mistakes: int
) -> tuple[Objects, str, str] | None:
    """Other objects, and the reasoning and the wrong conclusion that they lead to; None where no
    others that were tried do."""
    for _ in range(_TRIES):
        believed = corrupt_objects(rng, scene.objects, mistakes)
        if (told := scene.tell(believed)) is not None:
            body, found = told
            end, conclusion = concluded(rng, found, options)
            if not grade(conclusion, scene.answer):
                return believed, body + end, conclusion
    return None


def _reworded(
    rng: random.Random, scene: SceneProblem, options: Mapping[str, str], mistakes: int
) -> tuple[str, str]:
    """The scene's own reasoning and conclusion with words changed, and another answer."""
    answer = corrupt_text(rng, scene.answer, 1)
    told = scene.tell(scene.objects)
    assert told is not None  # of its own objects, a question has an answer
    body = corrupt_text(rng, told[0], rng.randint(0, mistakes))
    return body + ending(options.get(answer, answer), options, answer), answer


def _written(staged: dict[str, str], tags: Sequence[str]) -> str:
    return "".join(f"<{tag}>{staged[tag]}</{tag}>" for tag in tags)


def corrupt_objects(rng: random.Random, objects: Objects, mistakes: int) -> Objects:
    """Other objects, in reading order, `mistakes` changes away: mostly a wrong shape or height, as
    models mistake them, sometimes one too many, too few or elsewhere."""
    found: list[Any] = list(objects)
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
