"""Where two sets of rules read the same predictions differently, and why."""

from __future__ import annotations

from dataclasses import dataclass

from cot_engine.benchmarks.catalogue import Kind
from cot_engine.benchmarks.conclusion import concluded, is_staged
from cot_engine.benchmarks.rulesets import RuleSet, as_choice
from cot_engine.benchmarks.scoring import Mark, Scored
from cot_engine.questions.grading import is_article

OURS = "conclusion"


@dataclass(frozen=True, slots=True)
class Difference:
    """One prediction of which two sets of rules extract or make something else. `why` adds to what
    the two marks' rules say; "" where these say it all."""

    first: Mark
    second: Mark
    why: str = ""


def differences(first: Scored, second: Scored) -> list[Difference]:
    """All predictions that two sets of rules read differently, in their order."""
    named = first.benchmark.kind in ("choice", "yes/no")  # what is extracted is of a few words

    def differ(a: Mark, b: Mark) -> bool:
        return (a.score, a.open) != (b.score, b.open) or (named and a.said.value != b.said.value)

    pairs = zip(first.marks, second.marks, strict=True)
    return [Difference(a, b, _why(a, b, first, second)) for a, b in pairs if differ(a, b)]


def _why(a: Mark, b: Mark, first: Scored, second: Scored) -> str:
    rules = (first.rules, second.rules)
    if OURS not in (rules[0].name, rules[1].name):
        return ""
    ours, theirs, set_ = (b, a, rules[0]) if rules[1].name == OURS else (a, b, rules[1])
    kind, text = first.benchmark.kind, theirs.case.prediction
    if is_staged(text) and _same(set_, kind, ours, first.benchmark.opens):
        return "They read the reasoning too; of the CONCLUSION alone both say the same."
    if kind == "choice" and theirs.said.value == "A" and is_article(concluded(text)):
        return "The A that they take for an option opens a sentence: it is an article."
    return ""


def _same(rules: RuleSet, kind: Kind, ours: Mark, opens: bool) -> bool:
    """Do the others' rules say of the CONCLUSION what ours say?"""
    question = as_choice(ours.case.question) if opens else ours.case.question
    found = rules.reads[kind](question, concluded(ours.case.prediction), False)
    return found.score == ours.score
