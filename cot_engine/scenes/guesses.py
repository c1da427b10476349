"""Wrong guesses at questions that are hard to search and easy to check, reasoned as right ones are.

Which two are alike, which bars add up to so much: a model that does not search names some objects,
says mostly truly what they are, and concludes that these are the ones. A judge must hold that
against the question, and against the picture where the guess was made to fit.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from cot_engine.scenes import SceneProblem, reasonings
from cot_engine.scenes.charts import TALLEST, Bar
from cot_engine.scenes.drafts import Told, concluded, options_of, seen
from cot_engine.scenes.grading import grade
from cot_engine.scenes.world import FAMILIES, Thing

FORCED = 0.25
"""How many guesses say something false so as to fit the question."""


def wrong_guess(rng: random.Random, scene: SceneProblem) -> tuple[str, str] | None:
    """A reasoning that ends in a wrong answer, and that answer as its CONCLUSION; None for types
    that are not guessed at, or where the guess happens to be right."""
    if scene.type not in _GUESSES:
        return None
    body, found = _GUESSES[scene.type](rng, scene.question.partition("\n")[0], scene.objects)
    end, conclusion = concluded(rng, found, options_of(scene.question))
    return None if grade(conclusion, scene.answer) else (body + end, conclusion)


def _twins(rng: random.Random, asked: str, things: Sequence[Thing]) -> Told:
    """Any two, said to be what they are; or the second to be what the first is."""
    families = tuple(family for family in FAMILIES if family in asked)
    p, q = rng.choice(list(combinations(things, 2)))
    found = f"{p.cell} and {q.cell}"
    if rng.random() < FORCED:
        q = replace(p, column=q.column, row=q.row)
    return f"{seen(p, families)}. {seen(q, families)}. ", found


def _shared(rng: random.Random, asked: str, things: Sequence[Thing]) -> Told:
    """All that have some value; or as many as asked for, one of which is named, each said to be
    what it is or all to have one value."""
    family = "colour" if "colour" in asked else "shape"
    wanted = int(re.findall(r"\d+", asked)[0])
    value = getattr(rng.choice(things), family)
    having = [thing for thing in things if getattr(thing, family) == value]
    if rng.random() < 0.5:
        some = sorted(rng.sample(range(len(things)), min(wanted, len(things))))
        having = [things[k] for k in some]
        if rng.random() < FORCED:
            having = [replace(thing, **{family: value}) for thing in having]
        value = getattr(rng.choice(having), family)
    return "".join(f"{seen(t, (family,))} {i}. " for i, t in enumerate(having, 1)), value


def _rank(rng: random.Random, asked: str, bars: Sequence[Bar]) -> Told:
    """The ranking of all bars but one or two: wrong where these matter."""
    word = "highest" if "highest" in asked else "lowest"
    missed = set(rng.sample(list(bars), rng.choice((1, 1, 2))))
    some = [bar for bar in bars if bar not in missed]
    return reasonings.rank(some, word, "second" in asked)


def _above(rng: random.Random, asked: str, bars: Sequence[Bar]) -> Told:
    """One bar is left out, or one that is not so high is counted."""
    level = int(re.findall(r"\d+", asked)[0])
    higher = [bar for bar in bars if bar.height > level]
    if higher and rng.random() < 0.75:
        missed = rng.choice(higher)
        return reasonings.above([bar for bar in bars if bar is not missed], level)
    lower = sorted((bar.height for bar in bars if bar.height <= level), reverse=True)
    return reasonings.above(bars, lower[0] - 1 if lower else level)


def _sum(size: int) -> Callable[[random.Random, str, Sequence[Bar]], Told]:
    def guess(rng: random.Random, asked: str, bars: Sequence[Bar]) -> Told:
        group = list(rng.choice(list(combinations(bars, size))))
        total = int(re.findall(r"\d+", asked)[0])
        if rng.random() >= FORCED:
            return reasonings.added(*group)
        if rng.random() < 0.5:  # the last height read as it should be
            last = total - sum(bar.height for bar in group[:-1])
            if 1 <= last <= TALLEST:
                group[-1] = replace(group[-1], height=last)
            return reasonings.added(*group)
        body, names = reasonings.added(*group)
        return re.sub(r"\d+\. $", f"{total}. ", body), names

    return guess


def _gap(rng: random.Random, asked: str, bars: Sequence[Bar]) -> Told:
    p, q = sorted(rng.sample(list(bars), 2), key=lambda bar: -bar.height)
    left = int(re.findall(r"\d+", asked)[0])
    if rng.random() >= FORCED:
        return reasonings.subtracted(p, q)
    if rng.random() < 0.5:
        low = p.height - left
        return reasonings.subtracted(p, replace(q, height=low) if low >= 1 else q)
    body, names = reasonings.subtracted(p, q)
    return re.sub(r"\d+\. $", f"{left}. ", body), names


_GUESSES: dict[str, Callable[[random.Random, str, Any], Told]] = {
    "twins": _twins,
    "shared": _shared,
    "rank": _rank,
    "above": _above,
    "pair-sum": _sum(2),
    "pair-gap": _gap,
    "triple-sum": _sum(3),
}
TYPES = tuple(_GUESSES)
