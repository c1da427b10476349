"""Is an answer right, and how many objects of a caption are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from cot_engine.scenes.charts import Bar
from cot_engine.scenes.world import FAMILIES, Thing

STAGES = ("SUMMARY", "CAPTION", "REASONING", "CONCLUSION")
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_GROUPS = (frozenset({"yes", "no"}), *(frozenset(values) for values in FAMILIES.values()))


def parse(response: str, stages: Iterable[str] = STAGES) -> dict[str, str] | None:
    """Stage -> text if the response is exactly the stages in order, none empty; else None."""
    stages = tuple(stages)
    pattern = r"\s*".join(rf"<{s}>\s*([^<>]*[^<>\s])\s*</{s}>" for s in stages)
    found = re.fullmatch(r"\s*" + pattern + r"\s*", response)
    return dict(zip(stages, found.groups(), strict=True)) if found else None


def _words(text: str) -> list[str]:
    found = re.findall(r"[a-z]+[0-9]+|[a-z]+|[0-9]+", text.lower())
    return [str(_NUMBERS.index(w)) if w in _NUMBERS else w for w in found]


def grade(predicted: str, answer: str) -> bool:
    """Whether a text gives the answer: "1", "There is one red star." and "1." all give "1".

    A text with a CONCLUSION is graded by that alone. Words of the answer's own group (numbers,
    yes and no, colours, shapes, sizes, cells, option letters) are picked out, and the answer must
    be the only one there; "red and blue" is also "blue and red".
    """
    inside = re.findall(r"<CONCLUSION>(.*?)(?:</CONCLUSION>|$)", predicted, re.DOTALL)
    said = inside[-1] if inside else predicted
    words = _words(said)
    if answer in ("A", "B", "C", "D"):  # "a red star" is no option
        return set(re.findall(r"\b[A-D]\b", said)) == {answer}
    answer = answer.lower()
    if answer.isdigit():
        return {w for w in words if w.isdigit()} == {answer}
    parts = set(answer.split(" and "))
    if all(re.fullmatch(r"[a-d][1-4]", part) for part in parts):
        return {w for w in words if re.fullmatch(r"[a-d][1-4]", w)} == parts
    group = next((g for g in _GROUPS if parts <= g), None)
    if group is None:
        return words == answer.split()
    singular = {w.removesuffix("s") if w.removesuffix("s") in group else w for w in words}
    return singular & group == parts


def facts(text: str) -> list[str]:
    """What a caption says, a fact a sentence, in the usual wording whatever wording it has.

    "B1 star, red, small." becomes "B1 small red star", "red is 5." becomes "red 5".
    """
    said = []
    for sentence in re.split(r"[.\n]+", text):
        words = re.findall(r"[A-D][1-4]\b|[a-z]+|[0-9]+", sentence)
        if not words:
            continue
        order = {w: i for i, w in enumerate(_ORDER)}
        words = [w for w in words if w not in ("is", "bar")]
        said.append(
            " ".join(sorted(words, key=lambda w: order.get(w, -1 if w[0] in "ABCD" else 99)))
        )
    return said


_ORDER = [value for values in FAMILIES.values() for value in values]


def grade_caption(text: str, objects: Iterable[Thing | Bar]) -> tuple[int, int]:
    """(objects named rightly in all they have, objects there are), in any wording.

    An object too many takes the place of a right one, so naming everything earns nothing.
    """
    truth = Counter(str(thing) for thing in objects)
    said = Counter(facts(text))
    right = sum((truth & said).values())
    extra = max(0, sum(said.values()) - sum(truth.values()))
    return max(0, right - extra), sum(truth.values())
