"""Questions about coloured shapes, their answers, and the staged responses a model is taught.

Yes-and-no questions and counts are built backwards: the answer is drawn first, then a scene that
has it. So the wording gives away no more than the most frequent answer of its type does. Some
types ("twins", "shared") are answered by naming what has a property: hard to find, easy to check.
Where an answer is yes if what is asked is what was found, the reasoning says what is asked just
before ("left of? B is right of A. So no."): held against words that far away, it was never learnt.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from functools import partial

from cot_engine.scenes import reasonings
from cot_engine.scenes.drafts import (
    Description,
    QuestionDraft,
    a,
    fits,
    matches,
    near_numbers,
    say,
    some_others,
    words,
)
from cot_engine.scenes.world import FAMILIES, Setting, Thing, place, random_look


def _description(rng: random.Random, singles: bool = False) -> Description:
    kinds: list[tuple[str, ...]] = [("colour",), ("shape",), ("size",)]
    weights = [3, 3, 1]
    if not singles:
        kinds += [("colour", "shape"), ("size", "shape"), ("size", "colour")]
        weights += [4, 2, 2]
    kind = rng.choices(kinds, weights)[0]
    return {family: rng.choice(FAMILIES[family]) for family in kind}


def _like(rng: random.Random, setting: Setting, description: Description) -> Description:
    return random_look(rng, setting) | description


def _unlike(rng: random.Random, setting: Setting, *descriptions: Description) -> Description:
    """A look that fits none of the descriptions, half the time sharing part of one of them."""
    while True:
        look = random_look(rng, setting)
        near = rng.choice(descriptions)
        if len(near) > 1 and rng.random() < 0.5:
            family = rng.choice(list(near))
            look[family] = near[family]
        if not any(fits(look, d) for d in descriptions):
            return look


def _total(rng: random.Random, setting: Setting, at_least: int) -> int:
    low, high = setting.things
    return rng.randint(max(low, at_least), max(high, at_least))


def _things(rng: random.Random, setting: Setting) -> tuple[Thing, ...]:
    return place(rng, [random_look(rng, setting) for _ in range(_total(rng, setting, 0))])


def count(rng: random.Random, setting: Setting) -> QuestionDraft:
    d = _description(rng)
    wanted = rng.choices(range(6), (3, 5, 5, 4, 3, 2))[0]
    rest = _total(rng, setting, wanted) - wanted
    looks = [_like(rng, setting, d) for _ in range(wanted)]
    things = place(rng, looks + [_unlike(rng, setting, d) for _ in range(rest)])
    many = words(d, True)
    question = say(
        rng,
        setting,
        (
            f"How many {many} are there?",
            f"How many {many} are in the picture?",
            f"How many {many} do you see?",
            f"Count the {many}.",
        ),
        (f"What is the number of {many}?", f"Give the number of {many} in the picture."),
    )
    one = f"is 1 {words(d)}" if wanted == 1 else f"are {wanted} {many}"
    return QuestionDraft(
        things,
        question,
        str(wanted),
        f" and count the {many}",
        partial(reasonings.count, d=d),
        f"There {one}.",
        near_numbers(rng, wanted),
    )


def subtract(rng: random.Random, setting: Setting) -> QuestionDraft:
    d = _description(rng)
    gone = rng.choices(range(5), (2, 4, 5, 4, 2))[0]
    left = _total(rng, setting, gone) - gone
    looks = [_like(rng, setting, d) for _ in range(gone)]
    things = place(rng, looks + [_unlike(rng, setting, d) for _ in range(left)])
    many = words(d, True)
    question = say(
        rng,
        setting,
        (
            f"How many objects are left if all the {many} are removed?",
            f"How many objects remain if you take away the {many}?",
            f"If all the {many} are removed, how many objects are left?",
        ),
        (f"Take away all the {many}. How many objects are left?", f"How many are not {many}?"),
    )
    return QuestionDraft(
        things,
        question,
        str(left),
        f", remove the {many} and count the rest",
        partial(reasonings.subtract, d=d),
        f"{left} {'object is' if left == 1 else 'objects are'} left without the {many}.",
        near_numbers(rng, left),
    )


def compare(rng: random.Random, setting: Setting) -> QuestionDraft:
    family = rng.choices(("colour", "shape"), (1, 1))[0]
    first, second = ({family: v} for v in rng.sample(FAMILIES[family], 2))
    word, holds = rng.choice((("more", lambda p, q: p > q), ("fewer", lambda p, q: p < q)))
    wanted = rng.random() < 0.5
    while True:
        p, q = rng.randint(0, 4), rng.randint(0, 4)
        if 2 <= p + q <= setting.things[1] and holds(p, q) is wanted:
            break
    rest = _total(rng, setting, p + q) - p - q
    looks = [_like(rng, setting, first) for _ in range(p)]
    looks += [_like(rng, setting, second) for _ in range(q)]
    things = place(rng, looks + [_unlike(rng, setting, first, second) for _ in range(rest)])
    x, y = words(first, True), words(second, True)
    question = say(
        rng,
        setting,
        (
            f"Are there {word} {x} than {y}?",
            f"Are there {word} {x} than {y} in the picture?",
            f"Do you see {word} {x} than {y}?",
        ),
        (
            f"Is the number of {x} {'greater' if word == 'more' else 'smaller'} "
            f"than the number of {y}?",
        ),
    )
    answer = "yes" if holds(p, q) else "no"
    says = f"Yes, there are {word}" if answer == "yes" else f"No, there are not {word}"
    return QuestionDraft(
        things,
        question,
        answer,
        f", count the {x} and the {y} and compare",
        partial(reasonings.compare, first=first, second=second, more=word == "more"),
        f"{says} {x} than {y}.",
    )


def exist(rng: random.Random, setting: Setting) -> QuestionDraft:
    d = _description(rng)
    found = rng.choices((1, 2), (3, 1))[0] if rng.random() < 0.5 else 0
    rest = _total(rng, setting, found) - found
    looks = [_like(rng, setting, d) for _ in range(found)]
    things = place(rng, looks + [_unlike(rng, setting, d) for _ in range(rest)])
    one, many = words(d), words(d, True)
    question = say(
        rng,
        setting,
        (
            f"Is there {a(one)}?",
            f"Is there {a(one)} in the picture?",
            f"Do you see {a(one)}?",
            f"Are there any {many}?",
        ),
        (f"Does the picture show {a(one)}?", f"Can you find any {many}?"),
    )
    answer = "yes" if found else "no"
    return QuestionDraft(
        things,
        question,
        answer,
        f" and look for {a(one)}",
        partial(reasonings.exist, d=d),
        f"Yes, there is {a(one)}." if found else f"No, I do not see {a(one)}.",
    )


def _unique(
    rng: random.Random, things: tuple[Thing, ...], target: Thing, families: tuple[str, ...]
) -> Description | None:
    """A random description by some of `families` that fits the target and nothing else."""
    kinds = [("shape",), ("colour",), ("colour", "shape"), ("size", "shape"), ("size", "colour")]
    kinds = [kind for kind in kinds if set(kind) <= set(families)]
    rng.shuffle(kinds)
    for kind in kinds:
        d = {family: getattr(target, family) for family in kind}
        if sum(matches(thing, d) for thing in things) == 1:
            return d
    return None


def attribute(rng: random.Random, setting: Setting) -> QuestionDraft:
    family = rng.choices(("colour", "shape", "size"), (5, 5, 2))[0]
    while True:
        things = _things(rng, setting)
        target = rng.choice(things)
        d = _unique(rng, things, target, tuple(f for f in FAMILIES if f != family))
        if d:
            break
    name = words(d)
    question = say(
        rng,
        setting,
        (
            f"What {family} is the {name}?",
            f"What is the {family} of the {name}?",
            f"Which {family} does the {name} have?",
        ),
        (f"Name the {family} of the {name}.", f"The {name}: what {family} is it?"),
    )
    answer = getattr(target, family)
    return QuestionDraft(
        things,
        question,
        answer,
        f", find the {name} and read its {family}",
        partial(reasonings.attribute, d=d, family=family),
        f"The {name} is {a(answer) if family == 'shape' else answer}.",
        some_others(rng, answer, FAMILIES[family]),
    )


def relation(rng: random.Random, setting: Setting) -> QuestionDraft:
    where, (axis, sign) = rng.choice(list(reasonings.SIDES.items()))
    wanted = rng.random() < 0.5
    while True:
        things = _things(rng, setting)
        first, second = rng.sample(things, 2)
        gap = getattr(first, axis) - getattr(second, axis)
        d = _unique(rng, things, first, tuple(FAMILIES))
        e = _unique(rng, things, second, tuple(FAMILIES))
        # Half of the ties are thrown away: they would be two fifths of all "no".
        if d and e and (gap * sign > 0) is wanted and (gap or rng.random() < 0.5):
            break
    x, y = words(d), words(e)
    question = say(
        rng,
        setting,
        (
            f"Is the {x} {where} the {y}?",
            f"In the picture, is the {x} {where} the {y}?",
            f"Do you see the {x} {where} the {y}?",
        ),
        (f"Would you say that the {x} is {where} the {y}?", f"The {x}: is it {where} the {y}?"),
    )
    answer = "yes" if gap * sign > 0 else "no"
    says = f"Yes, the {x} is" if answer == "yes" else f"No, the {x} is not"
    return QuestionDraft(
        things,
        question,
        answer,
        f", find the {x} and the {y} and compare their {axis}s",
        partial(reasonings.relation, first=d, second=e, where=where),
        f"{says} {where} the {y}.",
    )


def neighbour(rng: random.Random, setting: Setting) -> QuestionDraft:
    """Two steps: find one object, step to the cell beside it, read what is there."""
    where, (dx, dy) = rng.choice(list(reasonings.STEPS.items()))
    family = rng.choice(("colour", "shape"))
    while True:
        things = _things(rng, setting)
        by_cell = {(t.column, t.row): t for t in things}
        base = rng.choice(things)
        target = by_cell.get((base.column + dx, base.row + dy))
        d = _unique(rng, things, base, tuple(FAMILIES)) if target else None
        if d:
            break
    x = words(d)
    question = say(
        rng,
        setting,
        (
            f"What {family} is the object right {where} the {x}?"
            if dx == 0
            else f"What {family} is the object just {where} the {x}?",
            f"Which {family} does the object next to the {x}, {where} it, have?",
        ),
        (f"Look just {where} the {x}: what {family} is the object there?",),
    )
    answer = getattr(target, family)
    return QuestionDraft(
        things,
        question,
        answer,
        f", find the {x} and read the {family} of the object {where} it",
        partial(reasonings.neighbour, d=d, where=where, family=family),
        f"The object {where} the {x} is {a(answer) if family == 'shape' else answer}.",
        some_others(rng, answer, FAMILIES[family]),
    )


def twins(rng: random.Random, setting: Setting) -> QuestionDraft:
    """The only two objects that agree in colour and shape (or in all three attributes)."""
    families = rng.choice((("colour", "shape"), ("size", "colour", "shape")))
    while True:
        things = _things(rng, setting)
        looks = Counter(tuple(getattr(t, f) for f in families) for t in things)
        if sorted(looks.values())[-2:] == [1, 2] or list(looks.values()) == [2]:
            break
        if rng.random() < 0.7:  # such scenes are rare: make one
            twin = rng.choice(things)
            others = [t for t in things if t is not twin]
            look = {f: getattr(twin, f) for f in FAMILIES}
            others[rng.randrange(len(others))] = twin
            things = place(rng, [{f: getattr(t, f) for f in FAMILIES} for t in others] + [look])
            looks = Counter(tuple(getattr(t, f) for f in families) for t in things)
            if sorted(looks.values())[-2:] == [1, 2]:
                break
    shared = next(key for key, n in looks.items() if n == 2)
    pair = [t for t in things if tuple(getattr(t, f) for f in families) == shared]
    same = "the same colour and shape" if len(families) == 2 else "the same size, colour and shape"
    question = say(
        rng,
        setting,
        (
            f"Which two objects have {same}?",
            f"Which objects have {same}?",
            f"Find the two objects with {same}.",
        ),
        (f"Two of the objects have {same}. Where are they?",),
    )
    cells = [t.cell for t in things]
    pairs = [f"{p} and {q}" for i, p in enumerate(cells) for q in cells[i + 1 :]]
    answer = f"{pair[0].cell} and {pair[1].cell}"
    return QuestionDraft(
        things,
        question,
        answer,
        f" and find the two with {same}",
        partial(reasonings.twins, families=families),
        f"The objects at {answer} have {same}.",
        some_others(rng, answer, pairs),
    )


def shared(rng: random.Random, setting: Setting) -> QuestionDraft:
    """The only colour or shape that a certain number of objects have."""
    family = rng.choice(("colour", "shape"))
    while True:
        things = _things(rng, setting)
        if rng.random() < 0.8:  # repeat some values, or there is hardly ever an answer
            pool = rng.sample(FAMILIES[family], rng.randint(2, 4))
            things = tuple(
                place(
                    rng,
                    [
                        {f: getattr(t, f) for f in FAMILIES} | {family: rng.choice(pool)}
                        for t in things
                    ],
                )
            )
        counts = Counter(getattr(t, family) for t in things)
        wanted = rng.choice((2, 3, 4))
        having = [value for value, n in counts.items() if n == wanted]
        if len(having) == 1 and len(counts) > 1:
            break
    answer = having[0]
    question = say(
        rng,
        setting,
        (
            f"Which {family} do exactly {wanted} objects have?",
            f"What {family} do exactly {wanted} of the objects have?",
            f"There is one {family} that exactly {wanted} objects have. Which?",
        ),
        (f"Name the {family} of exactly {wanted} objects.",),
    )
    return QuestionDraft(
        things,
        question,
        answer,
        f" and find the {family} of exactly {wanted}",
        partial(reasonings.shared, family=family, wanted=wanted),
        f"Exactly {wanted} objects are {answer}{'s' if family == 'shape' else ''}.",
        some_others(rng, answer, FAMILIES[family]),
    )


MAKERS: dict[str, Callable[[random.Random, Setting], QuestionDraft]] = {
    "count": count,
    "subtract": subtract,
    "compare": compare,
    "exist": exist,
    "attribute": attribute,
    "relation": relation,
    "neighbour": neighbour,
    "twins": twins,
    "shared": shared,
}
