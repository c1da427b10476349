"""Wrong guesses at questions that are hard to search and easy to check, reasoned as right ones are.

Which two are alike, which bars add up to so much: a model that does not search names some pair,
says truly what it is, and concludes that it is the one. Such a text has no false claim but its
last; a judge must hold it against the question.
"""

from __future__ import annotations

import random
import re
from itertools import combinations

from . import SceneProblem
from .charts import Bar
from .drafts import ending, joined, options_of, seen
from .grading import grade
from .world import FAMILIES, Thing

TYPES = ("twins", "shared", "rank", "pair-sum", "pair-gap", "triple-sum")


def wrong_guess(rng: random.Random, scene: SceneProblem) -> tuple[str, str] | None:
    """A reasoning that ends in a wrong answer, and that answer as its CONCLUSION; None for types
    that are not guessed at, or where the guess happens to be right."""
    if scene.type not in TYPES:
        return None
    guess = _of_bars if isinstance(scene.objects[0], Bar) else _of_things
    made = guess(rng, scene)
    if made is None:
        return None
    body, answer = made
    letters = options_of(scene.question)
    concluded = answer
    if letters:
        named = [c for c, text in letters.items() if set(text.split()) == set(answer.split())]
        concluded = named[0] if named else rng.choice(sorted(letters))
    if grade(concluded, scene.answer):
        return None
    return body + ending(answer, letters, concluded), concluded


def _of_things(rng: random.Random, scene: SceneProblem) -> tuple[str, str] | None:
    things: list[Thing] = list(scene.objects)  # type: ignore[arg-type]
    if scene.type == "twins":
        families = tuple(f for f in FAMILIES if f in scene.question)
        p, q = sorted(rng.sample(range(len(things)), 2))
        said = f"{seen(things[p], families)}. {seen(things[q], families)}. "
        return said, f"{things[p].cell} and {things[q].cell}"
    family = "colour" if "colour" in scene.question else "shape"
    value = rng.choice(sorted({getattr(thing, family) for thing in things}))
    having = [thing for thing in things if getattr(thing, family) == value]
    return "".join(f"{seen(t, (family,))} {i}. " for i, t in enumerate(having, 1)), value


def _of_bars(rng: random.Random, scene: SceneProblem) -> tuple[str, str] | None:
    bars: list[Bar] = list(scene.objects)  # type: ignore[arg-type]
    if scene.type == "rank":
        bar = rng.choice(bars)
        before, rank = _rank(scene.staged["REASONING"])
        return f"{before}{rank} {bar}. ", bar.colour
    group = rng.choice(list(combinations(bars, 3 if scene.type == "triple-sum" else 2)))
    if scene.type == "pair-gap":
        group = tuple(sorted(group, key=lambda bar: -bar.height))
    p, q = group[:2]
    less = scene.type == "pair-gap"
    sign, value = ("-", p.height - q.height) if less else ("+", p.height + q.height)
    body = f"{p}. {q}. {p.height} {sign} {q.height} = {value}. "
    for r in group[2:]:
        body += f"{r}. {value} + {r.height} = {value + r.height}. "
    return body, joined([bar.colour for bar in group])


def _rank(reasoning: str) -> tuple[str, str]:
    """What comes before the decisive claim of a rank question, and its rank: "second highest"."""
    *before, decisive = re.findall(r"[^.]+\. ?", reasoning.partition("So ")[0])
    found = re.match(r"(second )?(highest|lowest)", decisive)
    assert found is not None, reasoning
    return "".join(before), found[0]
