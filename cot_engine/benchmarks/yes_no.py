"""Yes or no as VLMEvalKit reads it.

After `YOrN_Extraction` in `vlmeval/dataset/utils/yorn.py` and `process_punctuation` in
`vlmeval/smp` of open-compass/VLMEvalKit, the same at e42058a1 (2024-12-30) and at e8e78f05
(2026-08-18).
"""

from __future__ import annotations

import re

from cot_engine.benchmarks.said import OPEN, Said

_MARKS = ';/[]"{}()=+\\_-><@`,?!'  # not *, : or ': "**yes**" and "yes:" are no yes
_STOP = re.compile(r"(?<!\d)\.(?!\d)")
_THOUSANDS = re.compile(r"\d,\d")
STOPS = 32
"""Full stops that are taken out. It is a slip: the value of a flag, given where the number of
replacements belongs. A "no." behind 32 sentences is thereby no "no"."""


def yes_no(text: str) -> Said:
    """Yes or No, if the one stands among its words and the other does not."""
    words = without_marks(text.lower()).split()
    yes, no = "yes" in words, "no" in words
    if yes == no:
        return Said(None, "both yes and no are among its words") if yes else OPEN
    return Said("Yes" if yes else "No", "the one of yes and no among its words")


def without_marks(text: str) -> str:
    """Punctuation as benchmarks of visual questions take it out: a mark beside a space goes, any
    other becomes a space; where a number has a comma in it, every mark goes; then full stops,
    unless beside a digit, the first STOPS of them."""
    grouped = _THOUSANDS.search(text) is not None
    after = text
    for mark in _MARKS:
        beside = grouped or mark + " " in text or " " + mark in text
        after = after.replace(mark, "" if beside else " ")
    return _STOP.sub("", after, count=STOPS)
