"""Answers to questions of the scenes world, out of their wording alone: no code shared with what
makes them."""

from __future__ import annotations

import re
from collections import Counter
from itertools import combinations

from cot_engine.scenes import Bar
from cot_engine.scenes.world import FAMILIES

NUMBER = r"(\d+)"


def looks(words: str):
    """A test for things out of an English description: "small red stars"."""
    named = {
        w.removesuffix("s") if w.removesuffix("s") in FAMILIES["shape"] else w
        for w in words.split()
    }
    wanted = named & {v for values in FAMILIES.values() for v in values}
    assert wanted, words
    return lambda t: wanted <= {t.size, t.colour, t.shape}


SHAPE_RULES = {  # a pattern of the question -> its answer out of the things and the groups
    r"How many objects are left if all the (.*) are removed"
    r"|How many objects remain if you take away the (.*)"
    r"|If all the (.*) are removed, how many objects are left"
    r"|Take away all the (.*)\. How many objects are left"
    r"|How many are not (.*)": lambda ts, x: len(ts) - sum(map(looks(x), ts)),
    r"How many (.*) are there|How many (.*) are in the picture|How many (.*) do you see"
    r"|Count the (.*)|What is the number of (.*)"
    r"|Give the number of (.*) in the picture": lambda ts, x: sum(map(looks(x), ts)),
    r"(?:Are there|Do you see) more (.*) than (.*?)(?: in the picture)?"
    r"|Is the number of (.*) greater than the number of (.*)": lambda ts, x, y: (
        sum(map(looks(x), ts)) > sum(map(looks(y), ts))
    ),
    r"(?:Are there|Do you see) fewer (.*) than (.*?)(?: in the picture)?"
    r"|Is the number of (.*) smaller than the number of (.*)": lambda ts, x, y: (
        sum(map(looks(x), ts)) < sum(map(looks(y), ts))
    ),
    r"(?:What|Which) (\w+) is the object (?:right|just) (left of|right of|above|below) the (.*)"
    r"": lambda ts, f, where, x: getattr(beside(ts, one(ts, x), where), f),
    r"Which (\w+) does the object next to the (.*), (left of|right of|above|below) it, have"
    r"": lambda ts, f, x, where: getattr(beside(ts, one(ts, x), where), f),
    r"Look just (left of|right of|above|below) the (.*): what (\w+) is the object there"
    r"": lambda ts, where, x, f: getattr(beside(ts, one(ts, x), where), f),
    r"(?:Is|Do you see|In the picture, is|Would you say that) the (.*?)(?: is)? "
    r"(left of|right of|above|below) the (.*)"
    r"|The (.*): is it (left of|right of|above|below) the (.*)": lambda ts, x, where, y: {
        "left of": lambda p, q: p.column < q.column,
        "right of": lambda p, q: p.column > q.column,
        "above": lambda p, q: p.row < q.row,
        "below": lambda p, q: p.row > q.row,
    }[where](one(ts, x), one(ts, y)),
    r"(?:Is there|Do you see|Does the picture show) an? (.*?)(?: in the picture)?"
    r"|(?:Are there|Can you find) any (.*)": lambda ts, x: any(map(looks(x), ts)),
    r"(?:Which|Find the) (?:two )?objects (?:have|with) the same (.*)"
    r"|Two of the objects have the same (.*)\. Where are they": lambda ts, same: alike(ts, same),
    rf"(?:Which|What) (\w+) do exactly {NUMBER} (?:of the )?objects have"
    rf"|There is one (\w+) that exactly {NUMBER} objects have. Which"
    rf"|Name the (\w+) of exactly {NUMBER} objects": lambda ts, f, n: having(ts, f, int(n)),
    r"(?:What|Which) (\w+) (?:is|does) the (.*?)(?: have)?"
    r"|What is the (\w+) of the (.*)|Name the (\w+) of the (.*)": lambda ts, f, x: getattr(
        one(ts, x), f
    ),
    r"The (.*): what (\w+) is it": lambda ts, x, f: getattr(one(ts, x), f),
}

