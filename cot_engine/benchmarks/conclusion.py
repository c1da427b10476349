"""Our own rules: the CONCLUSION alone is read, as this package grades data sets.

Published rules read all that a model wrote; where it reasons first, a letter or a yes of its
reasoning becomes its answer. The rules here are those of `questions.grading`, which say what they
do differently; what they cannot decide stays open.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from cot_engine.benchmarks.said import OPEN, Said
from cot_engine.core.grammar import conclusion
from cot_engine.core.stages import DEFAULT_PLAN, Plan
from cot_engine.questions.grading import Grader, option, verdict

_YES_NO = re.compile(r"\b(yes|no)\b", re.IGNORECASE)
_FIRST = re.compile(r"\W*\b(yes|no)\b\W*(?:[.,;:!]|$|\bit\b|\bthe\b|\bthis\b)", re.IGNORECASE)


def concluded(text: str, plan: Plan = DEFAULT_PLAN) -> str:
    """What is read of a response: its last stage, or all of it where it has no stages."""
    return conclusion(text, plan)


def is_staged(text: str, plan: Plan = DEFAULT_PLAN) -> bool:
    """Is there more in the text than is read of it?"""
    return concluded(text, plan) != text.strip()


def choice(text: str, options: Mapping[str, str]) -> Said:
    """The one option that the CONCLUSION names: by being its text or letter, by one letter among
    its words that is no article, or by one option's text as whole words."""
    said = concluded(text)
    found = option(said, options)
    return Said(found, "the one option that it names") if found else Said(None, "none, or several")


def yes_no(text: str) -> Said:
    """Yes or No: the only one of them that the CONCLUSION has, or the one that it begins with."""
    said = concluded(text).strip("*_` \n")
    found = {word.lower() for word in _YES_NO.findall(said)}
    if len(found) == 1:
        return Said(found.pop().title(), "the only one of yes and no")
    if found and (first := _FIRST.match(said)):
        return Said(first[1].title(), "what it begins with")
    return Said(None, "both yes and no") if found else OPEN


def free(text: str, answers: Sequence[str], *, relaxed: bool = False) -> tuple[Said, bool | None]:
    """A free answer against those of which any will do, numbers by value (`relaxed`: within 5 %).
    None where other words may mean the same and only who reads could tell."""
    said = concluded(text).strip()
    right = verdict(Grader("relaxed" if relaxed else "exact", tuple(answers)), said)
    return Said(said, "all of it") if right is not None else OPEN, right
