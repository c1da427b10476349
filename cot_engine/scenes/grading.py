"""Is an answer right, and how many objects of a caption are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from .world import FAMILIES, Thing

STAGES = ("SUMMARY", "CAPTION", "REASONING", "CONCLUSION")
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_GROUPS = (frozenset({"yes", "no"}), *(frozenset(values) for values in FAMILIES.values()))


def parse(response: str, stages: Iterable[str] = STAGES) -> dict[str, str] | None:
    """Stage -> text if the response is exactly the stages in order, none empty; else None."""
    stages = tuple(stages)
    pattern = r"\s*".join(rf"<{s}>\s*([^<>]*[^<>\s])\s*</{s}>" for s in stages)
    found = re.fullmatch(r"\s*" + pattern + r"\s*", response)
    return dict(zip(stages, found.groups(), strict=True)) if found else None


def grade(predicted: str, answer: str) -> bool:
    """Whether a text gives the answer: "1", "There is one red star." and "1." all give "1".

    A text with a CONCLUSION is graded by that alone. Words of the answer's own group (numbers,
    yes and no, colours, shapes, sizes) are picked out, and the answer must be the only one there.
    """
    inside = re.findall(r"<CONCLUSION>(.*?)(?:</CONCLUSION>|$)", predicted, re.DOTALL)
    words = re.findall(r"[a-z]+[0-9]+|[a-z]+|[0-9]+", (inside[-1] if inside else predicted).lower())
    words = [str(_NUMBERS.index(w)) if w in _NUMBERS else w for w in words]
    answer = answer.lower()
    if answer.isdigit():
        return {w for w in words if w.isdigit()} == {answer}
    group = next((g for g in _GROUPS if answer in g), None)
    if group is None:
        return words == answer.split()
    singular = {w.removesuffix("s") if w.removesuffix("s") in group else w for w in words}
    return singular & group == {answer}


def grade_caption(text: str, objects: Iterable[Thing]) -> tuple[int, int]:
    """(objects named rightly in cell, size, colour and shape; objects there are).

    An object too many takes the place of a right one, so naming everything earns nothing.
    """
    truth = Counter(str(thing) for thing in objects)
    said = Counter(part.strip() for part in text.strip().rstrip(".").split(",") if part.strip())
    right = sum((truth & said).values())
    extra = max(0, sum(said.values()) - sum(truth.values()))
    return max(0, right - extra), sum(truth.values())