BAR_RULES = {
    r"How high is the (\w+) bar|What is the height of the (\w+) bar"
    r"|What value does the (\w+) bar have|Read the (\w+) bar"
    r"|How tall is the bar in (\w+)": lambda h, x: h[x],
    r"How much are the (\w+) bar and the (\w+) bar together"
    r"|What do the (\w+) bar and the (\w+) bar add up to"
    r"|What is the sum of the (\w+) bar and the (\w+) bar"
    r"|Add the (\w+) bar to the (\w+) bar": lambda h, x, y: h[x] + h[y],
    r"How much higher is the (\w+) bar than the (\w+) bar"
    r"|What is the difference between the (\w+) bar and the (\w+) bar"
    r"|By how much is the (\w+) bar higher than the (\w+) bar": lambda h, x, y: h[x] - h[y],
    r"Subtract the (\w+) bar from the (\w+) bar": lambda h, x, y: h[y] - h[x],
    r"(?:Which bar is|What colour is|Which is|Name the colour of) the (second )?(highest|lowest)"
    r"(?: bar)?": lambda h, second, end: sorted(h, key=h.get, reverse=end == "highest")[
        bool(second)
    ],
    rf"How many bars are (?:higher than|above) {NUMBER}|Count the bars higher than {NUMBER}"
    rf"|What is the number of bars above {NUMBER}": lambda h, n: sum(
        v > int(n) for v in h.values()
    ),
    r"Is (?:the )?(\w+)(?: bar)? (?:higher|more) than (\w+) and (\w+) together"
    r"": lambda h, x, p, q: h[x] > h[p] + h[q],
    r"Do (\w+) and (\w+) together stay below the (\w+) bar": lambda h, p, q, x: h[x] > h[p] + h[q],
    rf"Which two bars (?:add up to|are) {NUMBER}(?: together)?|Find two bars with the sum {NUMBER}"
    rf"|Two of the bars make {NUMBER} together\. Which two": lambda h, n: chosen(
        h, 2, n, lambda x, y: x + y
    ),
    rf"Which two bars (?:differ by|have a difference of) {NUMBER}"
    rf"|Find two bars with the difference {NUMBER}"
    rf"|Two of the bars are {NUMBER} apart\. Which two": lambda h, n: chosen(
        h, 2, n, lambda x, y: abs(x - y)
    ),
    rf"Which three bars (?:add up to|are) {NUMBER}(?: together)?"
    rf"|Find three bars with the sum {NUMBER}"
    rf"|Three of the bars make {NUMBER} together\. Which three": lambda h, n: chosen(
        h, 3, n, lambda x, y, z: x + y + z
    ),
}


def one(things, words: str):
    (thing,) = filter(looks(words), things)
    return thing


def beside(things, base, where: str):
    dx, dy = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}[where]
    (there,) = [t for t in things if (t.column, t.row) == (base.column + dx, base.row + dy)]
    return there


def alike(things, same: str) -> str:
    families = [f for f in FAMILIES if f in same]
    pairs = [
        f"{p.cell} and {q.cell}"
        for p, q in combinations(things, 2)
        if all(getattr(p, f) == getattr(q, f) for f in families)
    ]
    (pair,) = pairs
    return pair


def having(things, family: str, n: int) -> str:
    (value,) = [v for v, k in Counter(getattr(t, family) for t in things).items() if k == n]
    return value


def chosen(heights, size: int, wanted: str, value) -> str:
    (found,) = [
        group
        for group in combinations(heights, size)
        if value(*(heights[c] for c in group)) == int(wanted)
    ]
    return " and ".join(found)


def brute_force(question: str, objects) -> str:
    """The answer out of the question's wording alone, sharing no code with the generator."""
    asked, _, options = question.partition("\n")
    asked = asked.rstrip("?.")
    asked = asked[0].upper() + asked[1:]
    bars = isinstance(objects[0], Bar)
    for pattern, rule in (BAR_RULES if bars else SHAPE_RULES).items():
        if found := re.fullmatch(pattern, asked):
            parts = found.groups()
            if len(parts) > (size := rule.__code__.co_argcount - 1):  # alternatives
                groups = [parts[i : i + size] for i in range(0, len(parts), size)]
                parts = next(g for g in groups if any(g))
            answer = rule({b.colour: b.height for b in objects} if bars else objects, *parts)
            answer = ("no", "yes")[answer] if isinstance(answer, bool) else str(answer)
            if not options:
                return answer
            listed = re.findall(r"\(([A-D])\) (.*?)(?= \([A-D]\)|$)", options)
            (letter,) = [c for c, text in listed if parted(text) == parted(answer)]
            return letter
    raise AssertionError(f"no rule for {question!r}")


def parted(answer: str) -> frozenset[str]:
    return frozenset(answer.split(" and "))
