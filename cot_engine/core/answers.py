"""Final answers made comparable: for voting and for grading by exact match."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field

from cot_engine.core.chain import Chain
from cot_engine.core.problem import Problem
from cot_engine.core.trace import Trace
from cot_engine.core.usage import Role, Usage

_DASHES = dict.fromkeys(map(ord, "‐‑‒–—−"), "-")
_QUOTES = {ord(c): '"' for c in "“”„«»"} | {ord(c): "'" for c in "‘’‚´"}
_LEAD = re.compile(
    r"(?:(?:(?:so|thus|hence|therefore)\b,?\s*)?"
    r"(?:(?:the|my)\s+)?(?:(?:final|correct|right|best)\s+)*"
    r"(?:(?:answer|option|choice)(?:\s+(?:is|would\s+be)\b\s*:?|\s*:)"
    r"|(?:option|choice)(?=\s+\(?[a-j]\b))\s*(?=\S))+",
    re.IGNORECASE,
)
_OPTION = re.compile(r"(?:\(([A-Ja-j])\)[.:]?|([A-Ja-j])[.:)])(?:\s+(\S.*))?", re.DOTALL)
# "A and B", "A minor" are no articles; nor is what stands before a single letter or a number.
_ARTICLE = re.compile(
    r"(?:the|an?)\s+(?!(?:and|or|is|nor|positive|negative|minor|major|flat|sharp)\b)(?=[^\W\d_]{2})",
    re.IGNORECASE,
)
# Where case means something: genotypes ("Aa", "aa"), and milli against mega ("5 mW", "5 MW").
_CASED = re.compile(r"\b([^\W\d_])(?i:\1)\b|(?<=\d)\s?[mM](?=(?i:[aghjlmsvwω]?z?)\b)")
_GROUPED = re.compile(r"(?<![\w.,])[1-9]\d{0,2}(?:,\d{3})+(?!\d|,\d)")
_DECIMAL = re.compile(r"(?<![\w.,])(\d+)\.(\d+)(?!\d|[.,]\d)")
_POINT = re.compile(r"(?<![\w.)\]}])\.(?=\d)")
_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{([^{}\\]*)\}")
_FRACTION = re.compile(r"\\[dt]?frac\s*\{(\w+)\}\s*\{(\w+)\}")
_MIXED = re.compile(r"(?<=\d)(?=\\[dt]?frac)")
_PAIRS = [("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), (r"\boxed{", "}")]
_PAIRS += [(mark, mark) for mark in ("**", "__", "*", "`", '"', "'")]
_RAISED = "0123456789+-−()ni"


def normalise_answer(text: str) -> str:
    r"""The answer in one spelling: equal results mean equal answers.

    Ignored are case, spaces, leading articles, punctuation and paired quotes, bold or LaTeX marks
    ("$5$", "\boxed{5}") around the answer, "The answer is", the ways to write an option letter
    ("(A)", "A." and "A"; "A: red cube", "(A) red cube"), and those of a number ("1,000", "3.0").
    Kept is whatever may make a difference: units, signs, "%" and "$" of money, brackets of a pair,
    an option's text, the case of genotypes and of milli and mega. Doing it twice changes nothing.
    """
    while (after := _pass(_fold(text))) != text:
        text = after
    return text


def majority(
    texts: Sequence[str],
    weights: Sequence[float] | None = None,
    tie: Sequence[float] | None = None,
) -> tuple[int, ...]:
    """The indices of the texts that give the answer with most votes, compared normalised.

    A text has `weights` votes (1 each by default). Equal votes are decided by the sum of `tie`,
    then by which answer came first. An empty text has no vote, unless all are empty.
    """
    groups = _by_answer(texts)

    def votes(group: list[int]) -> tuple[float, float]:
        number = sum(weights[i] for i in group) if weights else len(group)
        return number, sum(tie[i] for i in group) if tie else 0

    most: list[int] = max(groups.values(), key=votes, default=[])
    return tuple(most)


def settled(
    texts: Sequence[str],
    stop: float,
    weights: Sequence[float] | None = None,
    doubt: float = 0.0,
    left: float = math.inf,
) -> bool:
    """Whether more texts would hardly change which answer `majority` finds.

    That is so if the leading answer has at least the share `stop` of all votes, `doubt` added to
    them: what is held against so few of them. It is certain, and needs no such share, if the answer
    is ahead of the next by more than the votes that are `left` to come. A text has `weights` votes,
    each from 0 to 1 (1 each by default); an empty one has none, unless all are empty.
    """
    groups = _by_answer(texts).values()
    votes = sorted(
        (sum(weights[i] for i in g) if weights else len(g) for g in groups), reverse=True
    )
    if not votes:
        return False
    behind = votes[1] if len(votes) > 1 else 0.0
    return votes[0] - behind > left or votes[0] >= stop * (sum(votes) + doubt) > 0


def _by_answer(texts: Sequence[str]) -> dict[str, list[int]]:
    """The indices of the texts that give each answer; empty texts only if all are."""
    groups: dict[str, list[int]] = {}
    for index, text in enumerate(texts):
        groups.setdefault(normalise_answer(text), []).append(index)
    if len(groups) > 1:
        groups.pop("", None)
    return groups


def _fold(text: str) -> str:
    """One code per character; "x²" becomes "x^2" and "1½" "1 1/2", not "x2" and "11/2"."""
    pieces = []
    raised = False
    for char in text:
        kind, _, rest = unicodedata.decomposition(char).partition(" ")
        plain = "".join(chr(int(code, 16)) for code in rest.split()) if rest else ""
        before, raised = raised, kind == "<super>" and plain in _RAISED
        if raised:
            pieces.append(plain if before else "^" + plain)
        elif kind == "<fraction>":
            pieces.append(" " + plain if pieces and pieces[-1].isdigit() else plain)
        else:
            pieces.append(char)
    text = unicodedata.normalize("NFKC", "".join(pieces)).replace("\u2044", "/")
    return text.translate(_DASHES | _QUOTES)


def _pass(text: str) -> str:
    text = " ".join(text.replace("{,}", ",").replace("\\%", "%").replace("\\$", "$").split())
    text = _FRACTION.sub(r"\1/\2", _MIXED.sub(" ", _TEXT.sub(r"\1", text)))
    text = _bare(_without(_LEAD, text))
    option = _OPTION.fullmatch(text)
    if option:
        letter, content = (option[1] or option[2]).lower(), option[3]
        if content is None:
            return letter
        text = f"{letter}: {_without(_ARTICLE, _bare(content))}"
    else:
        text = _without(_ARTICLE, text)
    text = _GROUPED.sub(lambda m: m[0].replace(",", ""), text)
    text = _DECIMAL.sub(lambda m: m[0].rstrip("0").rstrip("."), text)
    text = _POINT.sub("0.", text)
    text = re.sub(r"(?<=\d)\s+%", "%", text)
    return _lower(text)


def _without(start: re.Pattern[str], text: str) -> str:
    match = start.match(text)
    return text[match.end() :] if match else text


def _bare(text: str) -> str:
    """Without the punctuation at its end and one pair of marks around it."""
    text = text.rstrip(" .,;:?") or text
    if re.search(r"[^\W\d_]{2}!+$", text):  # "Yes!", but not "5!" or "n!"
        text = text.rstrip("!")
    for left, right in _PAIRS:
        inner = text[len(left) : len(text) - len(right)]
        around = text.startswith(left) and text.endswith(right) and inner.strip()
        if around and left not in inner and _closed(inner, right):
            return inner.strip()
    return text


def _closed(inner: str, right: str) -> bool:
    """Is `right`, which follows `inner`, the mark that closes the one before it?"""
    if right != "}":
        return right not in inner
    depth = 0
    for char in inner:
        depth += (char == "{") - (char == "}")
        if depth < 0:
            return False
    return depth == 0


def _lower(text: str) -> str:
    """In lower case, but for what _CASED finds."""
    pieces, start = [], 0
    for match in _CASED.finditer(text):
        pieces += [text[start : match.start()].lower(), match[0]]
        start = match.end()
    return "".join([*pieces, text[start:].lower()])


@dataclass(frozen=True, slots=True)
class Answer:
    """What a search returns. `text` is the CONCLUSION alone; the rest says how it came about.

    `usage` is by role ("generate", "judge", "score", "verify"); `seconds` is wall-clock time;
    `left` is what remained of the budget, in its unit (None: no budget).
    `incomplete` says in a sentence why the answer is not whole; it is "" if it is.
    """

    text: str
    chain: Chain
    problem: Problem
    usage: dict[Role, Usage] = field(default_factory=dict)
    seconds: float = 0.0
    left: float | None = None
    trace: Trace = field(default_factory=Trace)
    incomplete: str = ""

    def __str__(self) -> str:
        return self.text

    @property
    def complete(self) -> bool:
        """Whether the model wrote the answer to its end."""
        return not self.incomplete

    @property
    def confidence(self) -> float | None:
        """How likely the answer is right, 0 to 1, by what the model's probe read from its states
        while this chain was written; None where there is no probe."""
        return self.chain.confidence

    @property
    def total(self) -> Usage:
        """What the search cost, all roles together."""
        return sum(self.usage.values(), Usage())
