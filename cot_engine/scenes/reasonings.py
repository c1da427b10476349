"""How the questions are reasoned out, given what was seen.

A function takes the objects of a picture, in reading order, and what the question asks about. It
returns the reasoning without its ending and the answer that it comes to, or None where what is
asked about is not there. The same functions tell how eyes that see other objects would reason: well
to a wrong answer. What is said then cannot be told from a right reasoning by its words alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations

from cot_engine.scenes.charts import Bar
from cot_engine.scenes.drafts import Description, Told, joined, matches, seen
from cot_engine.scenes.world import Thing


def order(p: int, q: int) -> str:
    return "more than" if p > q else "less than" if p < q else "the same as"


# --- things --------------------------------------------------------------------------------------

SIDES = {  # words -> (axis, sign of first minus second for the words to hold)
    "left of": ("column", -1),
    "right of": ("column", 1),
    "above": ("row", -1),
    "below": ("row", 1),
}
STEPS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}


def _listed(things: Sequence[Thing], d: Description) -> tuple[str, int]:
    """A walk over all things, those that fit numbered: "B1 red star 1. C2 blue star. ", and how
    many they are. Restating what is compared is what makes the comparison learnable."""
    parts, found = [], 0
    for thing in things:
        found += matches(thing, d)
        parts.append(seen(thing, tuple(d)) + (f" {found}. " if matches(thing, d) else ". "))
    return "".join(parts), found


def _found(things: Sequence[Thing], d: Description) -> tuple[str, Thing | None]:
    """The same walk, over at the first thing that fits; None if nothing does."""
    target = next((thing for thing in things if matches(thing, d)), None)
    end = len(things) if target is None else things.index(target) + 1
    return _listed(things[:end], d)[0], target


def count(things: Sequence[Thing], d: Description) -> Told:
    walk, found = _listed(things, d)
    return walk, str(found)


def subtract(things: Sequence[Thing], d: Description) -> Told:
    walk, gone = _listed(things, d)
    left = len(things) - gone
    return f"All {len(things)}. {walk}{len(things)} - {gone} = {left}. ", str(left)


def compare(things: Sequence[Thing], first: Description, second: Description, more: bool) -> Told:
    (walk_x, p), (walk_y, q) = _listed(things, first), _listed(things, second)
    word, holds = ("more", p > q) if more else ("less", p < q)
    return f"{walk_x}{walk_y}{word} than? {p} is {order(p, q)} {q}. ", "yes" if holds else "no"


def exist(things: Sequence[Thing], d: Description) -> Told:
    walk, target = _found(things, d)
    return walk, "yes" if target else "no"


def attribute(things: Sequence[Thing], d: Description, family: str) -> Told | None:
    walk, target = _found(things, d)
    if target is None:
        return None
    answer = getattr(target, family)
    return f"{walk}{target.cell} {answer}. ", answer


def relation(
    things: Sequence[Thing], first: Description, second: Description, where: str
) -> Told | None:
    (walk_x, x), (walk_y, y) = _found(things, first), _found(things, second)
    if x is None or y is None:
        return None
    axis, sign = SIDES[where]
    gap = getattr(x, axis) - getattr(y, axis)
    at = "ABCD" if axis == "column" else "1234"
    p, q = at[getattr(x, axis)], at[getattr(y, axis)]
    lower, higher = ("left of", "right of") if axis == "column" else ("above", "below")
    actual = lower if gap < 0 else higher if gap > 0 else "the same as"
    body = f"{walk_x}{walk_y}{where}? {p} is {actual} {q}. "
    return body, "yes" if gap * sign > 0 else "no"


def neighbour(things: Sequence[Thing], d: Description, where: str, family: str) -> Told | None:
    """Two steps: find one object, step to the cell beside it, read what is there."""
    walk, base = _found(things, d)
    if base is None:
        return None
    dx, dy = STEPS[where]
    by_cell = {(thing.column, thing.row): thing for thing in things}
    target = by_cell.get((base.column + dx, base.row + dy))
    if target is None:
        return None
    answer = getattr(target, family)
    return f"{walk}{target.cell} is {where} {base.cell}. {target.cell} {answer}. ", answer


def twins(things: Sequence[Thing], families: Sequence[str]) -> Told | None:
    """The first two that agree in all the families."""
    for p, q in combinations(things, 2):
        if all(getattr(p, family) == getattr(q, family) for family in families):
            return f"{seen(p, families)}. {seen(q, families)}. ", f"{p.cell} and {q.cell}"
    return None


def shared(things: Sequence[Thing], family: str, wanted: int) -> Told | None:
    """The first value that exactly so many have."""
    counts = Counter(getattr(thing, family) for thing in things)
    value = next((value for value, n in counts.items() if n == wanted), None)
    if value is None:
        return None
    having = [thing for thing in things if getattr(thing, family) == value]
    return "".join(f"{seen(t, (family,))} {i}. " for i, t in enumerate(having, 1)), value


# --- bars ----------------------------------------------------------------------------------------


def _named(bars: Sequence[Bar], colours: Sequence[str]) -> list[Bar] | None:
    """The bars of these colours, in this order; None if one is not there."""
    by_colour = {bar.colour: bar for bar in bars}
    return [by_colour[c] for c in colours] if all(c in by_colour for c in colours) else None


def read(bars: Sequence[Bar], colour: str) -> Told | None:
    named = _named(bars, [colour])
    return (f"{named[0]}. ", str(named[0].height)) if named else None


def add(bars: Sequence[Bar], colours: Sequence[str]) -> Told | None:
    if not (named := _named(bars, colours)):
        return None
    p, q = named
    return added(p, q)[0], str(p.height + q.height)


def gap(bars: Sequence[Bar], colours: Sequence[str]) -> Told | None:
    """None also where the first bar is not higher than the second."""
    if not (named := _named(bars, colours)) or named[0].height <= named[1].height:
        return None
    p, q = named
    return subtracted(p, q)[0], str(p.height - q.height)


def rank(bars: Sequence[Bar], word: str, second: bool) -> Told:
    """`word` is "highest" or "lowest"; of bars of the same height the one more to the left."""
    ranked = sorted(bars, key=lambda bar: bar.height, reverse=word == "highest")
    if not second:
        return f"{word} {ranked[0]}. ", ranked[0].colour
    return f"{word} {ranked[0]}. second {word} {ranked[1]}. ", ranked[1].colour


def above(bars: Sequence[Bar], level: int) -> Told:
    found = [bar for bar in bars if bar.height > level]
    walk = "".join(f"{bar} {i}. " for i, bar in enumerate(found, 1))
    return walk or f"No bar above {level}. ", str(len(found))


def outweigh(bars: Sequence[Bar], colours: Sequence[str]) -> Told | None:
    """Whether the first of three bars is more than the other two together."""
    if not (named := _named(bars, colours)):
        return None
    big, p, q = named
    total = p.height + q.height
    body = f"{added(p, q)[0]}{big}. {big.height} is {order(big.height, total)} {total}. "
    return body, "yes" if big.height > total else "no"


def added(p: Bar, q: Bar, *rest: Bar) -> Told:
    """Bars summed one after the other, and their names: "red 2. blue 3. 2 + 3 = 5. "."""
    total = p.height + q.height
    body = f"{p}. {q}. {p.height} + {q.height} = {total}. "
    for bar in rest:
        body += f"{bar}. {total} + {bar.height} = {total + bar.height}. "
        total += bar.height
    return body, joined([bar.colour for bar in (p, q, *rest)])


def choose_sum(bars: Sequence[Bar], size: int, total: int) -> Told | None:
    """The first `size` bars that make `total` together."""
    for group in combinations(bars, size):
        if sum(bar.height for bar in group) == total:
            return added(*group)
    return None


def subtracted(p: Bar, q: Bar) -> Told:
    """The difference of two bars, and their names: "red 5. blue 3. 5 - 3 = 2. "."""
    left = p.height - q.height
    return f"{p}. {q}. {p.height} - {q.height} = {left}. ", joined([p.colour, q.colour])


def choose_gap(bars: Sequence[Bar], left: int) -> Told | None:
    """The first two bars that are so far apart, the higher one named first."""
    for p, q in combinations(bars, 2):
        if abs(p.height - q.height) == left:
            return subtracted(p, q) if p.height > q.height else subtracted(q, p)
    return None
