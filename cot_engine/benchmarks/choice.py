"""Multiple choice as VLMEvalKit reads it: the letter of an option, else an option's text.

After the functions `can_infer_option` and `can_infer_text` in `vlmeval/utils/matching_util.py` of
open-compass/VLMEvalKit: `by_2024` at e42058a1 (2024-12-30), `by_2026` at e8e78f05 (2026-08-18,
where these rules are those of a67ace50, 2026-06-17). Slips of theirs are kept, and said where they
are: published scores follow them. What they leave open they give to a model, and after three
replies that say nothing draw an option at random; here it stays open.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from cot_engine.benchmarks.said import NONE, OPEN, Said

FAILED = "Failed to obtain answer via API"
"""What VLMEvalKit writes as the prediction of a request that failed: no letter is looked for."""
REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
"""Replies of models, anywhere in a prediction, that count as none of the options."""
LAST = 4
"""Since 2025 a letter counts if it first stands among so many last words."""

EARLY = Said(None, "its one option letter is not among the last four words")
_SPACED = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
# In any case, and with nothing after the letter: "the answer is a dog" says A, and "the answer is
# blue" B. Only the first four letters are looked for, however many options there are.
_ANSWER_IS = re.compile(r"answer\s+is\s+\**([abcd])", re.IGNORECASE)


def by_2024(text: str, options: Mapping[str, str]) -> Said:
    """The option that a prediction names, by the rules of 2024.

    1. A refusal (REFUSALS) is none of the options.
    2. Of the words between spaces and `.()[],:;!*#{}`, those that are an option's letter, in
       capitals: if it is one letter, that one, wherever it stands ("A dog" says A). If it is
       none and there is a Z, none of the options.
    3. The one option whose text is anywhere in the prediction, in any case ("male" is in "female").
    """
    letters = _letter(text, options)
    return _text(text, options) if letters is OPEN else letters


def by_2026(text: str, options: Mapping[str, str]) -> Said:
    """The option that a prediction names, by the rules of 2026.

    As `by_2024`, but the one letter must first stand among the last four words; where it does not,
    or there are several letters or none, "answer is X" with X from A to D says X; and an option's
    text counts only in predictions of at most twice the length of all options together.
    """
    letters = _letter(text, options, LAST)
    if letters is not OPEN and letters is not EARLY:
        return letters
    if FAILED not in text:
        named = _ANSWER_IS.search(text)
        if named and named[1].upper() in options:
            return Said(named[1].upper(), '"answer is" before a letter')
    if len(text.lower()) > 2 * sum(map(len, options.values())):
        return EARLY if letters is EARLY else Said(None, "too long for an option's text to count")
    return _text(text, options)


def _letter(text: str, options: Mapping[str, str], last: int = 0) -> Said:
    """By letters alone; `last`: among how many last words the letter must first stand (0: all)."""
    if FAILED in text:
        return OPEN
    if any(refusal in text for refusal in REFUSALS):
        return Said(NONE, "a refusal")
    words = text.translate(_SPACED).split()
    found = [letter for letter in options if letter in words]
    if len(found) == 1:
        if not last or words.index(found[0]) >= len(words) - last:
            return Said(found[0], "the one option letter among its words")
        return EARLY
    elif not found and NONE in words:
        return Said(NONE, "the letter of no option")
    return OPEN


def _text(text: str, options: Mapping[str, str]) -> Said:
    lower = text.lower()
    found = [letter for letter, option in options.items() if option.lower() in lower]
    if len(found) == 1:
        return Said(found[0], "the one option whose text is in it")
    return Said(None, "several options' texts are in it" if found else OPEN.rule)
