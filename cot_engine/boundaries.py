"""Where a step ends: at a stop string, or at the end of a sentence."""

from __future__ import annotations

import re
from dataclasses import dataclass

# Words that carry a full stop without ending a sentence.
_ABBREVIATIONS = frozenset(
    "e.g i.e etc vs cf al approx ca fig figs eq eqs ref refs sec no nos vol pp p dr mr mrs ms prof"
    " st jr sr inc ltd co dept est min max avg resp incl a.m p.m u.s u.k ph.d".split()
)
_END = re.compile(r"[.!?]+[\"')\]]*(?=\s)|\n+(?=\S)")
_WORD_BEFORE = re.compile(r"([A-Za-z][A-Za-z.]*|\d+)$")


def sentence_end(text: str) -> int | None:
    """The index just past the first whole sentence of `text`, or None if none is complete yet.

    A sentence ends with . ! or ? (and closing quotes or brackets) when whitespace follows, or
    with a line break when more text follows. "3.14" has no whitespace after its stop; "e.g. ",
    "Fig. 2", initials ("J. Smith") and the number of a list item ("2. Add them") do not end one.
    The whitespace belongs to the next sentence, so a caller needs one more character to decide.
    """
    for match in _END.finditer(text):
        head = text[: match.start()]
        if not head.strip():
            continue
        if match.group().startswith("\n"):
            return match.start()
        if match.group().startswith(".") and not match.group().startswith(".."):
            word = _WORD_BEFORE.search(head)
            if word and _is_abbreviation(word.group(), head[: word.start()], text[match.end() :]):
                continue
        return match.end()
    return None


def _is_abbreviation(word: str, before: str, after: str) -> bool:
    lowered = word.lower()
    if word.isdigit():  # "2. Add them": the number of a list item at the start of a line
        return not before.strip() or before.rstrip(" ").endswith("\n")
    if lowered in _ABBREVIATIONS:
        # "No." and "etc." do end a sentence where a capital follows, unless it is a number's label.
        if lowered in {"no", "etc", "min", "max", "co", "inc", "a.m", "p.m"}:
            following = after.lstrip()
            return bool(following) and not following[0].isupper()
        return True
    return len(word) == 1 and word.isupper() and word != "I"


@dataclass(frozen=True, slots=True)
class Until:
    """A boundary: the end of the first of `strings` (kept in the step), or of a sentence.

    With neither, the step runs until the model ends its turn.
    """

    strings: tuple[str, ...] = ()
    sentence: bool = False

    def end(self, text: str) -> int | None:
        """The index in `text` (all that was written in this step so far) where the step ends."""
        ends = [at + len(s) for s in self.strings if (at := text.find(s)) >= 0]
        if self.sentence and (at := sentence_end(text)) is not None:
            ends.append(at)
        return min(ends) if ends else None
