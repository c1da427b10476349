"""Does a response say its answer before it has found it, or another answer than it found?

A stage is early if two more follow it: in the usual plan SUMMARY and CAPTION. Search can win
nothing at a stage that already tells the answer, and a model taught so guesses first and reasons
afterwards. All is told by rules on words, made to be silent where they cannot know: texts are
compared as whole words without case and punctuation, and what the question itself says is no leak.
"""

from __future__ import annotations

import re

from cot_engine.core.answers import normalise_answer
from cot_engine.core.stages import Plan
from cot_engine.questions.grading import number

# "The answer is B", "correct option: B"; what follows is group 1, up to the end of the clause.
_STATED = re.compile(
    r"(?<!if the )(?<!whether the )\b(?:answer|(?:correct|right) (?:option|choice))"
    r"(?: (?:is|was|would be|must be|should be)\b:?|:)\s*"
    r"(.+?)(?=[.,;:!?]*(?:[.,;:!?)]\s|\n|$))",
    re.IGNORECASE,
)
_ENDS = re.compile(
    r"\b(?:so|thus|therefore|hence),? (?:it is |there (?:is|are) )?(\S+?)[.!]?\s*$", re.IGNORECASE
)
_WORD = re.compile(r"-?\d+(?:[.,]\d+)*|[^\W\d_]+")
_GROUPED = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_OPTION = re.compile(r"([a-j])(?:: .*)?", re.DOTALL)
_QUOTE = "\"'“”‘’«»"
_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve "
    "yes no none true false both same different more less left right other first second last all"
).split()
# Short answers that stand in many a sentence without being its answer.
_COMMON = frozenset(_WORDS)
_LONG, _SENTENCE = 3, 5  # words from which a text is not repeated by chance; and in a description


def words(text: str) -> str:
    """The words and numbers of a text, without case and punctuation, one space between them."""
    return " ".join(_WORD.findall(_GROUPED.sub("", text.casefold())))


def within(part: str, text: str) -> bool:
    """Does `text` hold `part` as whole words? Both as `words` gives them."""
    return bool(part) and f" {part} " in f" {text} "


def leaks(
    contents: dict[str, str], plan: Plan, question: str, standard: str = ""
) -> list[tuple[str, str]]:
    """(name of a check, what was found) for the stages' texts by tag. `standard` is the standard
    answer, where the row has one.

    answer-stated: an early stage says "the answer is X" (or "correct option"), X being the
        conclusion's answer and the whole clause ("the answer is a number" states no A).
    answer-early: an early stage that describes no picture holds the whole conclusion, or the whole
        standard answer, of 3 words or more.
    answer-hinted: such a stage holds a shorter conclusion: a word of 3 letters or more, or a number
        of 3 digits or more. Never an option letter, yes, no, a small number or its word, or words
        as common as "both" and "left".
    answer-in-caption: a stage that describes the picture holds the whole conclusion, or the whole
        standard answer, of 5 words or more, not in quotation marks (what a sign says is a fact).
    contradicted: the stage before the last ends on ("so X.") or states another answer than the
        conclusion, both being numbers, yes or no, or option letters.
    unsupported: a conclusion of 1 to 3 words (neither yes, no nor an option letter) does not
        occur in the stage before the last.

    None but answer-stated, contradicted and unsupported speak of what the question holds too.
    """
    conclusion = contents.get(plan.last.tag, "")
    if not conclusion:
        return []
    found: list[tuple[str, str]] = []
    answer = normalise_answer(conclusion)
    asked = words(question)
    whole = {text: words(text) for text in (answer, normalise_answer(standard))}
    told = {text: said for text, said in whole.items() if said and not within(said, asked)}
    for stage in plan.stages[:-2]:
        text = contents.get(stage.tag, "")
        plain = words(text)
        if any(_equal(said, answer) for said in _STATED.findall(text)):
            found.append(("answer-stated", f"{stage.tag} states the answer: {answer!r}."))
            continue
        least = _SENTENCE if stage.needs_image else _LONG
        for said in told.values():
            if said.count(" ") + 1 >= least and within(said, plain):
                if not stage.needs_image:
                    found.append(("answer-early", f"{stage.tag} holds {said!r}."))
                elif not _quoted(said, text):
                    found.append(("answer-in-caption", f"{stage.tag} holds {said!r}."))
                break
        else:
            short = told.get(answer, "")
            if not stage.needs_image and _telling(short) and within(short, plain):
                found.append(("answer-hinted", f"{stage.tag} mentions {short!r}."))
    if len(plan) > 1:
        before = plan.stages[-2].tag
        found += _support(contents.get(before, ""), before, answer)
    return found


def pasted(contents: dict[str, str], question: str) -> list[tuple[str, str]]:
    """question-pasted: a stage holds the whole question, of 6 words or more."""
    asked = words(question)
    if asked.count(" ") + 1 < 6:
        return []
    return [
        ("question-pasted", f"{tag} holds the whole question.")
        for tag, text in contents.items()
        if within(asked, words(text))
    ]


def _equal(said: str, answer: str) -> bool:
    """Is a stated answer the conclusion's? Of options their letters are compared."""
    said = normalise_answer(said)
    ours, theirs = _OPTION.fullmatch(answer), _OPTION.fullmatch(said)
    if ours and theirs:
        return ours[1] == theirs[1]
    return words(said) == words(answer) != ""


def _telling(said: str) -> bool:
    if not said or said in _COMMON:
        return False
    if re.fullmatch(r"[-\d.,]+", said):
        return sum(char.isdigit() for char in said) >= 3
    return len(said) >= 3


def _quoted(said: str, text: str) -> bool:
    """Is what holds these words set in quotation marks?"""
    return any(within(said, words(part)) for part in re.split(f"[{_QUOTE}]", text)[1::2])


def _kind(answer: str) -> str:
    """What an answer is, if it is of a kind of which there is always exactly one right."""
    if number(answer) is not None:
        return "number"
    if answer in ("yes", "no"):
        return "yes/no"
    return "option" if re.fullmatch("[a-j]", answer) else ""


def _support(text: str, tag: str, answer: str) -> list[tuple[str, str]]:
    if not text:
        return []
    kind = _kind(answer)
    ends = _ENDS.search(text)
    said = [normalise_answer(each) for each in _STATED.findall(text)[-1:]]
    said += [normalise_answer(ends[1])] if ends else []
    for other in said[-1:]:
        option = _OPTION.fullmatch(other)
        other = option[1] if option and kind == "option" else other
        differ = number(other) != number(answer) if kind == "number" else other != answer
        if kind and _kind(other) == kind and differ:
            return [("contradicted", f"{tag} comes to {other!r}, the conclusion is {answer!r}.")]
    plain = words(answer)
    if kind in ("yes/no", "option") or not 1 <= len(plain.split()) <= 3:
        return []
    if _OPTION.fullmatch(answer):  # "b: dog"
        return []
    there = words(text)
    value = number(answer)
    spelt = _WORDS[int(value)] if value is not None and value in range(13) else plain
    if not within(spelt, there) and not all(_mentioned(word, there) for word in plain.split()):
        return [("unsupported", f"{tag} never mentions {answer!r}.")]
    return []


def _mentioned(word: str, text: str) -> bool:
    """As a word; a longer one also inside another ("star", "stars"), and one of a script that may
    put no spaces between words."""
    if len(word) > 3 or not word.isascii():
        return word.rstrip("s") in text
    return within(word, text)
