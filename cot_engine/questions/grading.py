"""How the answers of a data set are graded: by rules alone, no model, never by a guess.

The rules for multiple choice are in substance those of the published benchmarks of 2024: the one
option letter in the answer, else the one option whose text is in it. What differs does so on
purpose: an answer that is an option's text and nothing else is that option, whatever letters and
other options' texts are in it ("Solution A" may be option C); an "A" that opens a sentence as its
article ("A dog is ...") is no option; an option's text counts as whole words only ("male" is not in
"female"); and where nothing is found the answer is wrong, never drawn at random.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from string import ascii_uppercase as LETTERS
from typing import Literal, Protocol, cast

from cot_engine.core.answers import normalise_answer

Kind = Literal["choice", "yes/no", "exact", "relaxed", "contains"]

RULES = ("auto", "exact", "relaxed", "choice", "contains")
"""What a configuration may ask for; "auto" picks by question."""
TOLERANCE = 1e-6
"""Relative, of two numbers that are not both whole: "0.333333" and "1/3" are the same answer."""
RELAXED = 0.05
"""Relative to the standard answer, as ChartQA allows."""

SAID: dict[str, str] = {
    "scenes": "scenes by whether the right answer is the only word that could be one",
    "choice": "multiple choice by the one option letter in the answer, else the one option's text "
    "(none or several: wrong)",
    "yes/no": "yes/no questions by the first of these words",
    "exact": "free answers by exact match, normalised, numbers by value",
    "relaxed": "free answers by exact match, normalised, numbers within 5 % of the standard answer",
    "contains": "free answers by whether they contain the standard answer, whatever else they say "
    "(of alternatives any, of parts all; the official grade of MM-Vet is another, GPT-4's)",
}
"""Each kind in words, for `DataSet.rule`."""

_PUNCTUATION = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_MARKS = "'\"`$?“”‘’«»。，、：；！？（）"  # around a letter, not punctuation of the published rules
_ARTICLE = re.compile(
    r"(?:^|(?<=[.!?])\s)\s*A +(?=[a-z])"
    r"(?!(?:is|was|are|and|or|nor|because|since|as|has|would|seems|looks|shows|fits|matches)\b)",
    re.MULTILINE,
)
# Letters of the scripts that put spaces between words, lower case: in others ("答案是黄鹤楼") an
# answer stands next to other letters.
_LETTER = r"[a-zA-Z0-9\u00c0-\u024f\u0370-\u052f]"
_NUMBER = re.compile(r"([+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d{1,3})?)(?:/(\d{1,15}))?(%?)")
# A number in mid-text: not "H2O", of "1-3" both.
_NAMED = re.compile(r"(?<![\w.])([+-]?(?:\d+(?:\.\d+)?|\.\d+))(?:/(\d{1,15}))?")
_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty"
).split()
_FEW = 4  # words of an answer that is a number


class Grading(Protocol):
    """What holds a text against the standard answer; see `Grader`."""

    @property
    def kind(self) -> str: ...
    def grade(self, answer: str) -> float: ...
    def facts(self, stage: str, text: str) -> float | None: ...


@dataclass(frozen=True, slots=True)
class Grader:
    """The standard answers of one question and how an answer is held against them.

    `accepted` are the answers of which any will do (letters, if there are `choices`); `choices`
    are (letter, text). One written "a<OR>b" or "a<AND>b" is for the kind "contains".
    """

    kind: Kind
    accepted: tuple[str, ...]
    choices: tuple[tuple[str, str], ...] = ()

    def grade(self, answer: str) -> float:
        """1.0 if the text of a CONCLUSION gives an accepted answer, else 0.0."""
        if not answer.strip():
            return 0.0
        if self.kind == "choice":
            return float(option(answer, dict(self.choices)) in self.accepted)
        if self.kind == "yes/no":
            said = re.search(r"\b(yes|no)\b", answer.lower())
            known = map(normalise_answer, self.accepted)
            return float(said is not None and said[1] in known)
        if self.kind == "contains":
            return float(any(_holds(answer, wanted) for wanted in self.accepted))
        near = RELAXED if self.kind == "relaxed" else TOLERANCE
        return float(any(_same(answer, wanted, near) for wanted in self._spellings()))

    def facts(self, stage: str, text: str) -> float | None:
        """Whether a stage's text is right: such a data set does not know."""
        return None

    def _spellings(self) -> tuple[str, ...]:
        """The accepted answers; of an option its letter, its text, and both."""
        texts = dict(self.choices)
        taken = [normalise_answer(x) for x in (*texts, *texts.values())]
        spellings = list(self.accepted)
        for letter in self.accepted if texts else ():
            spellings.append(f"{letter}: {texts[letter]}")
            if taken.count(normalise_answer(texts[letter])) == 1:  # no other option's
                spellings.append(texts[letter])
        return tuple(spellings)


@dataclass(frozen=True, slots=True)
class Unknown:
    """In place of a Grader where nobody gave the standard answer: nothing can be said."""

    kind: str = "unknown"
    accepted: tuple[str, ...] = ()
    choices: tuple[tuple[str, str], ...] = ()

    def grade(self, answer: str) -> float:
        """NaN: neither right nor wrong."""
        return math.nan

    def facts(self, stage: str, text: str) -> float | None:
        """Whether a stage's text is right: nobody knows."""
        return None


def kind_of(rule: str, answers: Sequence[str], choices: Mapping[str, str], marked: bool) -> Kind:
    """How a question is graded under a rule of RULES. `marked`: its data set writes alternatives as
    <OR> and <AND>, as MM-Vet does, whose answers are sentences.

    A question with options is graded as one under every rule but "exact": within 5 %, or
    containing all options, would make wrong ones right.
    """
    if choices:
        return "exact" if rule == "exact" else "choice"
    if rule != "auto":
        return cast(Kind, rule)  # every rule but "auto" is one
    if all(normalise_answer(answer) in ("yes", "no") for answer in answers):
        return "yes/no"
    return "contains" if marked else "exact"


