"""MathVista: from what was extracted to an answer that can be compared.

`official` is after `normalize_extracted_answer` in `evaluation/calculate_score.py`, `quick` after
`extract_answer` in `evaluation/extract_answer.py`, of lupantech/MathVista at 53d52587 (2025-09-28).
`whole_2023` is the integer rule that its published scores of some models follow, before its first
public commit. `vlmevalkit` is after `post_check` in `vlmeval/dataset/utils/mathvista.py` of
open-compass/VLMEvalKit, the same at e42058a1 and e8e78f05.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from string import ascii_uppercase as LETTERS

from cot_engine.benchmarks.said import OPEN, Said

BREAKDOWNS = "question_type answer_type language source category task context grade skills".split()
"""What MathVista's own score files are broken down by; a question has several skills."""
_LETTER = re.compile(r"\(([a-zA-Z])\)")
_NUMBERS = ("integer", "float")


@dataclass(frozen=True, slots=True)
class Asked:
    """What kind of an answer a question has. `precision`: digits after the point of a float."""

    question_type: str
    answer_type: str
    answer: str
    precision: int | None = None
    choices: tuple[str, ...] = ()

    @property
    def several(self) -> bool:
        """Is one of several choices asked for?"""
        return self.question_type == "multi_choice"

    @property
    def letter(self) -> str:
        """That of the right choice; "" where there is none."""
        return LETTERS[self.choices.index(self.answer)] if self.answer in self.choices else ""


# --- the benchmark's own rules -------------------------------------------------------------------


def whole(text: str) -> str:
    """A whole number, whatever stands behind its point: "14.7" is 14. Raises ValueError,
    OverflowError."""
    return str(int(float(text)))


def whole_2023(text: str) -> str:
    """A whole number written as one: "14.0" is none. Raises ValueError."""
    return str(int(text))


def quick(response: str, asked: Asked) -> Said:
    """What is extracted without a model: a response that is a choice, or a bare number where one
    is asked for."""
    if asked.several:
        return Said(response, "a choice word for word") if response in asked.choices else OPEN
    try:
        if asked.answer_type == "integer":
            return Said(str(int(response)), "a bare whole number")
        if asked.answer_type == "float":
            return Said(str(float(response)), "a bare number")
    except ValueError:
        pass
    return OPEN


def official(extraction: str, asked: Asked, as_whole: Callable[[str], str] = whole) -> Said:
    """The answer that an extraction stands for: equal to the standard answer, or wrong.

    Of choices, that of the first letter in brackets, or of the letter that it is, else the one it
    resembles most, so that there always is one; a number cut or rounded as the question asks; a
    list as it is written.
    """
    if asked.several:
        text = extraction.strip()
        if named := _LETTER.search(text):
            text = named[1].upper()
        letters = LETTERS[: len(asked.choices)]
        if len(text) == 1 and text in letters:
            return Said(asked.choices[letters.index(text)], "the choice of a letter")
        distances = [distance(text, choice) for choice in asked.choices]
        nearest = asked.choices[distances.index(min(distances))]
        same = nearest == text
        return Said(nearest, "a choice word for word" if same else "the choice it resembles most")
    try:
        if asked.answer_type == "integer":
            return Said(as_whole(extraction), "a whole number")
        if asked.answer_type == "float":
            if asked.precision is None:
                return Said("", "a number of unknown precision")
            return Said(str(round(float(extraction), asked.precision)), "a rounded number")
    except (ValueError, OverflowError):
        return Said("", "no number")
    return Said(extraction, "as it is written")


def distance(a: str, b: str) -> int:
    """The fewest characters to put in, take out or change to make one text the other."""
    row = list(range(len(b) + 1))
    for i, one in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            change = before + (one != other)
            before, row[j] = row[j], min(change, row[j] + 1, row[j - 1] + 1)
    return row[-1]


# --- VLMEvalKit's --------------------------------------------------------------------------------


def vlmevalkit(
    text: str,
    asked: Asked,
    letter: Callable[[str, Mapping[str, str]], Said],
    extracted: bool,
) -> tuple[Said, bool | None]:
    """What a prediction says and whether it is right, by VLMEvalKit's rules; None: a model must
    extract something first. `letter` is its rule for options; `extracted`: the text is what a
    model made of the prediction.

    A number must be written bare, and a whole one without a point. (VLMEvalKit asks a model even
    of a bare number that is wrong, which can only say the same.) A list is never right: its rule
    compares the standard answer with nothing.
    """
    if asked.several:
        said = letter(text, dict(zip(LETTERS, asked.choices, strict=False)))
        if extracted and said.value is None:
            return Said("", "no option in what was extracted"), False
        return said, None if said.value is None else said.value == asked.letter
    if asked.answer_type not in _NUMBERS:
        return Said("", "a list is never right"), False
    read = int if asked.answer_type == "integer" else float
    try:
        value = read(text)
    except ValueError:
        return (Said("", "no number"), False) if extracted else (OPEN, None)
    try:
        return Said(str(value), "a bare number"), value == read(asked.answer)
    except ValueError:
        return Said(str(value), "a bare number"), False
