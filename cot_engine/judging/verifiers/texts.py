"""Verifiers in writing: a score or a choice is read from what a model writes about candidates."""

from __future__ import annotations

import re
from collections.abc import Mapping as Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any as Any
from typing import ClassVar

from cot_engine.core.boundaries import Until
from cot_engine.core.chain import Chain
from cot_engine.core.match import Verdict
from cot_engine.core.parts import Scale
from cot_engine.core.requests import GREEDY, Dialogue, Prompt
from cot_engine.core.stages import LONGEST
from cot_engine.errors import ConfigError, InputError, cut, shown
from cot_engine.judging.protocol import Ask, Case, Pair
from cot_engine.judging.verifiers.asked import Asked
from cot_engine.judging.verifiers.scale import Aggregate as Aggregate
from cot_engine.judging.verifiers.scale import finite, verdict
from cot_engine.judging.verifiers.words import Steps as Steps
from cot_engine.judging.verifiers.words import Turn as Turn

NUMBER = r"(?i)score(?:\s+(?:is|of))?[^\w-]{0,12}?(-?(?:\d+(?:\.\d+)?|\.\d+))"
CHOICE = r"(?i)(?:choice|attempt|answer|response)\W{0,6}(?:number\s*)?([12])\b"
_ALONE = re.compile(r"\W*(-?\d+(?:\.\d+)?)(?:\s*/\s*\d+)?\W*")
_GOES_ON = re.compile(r"\d|[.,]\d|[eE][+-]?\d")
"""Behind what was found: it is a part of a number, such as of 1e9 or 1,000."""
_OF = re.compile(r"\s*(?:/|out of)\s*(\d+(?:\.\d+)?)")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextVerifier(Asked):
    """A number for each candidate, read from what the model writes: the last match of `pattern`, a
    regular expression whose first group is the number, or a reply that is a number alone.

    `length` is the most tokens of a reply. A reply without a number counts as `missing` (in the
    range `low` to `high`); without that, likelihood stands in for all. Raises ConfigError for what
    will not do.
    """

    pattern: str = NUMBER
    length: int = 300
    missing: float | None = None

    def __post_init__(self) -> None:
        if self.low is None and self.spread is None and not self.turns and not self.ask:
            object.__setattr__(self, "low", 0.0)
            object.__setattr__(self, "high", 100.0)
        Asked.__post_init__(self)
        _check(self, groups=1)
        self.reading.check("any")
        if self.missing is not None:
            try:
                self.reading.number(self.missing)
            except InputError:
                raise ConfigError(
                    f"missing is {self.missing:g}, outside the range.", "Give one within it."
                ) from None

    def _words(self) -> str:
        return (
            "{sentence} Give your reason in a few sentences. Then write, on a line of its own,"
            " 'Score:' and a number from 0 (all wrong) to 100 (all right)."
        )

    @property
    def scale(self) -> Scale:
        """What its numbers are."""
        return self.reading.scale("any")

    async def score(self, chains: Sequence[Chain], case: Case, ask: Ask) -> list[float]:
        """A number for each chain. Raises as `Scorer.score` does."""
        told = [self.script.of_one(chain, case)[0] for chain in chains]
        replies = await _written(self, told, case, ask)
        return [self.reading.number(self.parse(reply)) for reply in replies]

    def parse(self, reply: str) -> float:
        """The score in a reply. Raises InputError where there is none."""
        found = [match for match in re.finditer(self.pattern, reply) if match[1]]
        if not found and (alone := _ALONE.fullmatch(reply)):
            found = [alone]
        found = [match for match in found if not _GOES_ON.match(reply, match.end(1))]
        try:
            number = finite(float(found[-1][1]))
        except (IndexError, ValueError):
            if self.missing is not None:
                return self.missing
            raise InputError(
                f"The verifier wrote no score: {shown(cut(reply, 80))}.",
                "Set its pattern, a larger length, or what a reply without one counts as: missing.",
            ) from None
        of, high = _OF.match(reply, found[-1].end(1)), self.reading.high
        if of and high is not None and float(of[1]) != high:
            raise InputError(
                f"The verifier wrote {number:g} of {of[1]}, and its range ends at {high:g}.",
                "Set low and high to what it gives, or ask for another range.",
            )
        return number


