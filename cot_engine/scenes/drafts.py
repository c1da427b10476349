"""What a question is before its picture is drawn, and the words that all questions share."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cot_engine.scenes.charts import Bar
from cot_engine.scenes.world import FAMILIES, Setting, Thing

Told = tuple[str, str]
"""A reasoning up to and without its ending, and the answer: "D1 small star 1. ", "1"."""

Tell = Callable[[Any], Told | None]
"""From the objects of a picture to the reasoning of one question about it (see `reasonings`)."""


@dataclass(frozen=True)
class QuestionDraft:
    """A question before its picture: what is asked, of what, and how it is reasoned out."""

    objects: tuple[Thing, ...] | tuple[Bar, ...]
    question: str
    answer: str
    goal: str  # what SUMMARY says after "I list the objects": " and count the red stars"
    tell: Tell  # how it is reasoned out
    sentence: str  # the answer as a full sentence
    others: tuple[str, ...] = ()  # wrong answers that could be options; none: never asked so


def say(rng: random.Random, setting: Setting, usual: Sequence[str], unseen: Sequence[str]) -> str:
    """One of the wordings; those of `unseen` are kept for the out-of-distribution set."""
    return rng.choice(unseen if setting.unseen else usual)


Description = dict[str, str]  # attributes by family, a subset of size, colour and shape


def fits(look: Description, description: Description) -> bool:
    return all(look[family] == value for family, value in description.items())


def matches(thing: Thing, description: Description) -> bool:
    return all(getattr(thing, family) == value for family, value in description.items())


def words(description: Description, plural: bool = False, noun: str = "object") -> str:
    """ "red star", "small objects": adjectives in the order size, colour, then the shape."""
    parts = [description[f] for f in ("size", "colour") if f in description]
    return " ".join([*parts, description.get("shape", noun)]) + ("s" if plural else "")


def a(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def seen(thing: Thing, families: Sequence[str]) -> str:
    """The cell and some attributes, in the order of speech: "B1 red star"."""
    return " ".join([thing.cell, *(getattr(thing, f) for f in FAMILIES if f in families)])


def joined(names: Sequence[str]) -> str:
    """ "red and blue", "red and blue and green"."""
    return " and ".join(names)


def options_of(question: str) -> dict[str, str]:
    """Letter -> text of a multiple-choice question; empty for an open one."""
    return dict(re.findall(r"\(([A-D])\) (.*?)(?= \([A-D]\)|$)", question.partition("\n")[2]))


def ending(found: str, options: Mapping[str, str], letter: str) -> str:
    """How a reasoning goes from what it found to what it concludes: "So 3.", or, where that is one
    of several options, past these to the one taken: "So 3. A 4. B 3. So B."

    Without that walk a small model never learnt which letter stands before a text.
    """
    if not options:
        return f"So {found}."
    passed = "".join(f"{each} {text}. " for each, text in options.items() if each <= letter)
    return f"So {found}. {passed}So {letter}."


def concluded(rng: random.Random, found: str, options: Mapping[str, str]) -> tuple[str, str]:
    """The ending of a reasoning that found this, and its CONCLUSION. Where it is none of the
    options, the last one is said to be it, or the walk ends at any."""
    if not options:
        return ending(found, options, found), found
    named = [c for c, text in options.items() if set(text.split()) == set(found.split())]
    if named:
        return ending(found, options, named[0]), named[0]
    last = max(options)
    if rng.random() < 0.6:
        return ending(found, {**options, last: found}, last), last
    letter = rng.choice(sorted(options))
    return ending(found, options, letter), letter


def missed(rng: random.Random, found: str, options: Mapping[str, str]) -> tuple[str, str]:
    """The same of one that goes past the option that it found, or stops too early."""
    [right] = [c for c, text in options.items() if text == found]
    letter = rng.choice([c for c in options if c != right])
    if letter > right and rng.random() < 0.7:
        options = {**options, letter: found}
    return ending(found, options, letter), letter


def some_others(rng: random.Random, answer: str, pool: Sequence[str]) -> tuple[str, ...]:
    """Three wrong answers out of a pool, or fewer if it has fewer."""
    rest = [value for value in dict.fromkeys(pool) if value != answer]
    return tuple(rng.sample(rest, min(3, len(rest))))


def near_numbers(rng: random.Random, answer: int) -> tuple[str, ...]:
    """Three other numbers, not below 0, near the answer."""
    pool = [n for n in range(max(0, answer - 3), answer + 4) if n != answer]
    return tuple(str(n) for n in rng.sample(pool, 3))
