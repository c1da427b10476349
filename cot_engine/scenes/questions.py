"""Questions about a scene, their answers, and the staged responses a model is taught to give.

Every question is built backwards: its answer is drawn first, then a scene that has it. So the
wording gives away no more than the most frequent answer of its type does.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from .world import FAMILIES, MAX_THINGS, MIN_THINGS, Thing, place

TYPES = ("count", "subtract", "compare", "exist", "attribute", "relation")


@dataclass(frozen=True)
class Draft:
    """A question before its picture: what is asked, of what, and how it is reasoned out."""

    things: tuple[Thing, ...]
    question: str
    answer: str
    goal: str  # what SUMMARY says after "I list the objects": ", count the red stars"
    reasoning: str
    sentence: str  # the answer as a full sentence


# --- descriptions: a dict of attributes, a subset of size, colour and shape -----------------------


def _random_description(rng: random.Random, singles: bool = False) -> dict[str, str]:
    kinds = [("colour",), ("shape",), ("size",)]
    weights = [3, 3, 1]
    if not singles:
        kinds += [("colour", "shape"), ("size", "shape"), ("size", "colour")]
        weights += [4, 2, 2]
    kind = rng.choices(kinds, weights)[0]
    return {family: rng.choice(FAMILIES[family]) for family in kind}


def _random_look(rng: random.Random) -> dict[str, str]:
    return {family: rng.choice(values) for family, values in FAMILIES.items()}


def _fits(look: dict[str, str], description: dict[str, str]) -> bool:
    return all(look[family] == value for family, value in description.items())


def _matches(thing: Thing, description: dict[str, str]) -> bool:
    return all(getattr(thing, family) == value for family, value in description.items())


def _look_like(rng: random.Random, description: dict[str, str]) -> dict[str, str]:
    return _random_look(rng) | description


def _look_unlike(rng: random.Random, *descriptions: dict[str, str]) -> dict[str, str]:
    """A look that fits none of the descriptions, half the time sharing part of one of them."""
    while True:
        look = _random_look(rng)
        near = rng.choice(descriptions)
        if len(near) > 1 and rng.random() < 0.5:
            family = rng.choice(list(near))
            look[family] = near[family]
        if not any(_fits(look, d) for d in descriptions):
            return look


def _words(description: dict[str, str], plural: bool, noun: str = "object") -> str:
    """ "red star", "small objects": adjectives in the order size, colour, then the shape."""
    words = [description[f] for f in ("size", "colour") if f in description]
    return " ".join([*words, description.get("shape", noun)]) + ("s" if plural else "")


def _a(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def _noun(rng: random.Random) -> str:
    return rng.choices(("object", "thing", "shape"), (6, 2, 2))[0]


# --- reasoning: walk over the objects, restating what is compared ---------------------------------


def _seen(thing: Thing, description: dict[str, str]) -> str:
    """The cell and those attributes the description names: "B1 green triangle"."""
    return " ".join([thing.cell, *(getattr(thing, f) for f in FAMILIES if f in description)])


def _count_walk(things: tuple[Thing, ...], description: dict[str, str]) -> tuple[str, int]:
    found, parts = 0, []
    for thing in things:
        if _matches(thing, description):
            found += 1
            parts.append(f"{_seen(thing, description)} yes {found}")
        else:
            parts.append(f"{_seen(thing, description)} no")
    return ", ".join(parts) + ".", found


def _find_walk(things: tuple[Thing, ...], target: Thing, description: dict[str, str]) -> str:
    """As the count, but over at the one object that fits; it is the only one."""
    parts = []
    for thing in things:
        parts.append(f"{_seen(thing, description)} {'yes' if thing == target else 'no'}")
        if thing == target:
            break
    return ", ".join(parts) + "."


# --- the question types ---------------------------------------------------------------------------


def _total(rng: random.Random, at_least: int) -> int:
    return rng.randint(max(MIN_THINGS, at_least), MAX_THINGS)


def count(rng: random.Random) -> Draft:
    d = _random_description(rng)
    answer = rng.choices(range(5), (4, 5, 5, 4, 2))[0]
    rest = _total(rng, answer) - answer
    looks = [_look_like(rng, d) for _ in range(answer)]
    things = place(rng, looks + [_look_unlike(rng, d) for _ in range(rest)])
    noun, many = _noun(rng), _words(d, True)
    asked = _words(d, True, noun)
    question = rng.choice(
        (
            f"How many {asked} are there?",
            f"How many {asked} are in the picture?",
            f"How many {asked} do you see?",
            f"Count the {asked}.",
            f"What is the number of {asked}?",
        )
    )
    walk, found = _count_walk(things, d)
    one = "is 1 " + _words(d, False) if found == 1 else f"are {found} {many}"
    return Draft(
        things,
        question,
        str(found),
        f" and count the {many}",
        f"Count the {many}: {walk} So {found}.",
        f"There {one}.",
    )


def subtract(rng: random.Random) -> Draft:
    d = _random_description(rng)
    left = rng.choices(range(6), (2, 4, 5, 5, 4, 2))[0]
    gone = rng.randint(max(0, MIN_THINGS - left), min(4, MAX_THINGS - left))
    looks = [_look_like(rng, d) for _ in range(gone)]
    things = place(rng, looks + [_look_unlike(rng, d) for _ in range(left)])
    noun, many = _noun(rng), _words(d, True)
    asked = _words(d, True, noun)
    ones = asked if "shape" in d else asked.replace(noun + "s", "ones")
    question = rng.choice(
        (
            f"How many {noun}s are left if all the {ones} are removed?",
            f"How many {noun}s remain if you take away the {ones}?",
            f"If all the {asked} are removed, how many {noun}s are left?",
            f"Take away all the {asked}. How many {noun}s are left?",
            f"How many {noun}s are not {asked if 'shape' in d else ones}?"
            if len(d) > 1 or "shape" in d
            else f"How many {noun}s are not {next(iter(d.values()))}?",
        )
    )
    parts, stays = [], 0
    for thing in things:
        if _matches(thing, d):
            parts.append(f"{_seen(thing, d)} goes")
        else:
            stays += 1
            parts.append(f"{_seen(thing, d)} stays {stays}")
    verb = "object is" if stays == 1 else "objects are"
    return Draft(
        things,
        question,
        str(stays),
        f", remove the {many} and count the rest",
        f"Remove the {many}: {', '.join(parts)}. So {stays}.",
        f"{stays} {verb} left without the {many}.",
    )


def compare(rng: random.Random) -> Draft:
    family = rng.choices(("colour", "shape", "size"), (4, 4, 1))[0]
    first, second = ({family: v} for v in rng.sample(FAMILIES[family], 2))
    word, holds = rng.choice((("more", lambda a, b: a > b), ("fewer", lambda a, b: a < b)))
    wanted = rng.random() < 0.5
    while True:
        a, b = rng.randint(0, 4), rng.randint(0, 4)
        if MIN_THINGS <= a + b <= MAX_THINGS and holds(a, b) is wanted:
            break
    rest = 0 if family == "size" else _total(rng, a + b) - a - b  # every object has some size
    looks = [_look_like(rng, first) for _ in range(a)] + [_look_like(rng, second) for _ in range(b)]
    things = place(rng, looks + [_look_unlike(rng, first, second) for _ in range(rest)])
    noun = _noun(rng)
    x, y = _words(first, True, noun), _words(second, True, noun)
    greater = "greater" if word == "more" else "smaller"
    question = rng.choice(
        (
            f"Are there {word} {x} than {y}?",
            f"Are there {word} {x} than {y} in the picture?",
            f"Do you see {word} {x} than {y}?",
            f"Is the number of {x} {greater} than the number of {y}?",
        )
    )
    x, y = _words(first, True), _words(second, True)
    (walk_x, a), (walk_y, b) = _count_walk(things, first), _count_walk(things, second)
    relation = "more than" if a > b else "less than" if a < b else "the same as"
    answer = "yes" if holds(a, b) else "no"
    says = f"Yes, there are {word}" if answer == "yes" else f"No, there are not {word}"
    return Draft(
        things,
        question,
        answer,
        f", count the {x} and the {y} and compare",
        f"Count the {x}: {walk_x} So {a}. Count the {y}: {walk_y} So {b}. "
        f"{a} is {relation} {b}, so {answer}.",
        f"{says} {x} than {y}.",
    )


def exist(rng: random.Random) -> Draft:
    d = _random_description(rng)
    found = rng.choices((1, 2), (3, 1))[0] if rng.random() < 0.5 else 0
    rest = _total(rng, found) - found
    looks = [_look_like(rng, d) for _ in range(found)]
    things = place(rng, looks + [_look_unlike(rng, d) for _ in range(rest)])
    noun = _noun(rng)
    one, many = _words(d, False, noun), _words(d, True, noun)
    question = rng.choice(
        (
            f"Is there {_a(one)}?",
            f"Is there {_a(one)} in the picture?",
            f"Do you see {_a(one)}?",
            f"Are there any {many}?",
            f"Does the picture show {_a(one)}?",
        )
    )
    walk, found = _count_walk(things, d)
    one, answer = _a(_words(d, False)), "yes" if found else "no"
    says = f"Yes, there is {one}." if found else f"No, I do not see {one}."
    return Draft(
        things,
        question,
        answer,
        f" and look for {one}",
        f"Look for {one}: {walk} {found} found, so {answer}.",
        says,
    )


def _random_things(rng: random.Random) -> tuple[Thing, ...]:
    return place(rng, [_random_look(rng) for _ in range(_total(rng, MIN_THINGS))])


def _unique(
    rng: random.Random, things: tuple[Thing, ...], target: Thing, families: tuple[str, ...]
) -> dict[str, str] | None:
    """A random description by some of `families` that fits the target and nothing else."""
    kinds = [
        k
        for k in (
            ("shape",),
            ("colour",),
            ("colour", "shape"),
            ("size", "shape"),
            ("size", "colour"),
        )
        if set(k) <= set(families)
    ]
    rng.shuffle(kinds)
    for kind in kinds:
        d = {family: getattr(target, family) for family in kind}
        if sum(_matches(thing, d) for thing in things) == 1:
            return d
    return None


def attribute(rng: random.Random) -> Draft:
    family = rng.choices(("colour", "shape", "size"), (5, 4, 2))[0]
    by_cell = rng.random() < 0.3
    while True:
        things = _random_things(rng)
        target = rng.choice(things)
        d = _unique(rng, things, target, tuple(f for f in FAMILIES if f != family))
        if by_cell or d:
            break
    noun = _noun(rng)
    if by_cell:
        d = {}
        asked, name = f"{noun} {rng.choice(('at', 'in'))} {target.cell}", f"object at {target.cell}"
    else:
        asked, name = _words(d, False, noun), _words(d, False)
    spelled = rng.choice(("colour", "color")) if family == "colour" else family
    choices = [
        f"What {spelled} is the {asked}?",
        f"What is the {spelled} of the {asked}?",
        f"Which {spelled} does the {asked} have?",
        f"Name the {spelled} of the {asked}.",
    ]
    if family == "size":
        choices.append(f"Is the {asked} small or large?")
    answer = getattr(target, family)
    look = f"{target.size} {target.colour} {target.shape}"
    return Draft(
        things,
        rng.choice(choices),
        answer,
        f", find the {name} and read its {family}",
        f"Find the {name}: {_find_walk(things, target, d)} {target.cell} is a {look}. So {answer}.",
        f"The {name} is {_a(answer) if family == 'shape' else answer}.",
    )


_SIDES = {  # words -> (axis, sign of first minus second for the words to hold)
    "left of": ("column", -1),
    "to the left of": ("column", -1),
    "right of": ("column", 1),
    "to the right of": ("column", 1),
    "above": ("row", -1),
    "higher than": ("row", -1),
    "below": ("row", 1),
    "lower than": ("row", 1),
}


def relation(rng: random.Random) -> Draft:
    words, (axis, sign) = rng.choice(list(_SIDES.items()))
    wanted = rng.random() < 0.5
    while True:
        things = _random_things(rng)
        first, second = rng.sample(things, 2)
        gap = getattr(first, axis) - getattr(second, axis)
        d = _unique(rng, things, first, tuple(FAMILIES))
        e = _unique(rng, things, second, tuple(FAMILIES))
        # Half of the ties are thrown away: they would be two fifths of all "no".
        if d and e and (gap * sign > 0) is wanted and (gap or rng.random() < 0.5):
            break
    noun = _noun(rng)
    x, y = _words(d, False, noun), _words(e, False, noun)
    question = rng.choice(
        (
            f"Is the {x} {words} the {y}?",
            f"Do you see the {x} {words} the {y}?",
            f"In the picture, is the {x} {words} the {y}?",
            f"Would you say that the {x} is {words} the {y}?",
        )
    )
    x, y = _words(d, False), _words(e, False)
    at = "ABCD" if axis == "column" else "1234"
    p, q = at[getattr(first, axis)], at[getattr(second, axis)]
    lower, higher = ("left of", "right of") if axis == "column" else ("above", "below")
    actual = lower if gap < 0 else higher if gap > 0 else "the same as"
    answer = "yes" if gap * sign > 0 else "no"
    says = f"Yes, the {x} is" if answer == "yes" else f"No, the {x} is not"
    return Draft(
        things,
        question,
        answer,
        f", find the {x} and the {y} and compare their {axis}s",
        f"Find the {x}: {_find_walk(things, first, d)} "
        f"Find the {y}: {_find_walk(things, second, e)} "
        f"{first.cell} and {second.cell}: {axis} {p} is {actual} {axis} {q}, "
        f"so {answer}.",
        f"{says} {words} the {y}.",
    )


MAKERS: dict[str, Callable[[random.Random], Draft]] = {
    "count": count,
    "subtract": subtract,
    "compare": compare,
    "exist": exist,
    "attribute": attribute,
    "relation": relation,
}
