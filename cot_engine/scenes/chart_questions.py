"""Questions about bar charts: to read, to compute with, and to search.

"pair-sum", "pair-gap" and "triple-sum" ask which bars have a property together: there are 6 to 35
ways to choose them, and one addition to check a choice.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from itertools import combinations

from cot_engine.scenes import reasonings
from cot_engine.scenes.charts import TALLEST, Bar, random_bars
from cot_engine.scenes.drafts import QuestionDraft, joined, near_numbers, say, some_others
from cot_engine.scenes.world import Setting


def read(rng: random.Random, setting: Setting) -> QuestionDraft:
    bars = random_bars(rng, setting)
    bar = rng.choice(bars)
    question = say(
        rng,
        setting,
        (
            f"How high is the {bar.colour} bar?",
            f"What is the height of the {bar.colour} bar?",
            f"What value does the {bar.colour} bar have?",
        ),
        (f"Read the {bar.colour} bar.", f"How tall is the bar in {bar.colour}?"),
    )
    return QuestionDraft(
        bars,
        question,
        str(bar.height),
        f" and read {bar.colour}",
        partial(reasonings.read, colour=bar.colour),
        f"The {bar.colour} bar is {bar.height} high.",
        near_numbers(rng, bar.height),
    )


def add(rng: random.Random, setting: Setting) -> QuestionDraft:
    bars = random_bars(rng, setting)
    p, q = rng.sample(bars, 2)
    total = p.height + q.height
    question = say(
        rng,
        setting,
        (
            f"How much are the {p.colour} bar and the {q.colour} bar together?",
            f"What do the {p.colour} bar and the {q.colour} bar add up to?",
            f"What is the sum of the {p.colour} bar and the {q.colour} bar?",
        ),
        (f"Add the {p.colour} bar to the {q.colour} bar.",),
    )
    return QuestionDraft(
        bars,
        question,
        str(total),
        f" and add {p.colour} and {q.colour}",
        partial(reasonings.add, colours=(p.colour, q.colour)),
        f"Together the {p.colour} bar and the {q.colour} bar are {total}.",
        near_numbers(rng, total),
    )


def gap(rng: random.Random, setting: Setting) -> QuestionDraft:
    while True:
        bars = random_bars(rng, setting)
        p, q = rng.sample(bars, 2)
        if p.height > q.height:
            break
    left = p.height - q.height
    question = say(
        rng,
        setting,
        (
            f"How much higher is the {p.colour} bar than the {q.colour} bar?",
            f"What is the difference between the {p.colour} bar and the {q.colour} bar?",
            f"By how much is the {p.colour} bar higher than the {q.colour} bar?",
        ),
        (f"Subtract the {q.colour} bar from the {p.colour} bar.",),
    )
    return QuestionDraft(
        bars,
        question,
        str(left),
        f" and subtract {q.colour} from {p.colour}",
        partial(reasonings.gap, colours=(p.colour, q.colour)),
        f"The {p.colour} bar is {left} higher than the {q.colour} bar.",
        near_numbers(rng, left),
    )


def rank(rng: random.Random, setting: Setting) -> QuestionDraft:
    """The highest, the lowest, or the second of either."""
    top, second = rng.random() < 0.5, rng.random() < 0.5
    while True:
        bars = random_bars(rng, setting)
        order = sorted(bars, key=lambda bar: bar.height, reverse=top)
        if len({bar.height for bar in order[:3]}) == 3:
            break
    word, target = "highest" if top else "lowest", order[1 if second else 0]
    name = f"second {word}" if second else word
    question = say(
        rng,
        setting,
        (
            f"Which bar is the {name}?",
            f"What colour is the {name} bar?",
            f"Which is the {name} bar?",
        ),
        (f"Name the colour of the {name} bar.",),
    )
    return QuestionDraft(
        bars,
        question,
        target.colour,
        f" and find the {name}",
        partial(reasonings.rank, word=word, second=second),
        f"The {name} bar is {target.colour}.",
        some_others(rng, target.colour, [bar.colour for bar in bars]),
    )


def above(rng: random.Random, setting: Setting) -> QuestionDraft:
    wanted = rng.choices(range(5), (2, 4, 4, 4, 3))[0]
    while True:
        bars = random_bars(rng, setting)
        level = rng.randint(2, TALLEST - 1)
        found = [bar for bar in bars if bar.height > level]
        if len(found) == wanted:
            break
    question = say(
        rng,
        setting,
        (
            f"How many bars are higher than {level}?",
            f"How many bars are above {level}?",
            f"Count the bars higher than {level}.",
        ),
        (f"What is the number of bars above {level}?",),
    )
    return QuestionDraft(
        bars,
        question,
        str(wanted),
        f" and count those above {level}",
        partial(reasonings.above, level=level),
        f"{wanted} {'bar is' if wanted == 1 else 'bars are'} higher than {level}.",
        near_numbers(rng, wanted),
    )


def outweigh(rng: random.Random, setting: Setting) -> QuestionDraft:
    """Is one bar more than two others together?"""
    wanted = rng.random() < 0.5
    while True:
        bars = random_bars(rng, setting)
        big, p, q = rng.sample(bars, 3)
        total = p.height + q.height
        if (big.height > total) is wanted and abs(big.height - total) <= 6:
            break
    question = say(
        rng,
        setting,
        (
            f"Is the {big.colour} bar higher than {p.colour} and {q.colour} together?",
            f"Is {big.colour} more than {p.colour} and {q.colour} together?",
        ),
        (f"Do {p.colour} and {q.colour} together stay below the {big.colour} bar?",),
    )
    answer = "yes" if wanted else "no"
    return QuestionDraft(
        bars,
        question,
        answer,
        f", add {p.colour} and {q.colour} and compare with {big.colour}",
        partial(reasonings.outweigh, colours=(big.colour, p.colour, q.colour)),
        f"{answer.capitalize()}, {big.colour} is {big.height} and the others {total}.",
    )


def _choice(rng: random.Random, setting: Setting, size: int, value: Callable) -> tuple:
    """Bars, and the only `size` of them for which `value` is what it is."""
    while True:
        bars = random_bars(rng, setting)
        groups = list(combinations(bars, size))
        chosen = rng.choice(groups)
        wanted = value(*chosen)
        if wanted and sum(value(*group) == wanted for group in groups) == 1:
            return bars, groups, chosen, wanted


def _names(bars: tuple[Bar, ...]) -> str:
    return joined([bar.colour for bar in bars])


def pair_sum(rng: random.Random, setting: Setting) -> QuestionDraft:
    bars, groups, (p, q), total = _choice(rng, setting, 2, lambda x, y: x.height + y.height)
    question = say(
        rng,
        setting,
        (
            f"Which two bars add up to {total}?",
            f"Which two bars are {total} together?",
            f"Find two bars with the sum {total}.",
        ),
        (f"Two of the bars make {total} together. Which two?",),
    )
    return QuestionDraft(
        bars,
        question,
        _names((p, q)),
        f" and find two with the sum {total}",
        partial(reasonings.choose_sum, size=2, total=total),
        f"{_names((p, q))} add up to {total}.",
        some_others(rng, _names((p, q)), [_names(group) for group in groups]),
    )


def pair_gap(rng: random.Random, setting: Setting) -> QuestionDraft:
    bars, groups, pair, left = _choice(rng, setting, 2, lambda x, y: abs(x.height - y.height))
    p, q = sorted(pair, key=lambda bar: -bar.height)
    question = say(
        rng,
        setting,
        (
            f"Which two bars differ by {left}?",
            f"Which two bars have a difference of {left}?",
            f"Find two bars with the difference {left}.",
        ),
        (f"Two of the bars are {left} apart. Which two?",),
    )
    return QuestionDraft(
        bars,
        question,
        _names((p, q)),
        f" and find two with the difference {left}",
        partial(reasonings.choose_gap, left=left),
        f"{_names((p, q))} differ by {left}.",
        some_others(
            rng,
            _names((p, q)),
            [_names(tuple(sorted(g, key=lambda bar: -bar.height))) for g in groups],
        ),
    )


def triple_sum(rng: random.Random, setting: Setting) -> QuestionDraft:
    bars, groups, three, total = _choice(
        rng, setting, 3, lambda x, y, z: x.height + y.height + z.height
    )
    question = say(
        rng,
        setting,
        (
            f"Which three bars add up to {total}?",
            f"Which three bars are {total} together?",
            f"Find three bars with the sum {total}.",
        ),
        (f"Three of the bars make {total} together. Which three?",),
    )
    return QuestionDraft(
        bars,
        question,
        _names(three),
        f" and find three with the sum {total}",
        partial(reasonings.choose_sum, size=3, total=total),
        f"{_names(three)} add up to {total}.",
        some_others(rng, _names(three), [_names(group) for group in groups]),
    )


MAKERS: dict[str, Callable[[random.Random, Setting], QuestionDraft]] = {
    "read": read,
    "add": add,
    "gap": gap,
    "rank": rank,
    "above": above,
    "outweigh": outweigh,
    "pair-sum": pair_sum,
    "pair-gap": pair_gap,
    "triple-sum": triple_sum,
}