@dataclass(frozen=True, slots=True, kw_only=True)
class TextJudge(Asked):
    """A verdict on each ordered pair, read from what the model writes. `pattern` finds the choice,
    its first group; what that is for is said by `first`, `second` and `tie`. With two groups it
    finds a score for each, and the higher one is better. A reply without exactly one choice is
    unreadable, hence a tie. Raises ConfigError for what will not do."""

    pattern: str = CHOICE
    first: tuple[str, ...] = ("1", "first", "A")
    second: tuple[str, ...] = ("2", "second", "B")
    tie: tuple[str, ...] = ("tie", "equal", "same")
    length: int = 300
    pairwise: ClassVar[bool] = True
    symmetric: ClassVar[bool] = False

    def __post_init__(self) -> None:
        Asked.__post_init__(self)
        _check(self, groups=2)
        words = [word.lower() for word in (*self.first, *self.second, *self.tie)]
        if len(set(words)) < len(words):
            raise ConfigError("A word stands for two choices.", "Name each word once.")

    def _words(self) -> str:
        return (
            "Which attempt is better, and has fewer errors? First give your reason in a few"
            " sentences. Then write, on a line of its own, 'Choice: 1' or 'Choice: 2'."
        )

    async def compare(self, pairs: Sequence[Pair], case: Case, ask: Ask) -> list[Verdict]:
        """A verdict for each pair, in order. Raises as `Judge.compare` does."""
        told = [self.script.of_pair(a, b, case) for a, b in pairs]
        return [self.parse(reply) for reply in await _written(self, told, case, ask)]

    def parse(self, reply: str) -> Verdict:
        """What a reply says."""
        found = list(re.finditer(self.pattern, reply))
        margins = {self._margin(match) for match in found}
        if not found and (alone := _ALONE.fullmatch(reply)):
            margins = {self._of(alone[1])}
        margins.discard(None)
        if len(margins) != 1:
            return Verdict("tie", 0.0, False, reply)
        margin = margins.pop() or 0.0
        return verdict(margin, True, reply)

    def _margin(self, match: re.Match[str]) -> float | None:
        if (match.re.groups) == 1:
            return self._of(match[1] or "")
        try:
            one, two = float(match[1]), float(match[2])
        except (TypeError, ValueError):
            return None
        return one - two if abs(one - two) < 1e100 else None

    def _of(self, word: str) -> float | None:
        for margin, words in ((1.0, self.first), (-1.0, self.second), (0.0, self.tie)):
            if word.lower() in (each.lower() for each in words):
                return margin
        return None


def _check(verifier: TextVerifier | TextJudge, groups: int) -> None:
    if not (type(verifier.length) is int and 1 <= verifier.length <= LONGEST):
        raise ConfigError(
            f"length is {shown(verifier.length)}.", f"It must be 1 to {LONGEST} tokens."
        )
    try:
        found = re.compile(verifier.pattern).groups
    except (re.error, TypeError) as error:
        raise ConfigError(
            f"pattern is {shown(verifier.pattern)}: {error}.", "Give a regular expression."
        ) from None
    if not 1 <= found <= groups:
        raise ConfigError(
            f"The pattern {shown(verifier.pattern)} has {found} groups.",
            "Its first group is the score." if groups == 1 else "Its first group is the choice.",
        )
    turns = verifier.script.turns
    if len(turns) != 1 or turns[0].speaker != "user" or verifier.script.marked:
        raise ConfigError(
            f"A verifier in writing has {len(turns)} turns.",
            "It is asked in one turn of the user, without {mark}.",
        )


async def _written(
    verifier: TextVerifier | TextJudge, told: Sequence[Dialogue], case: Case, ask: Ask
) -> list[str]:
    texts = [dialogue.turns[0].text for dialogue in told]
    own = await ask.verifying(verifier.binding)
    prompt = Prompt("", case.images)
    return await own.write(prompt, texts, Until(), verifier.length, GREEDY)
