"""Where a step ends: at a stop string, or at the end of a sentence."""

from __future__ import annotations

import re
from dataclasses import dataclass

# Words that carry a full stop without ending a sentence.
_ABBREVIATIONS = frozenset(
    "e.g i.e etc vs cf al approx ca fig figs eq eqs ref refs sec no nos vol pp p dr mr mrs ms prof"
    " st jr sr inc ltd co dept est min max avg resp incl a.m p.m u.s u.k ph.d".split()
)
# Of these, some end a sentence where a capital follows.
_EITHER = frozenset("no etc sec min max avg co inc ltd dept jr sr a.m p.m".split())
_CLOSERS = "\"'”’»)\\]*_`"
_END = re.compile(
    rf"[.!?…]+[{_CLOSERS}]*(?=\s)"
    r"|[。！？]+[”’」』）]*(?=[^。！？”’」』）])"  # written without a space after it
    r"|\n\s*(?=\S)"
)
_NOTHING = re.compile(r"(?:\s|</?[A-Z][A-Z0-9_]*>)*")  # no text yet: spaces and tags
_LINE_START = re.compile(r"(?:^|[\n>])[ \t*#-]*$")
_WORD_BEFORE = re.compile(r"([^\W\d_](?:[^\W\d_]|\.)*|\d+)$")
_WORD = 40  # characters before a full stop that are looked at


def sentence_end(text: str) -> int | None:
    """The index just past the first whole sentence of `text`, or None if none is complete yet.

    A sentence ends with . ! or ? (and closing quotes or brackets) when whitespace follows, or
    with a line break when more text follows. "3.14" has no whitespace after its stop; "e.g. ",
    "Fig. 2", initials ("J. Smith"), the number of a list item ("2. Add them") and dots in the
    middle ("well... maybe") do not end one. The whitespace belongs to the next sentence. What has
    been found stays so, whatever is written after it: where it takes the next word to decide, that
    word is waited for.
    """
    for match in _END.finditer(text):
        head = text[: match.start()]
        if _NOTHING.fullmatch(head):
            continue
        if match.group().startswith("\n"):
            return match.start()
        if match.group()[0] not in ".…":
            return match.end()
        ends = _ends(head, match.group(), text[match.end() :])
        if ends is None:
            return None
        if ends:
            return match.end()
    return None


def _ends(head: str, mark: str, after: str) -> bool | None:
    """Does the full stop `mark` between `head` and `after` end the sentence? None: wait."""
    following = after.lstrip().lstrip("\"'“‘«([*_`")[:1]
    if mark.startswith(("..", "…")):
        return not following.islower() if following else None
    word = _WORD_BEFORE.search(head[-_WORD:])
    if word is None:
        return True
    name = word.group().lower()
    if name.isdigit():  # "2. Add them": the number of a list item at the start of a line
        return not _LINE_START.search(head[: -len(name)])
    if name in _EITHER:
        return following.isupper() if following else None
    initial = len(name) == 1 and word.group().isupper() and name != "i"
    return name not in _ABBREVIATIONS and not initial


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
        if self.sentence and (end := sentence_end(text)) is not None:
            ends.append(end)
        return min(ends) if ends else None