def is_marked(answer: str) -> bool:
    """Does the answer write alternatives or parts as MM-Vet does?"""
    return "<OR>" in answer or "<AND>" in answer


def option(answer: str, choices: Mapping[str, str]) -> str:
    """The letter of the option that an answer names, or "" if it names none or several."""
    whole = normalise_answer(answer)
    if len(whole) == 1 and whole.isascii() and whole.upper() in choices:  # "b", "(b)."
        return whole.upper()
    texts = {letter: normalise_answer(text) for letter, text in choices.items()}
    words = _ARTICLE.sub(" ", answer.strip()).translate(_PUNCTUATION).split()
    for found in (
        [c for c, text in texts.items() if whole in (text, f"{c.lower()}: {text}")],
        {word.strip(_MARKS) for word in words} & set(choices),
        [c for c, text in texts.items() if _within(text, whole)],
    ):
        if len(found) == 1:
            return next(iter(found))
    return ""


def is_article(answer: str) -> bool:
    """Does an "A" open a sentence of the answer as its article, and name no option?"""
    return _ARTICLE.search(answer.strip()) is not None


def number(text: str) -> float | None:
    """The value of a text that is a number and nothing else: "1,000", "-2.5", "3/4", "50%"."""
    match = _NUMBER.fullmatch(normalise_answer(text))
    if match is None or (match[2] and not int(match[2])):
        return None
    value = float(match[1]) / (int(match[2]) if match[2] else 1) / (100 if match[3] else 1)
    return value if math.isfinite(value) else None


def verdict(grader: Grading, answer: str) -> bool | None:
    """What the rules can say of an answer: right, wrong, or None, where other words may well mean
    the same ("a bike", "bicycle") and only somebody who reads could tell.

    Options and yes or no are always decided. So is a number: where the standard answer is one, with
    a few words at most ("12 cm", "two"), whatever does not name it, or names others, is wrong; with
    other words around it ("There are 12 of them") it is open.
    """
    if grader.grade(answer) == 1.0:
        return True
    if not isinstance(grader, Grader) or grader.choices or grader.kind == "yes/no":
        return False
    parts = [part for wanted in grader.accepted for part in wanted.split("<OR>")]
    found = [_open(answer, part.replace("<AND>", " ")) for part in parts]
    return True if True in found else None if None in found else False


def _open(answer: str, wanted: str) -> bool | None:
    """`verdict` on one standard answer that the answer is not word for word."""
    said, right = normalise_answer(answer), normalise_answer(wanted)
    if not said:
        return False
    if re.fullmatch("[a-h]", right):  # an option whose text stands in the question
        letters = LETTERS[: max(5, LETTERS.index(right.upper()) + 1)]
        return option(answer, dict.fromkeys(letters, "")) == right.upper()
    if begins := re.match(r"(yes|no)(?=[,.;:!]|$)", right):
        first = re.search(r"\b(yes|no)\b", said)
        return None if first and first[1] == begins[1] else False
    values = {Decimal(1)} if right == "one" else _values(right)
    # "One" is a number where there is no other: "the one on the left has 3".
    named = _values(said) or ({Decimal(1)} if re.search(r"\bone\b", said) else set())
    return False if values and len(right.split()) <= _FEW and values != named else None


def _values(text: str) -> set[Decimal]:
    """The numbers that a normalised text names, in digits or, from two on, in words."""
    words = [word for word in re.findall("[a-z]+", text) if word in _WORDS and word != "one"]
    found = {_value(*match.groups()) for match in _NAMED.finditer(text)}
    return found | {Decimal(_WORDS.index(word)) for word in words}


def _value(whole: str, part: str | None) -> Decimal:
    return Decimal(whole) / Decimal(part) if part and int(part) else Decimal(whole)


def _same(answer: str, wanted: str, near: float) -> bool:
    if normalise_answer(answer) == normalise_answer(wanted):
        return True
    said, right = number(answer), number(wanted)
    if said is None or right is None:
        return False
    if near == TOLERANCE and said.is_integer() and right.is_integer():
        return said == right  # of two long numbers one wrong digit is less than the tolerance
    return abs(said - right) <= near * abs(right) * (1 + 1e-9)  # 1.05 is within 5 % of 1


def _holds(answer: str, wanted: str) -> bool:
    """Any alternative of which every part is in the answer."""
    text = normalise_answer(answer)
    for alternative in wanted.split("<OR>"):
        parts = [normalise_answer(p) for p in alternative.split("<AND>") if p.strip()]
        if parts and all(part == text or _within(part, text, least=1) for part in parts):
            return True
    return False


def _within(part: str, text: str, least: int = 2) -> bool:
    """Is the part in the text as whole words and numbers? "5" is not in "15", "1.5" or "-5". Of
    letters it must have `least`: "a" is a word of its own, and no option's text."""
    if not part or (len(part) < least and re.fullmatch(r"[a-zA-Z]", part)):
        return False
    before = rf"(?<!{_LETTER})" if re.match(rf"{_LETTER}|[-.]", part) else ""
    after = rf"(?!{_LETTER})" if re.match(_LETTER, part[-1]) else ""
    if part[0].isdigit():
        before += r"(?<!\d[.,])(?<!(?<!\w)-)"
    if part[-1].isdigit():
        after += r"(?![.,]\d)"
    return re.search(before + re.escape(part) + after, text) is not None
