"""Sets of rules by name, each with where it comes from: a score without it means little."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from cot_engine.benchmarks import choice, conclusion, mathvista, relaxed, yes_no
from cot_engine.benchmarks.catalogue import Benchmark, Kind
from cot_engine.benchmarks.questions import Question, listed, text_of
from cot_engine.benchmarks.said import NONE, OPEN, Said
from cot_engine.errors import ConfigError, UnknownNameError


class Finding(NamedTuple):
    """What a rule made of a prediction, and what it is worth, 0 to 1; None if that is open."""

    said: Said
    score: float | None


class Unfit(Exception):
    """The question's row cannot be scored by a rule: its column, and what is wrong."""


Read = Callable[[Question, str, bool], Finding]
"""A question, a text, and whether that is what a model or a person extracted from a prediction."""
Letter = Callable[[str, Mapping[str, str]], Said]


@dataclass(frozen=True, slots=True)
class RuleSet:
    """`source` says whose rules they are, in a sentence; `reads` has those for each kind of
    question that there are any for."""

    name: str
    source: str
    reads: Mapping[Kind, Read]


def rule_set(name: str, of: Benchmark) -> RuleSet:
    """The set of that name. Raises UnknownNameError, ConfigError if it has no rules for `of`."""
    if name not in RULE_SETS:
        raise UnknownNameError("set of rules", name, RULE_SETS)
    found = RULE_SETS[name]
    if of.kind not in found.reads:
        fit = [each.name for each in RULE_SETS.values() if of.kind in each.reads]
        said = f"The rules {name!r} say nothing about {of.name}."
        raise ConfigError(said, f"Take {' or '.join(fit)}.")
    return found


def default(of: Benchmark) -> str:
    """The set that is taken where none is named: MathVista's own, else VLMEvalKit's newest."""
    return "official" if of.kind == "mathvista" else "vlmevalkit-2026"


def as_choice(question: Question) -> Question:
    """An open question as VLMEvalKit scores MMMU's: the standard answer is the option A, and all
    others are B. (After `MMMU_preproc` in `vlmeval/dataset/utils/multiple_choice.py`.)"""
    if question.options or not question.answers:
        return question
    options = {"A": question.answers[0], "B": "Other Answers"}
    return replace(question, options=options, answers=("A",))


def asked(question: Question) -> mathvista.Asked:
    """What MathVista's columns say of a question. Raises Unfit."""
    kinds = {name: question.of(name).strip() for name in ("question_type", "answer_type")}
    for name, value in kinds.items():
        if not value:
            raise Unfit(name, "it is empty")
    precision = text_of(question.columns.get("precision"))
    choices = tuple(listed(question.columns.get("choices")))
    if kinds["question_type"] == "multi_choice" and not choices:
        raise Unfit("choices", "there are none")
    try:
        digits = int(float(precision)) if precision else None
    except (ValueError, OverflowError):
        raise Unfit("precision", f"{precision!r} is no number") from None
    answer = question.of("answer")  # as it stands: a list is one answer, not several
    return mathvista.Asked(kinds["question_type"], kinds["answer_type"], answer, digits, choices)


def _score(said: Said, right: str) -> Finding:
    return Finding(said, None if said.value is None else float(said.value == right))


def _choice(rule: Letter) -> Read:
    def read(question: Question, text: str, extracted: bool) -> Finding:
        if extracted and text.strip(" .()\n") == NONE and NONE not in question.options:
            return _score(Said(NONE, "none of the options"), question.letter)
        return _score(rule(text, question.options), question.letter)

    return read


def _yes_no(rule: Callable[[str], Said]) -> Read:
    def read(question: Question, text: str, extracted: bool) -> Finding:
        return _score(rule(text), question.answers[0].strip().title())

    return read


def _relaxed(question: Question, text: str, extracted: bool) -> Finding:
    said, right = relaxed.relaxed(text, question.answers)
    return Finding(said, float(right))


def _official(whole: Callable[[str], str], question: Question, text: str, extra: bool) -> Finding:
    about = asked(question)
    if not extra:
        found = mathvista.quick(text, about)
        if found.value is None:
            return Finding(OPEN, None)
        text = found.value
    return _score(mathvista.official(text, about, whole), about.answer)


def _vlmevalkit_math(rule: Letter) -> Read:
    def read(question: Question, text: str, extracted: bool) -> Finding:
        said, right = mathvista.vlmevalkit(text, asked(question), rule, extracted)
        return Finding(said, None if right is None else float(right))

    return read


def _our_math(question: Question, text: str, extracted: bool) -> Finding:
    about = asked(question)
    if about.several:
        lettered = dict(zip(mathvista.LETTERS, about.choices, strict=False))
        return _score(conclusion.choice(text, lettered), about.letter)
    return _open(conclusion.free(text, (about.answer,)))


def _our_relaxed(question: Question, text: str, extracted: bool) -> Finding:
    return _open(conclusion.free(text, question.answers, relaxed=True))


def _open(found: tuple[Said, bool | None]) -> Finding:
    return Finding(found[0], None if found[1] is None else float(found[1]))


def _graded(question: Question, text: str, extracted: bool) -> Finding:
    """A grade from 0 to 1, which a model gave; no rule reads an answer."""
    if not extracted:
        return Finding(OPEN, None)
    try:
        grade = float(text)
    except ValueError:
        return Finding(Said(None, "no number"), None)
    if not 0 <= grade <= 1:
        return Finding(Said(None, f"{grade:g} is not from 0 to 1"), None)
    return Finding(Said(f"{grade:g}", "a model's grade"), grade)


def _vlmevalkit(year: str, rule: Letter, commit: str, day: str) -> RuleSet:
    return RuleSet(
        f"vlmevalkit-{year}",
        f"open-compass/VLMEvalKit at {commit} ({day})",
        {
            "choice": _choice(rule),
            "yes/no": _yes_no(yes_no.yes_no),
            "mathvista": _vlmevalkit_math(rule),
            "relaxed": _relaxed,
            "graded": _graded,
        },
    )


_MATHVISTA = "lupantech/MathVista at 53d52587 (2025-09-28)"
_ALL = [
    _vlmevalkit("2024", choice.by_2024, "e42058a1", "2024-12-30"),
    _vlmevalkit("2026", choice.by_2026, "e8e78f05", "2026-08-18"),
    RuleSet("official", _MATHVISTA, {"mathvista": partial(_official, mathvista.whole)}),
    RuleSet(
        "official-int",
        f"{_MATHVISTA}, but that 14.0 is no whole number, as in some scores published before",
        {"mathvista": partial(_official, mathvista.whole_2023)},
    ),
    RuleSet(
        "conclusion",
        "cot-engine's own: the CONCLUSION alone is read",
        {
            "choice": _choice(conclusion.choice),
            "yes/no": _yes_no(conclusion.yes_no),
            "mathvista": _our_math,
            "relaxed": _our_relaxed,
            "graded": _graded,
        },
    ),
]
RULE_SETS: dict[str, RuleSet] = {each.name: each for each in _ALL}
