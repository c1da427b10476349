"""How a server is asked to choose, and what its reply says of each choice.

The ways of `dialect.Verdict`, the best first. Where only the choices' own probabilities are known,
or what was written, the numbers say which is likelier and no more.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from cot_engine.backends.server.asking import Asking
from cot_engine.backends.server.dialect import Dialect, Verdict
from cot_engine.backends.server.written import Token, Written
from cot_engine.errors import InputError

WAYS: tuple[Verdict, ...] = ("token ids", "choice", "bias", "top", "text")
SAID: dict[Verdict, str] = {
    "token ids": "Verdicts are the log-probabilities of the choices' own tokens.",
    "choice": "Verdicts are log-probabilities among the choices alone, of which the server is made "
    "to write one.",
    "bias": "Verdicts are log-probabilities behind a bias for the choices' tokens.",
    "top": "Verdicts are read off the likeliest tokens: a choice that is not among them is taken "
    "to be as likely as the last of them.",
    "text": "Verdicts are what the server writes: it tells no log-probabilities, so margins are "
    "all or nothing.",
}
"""What a user is told of each way."""
_TOPS = 20  # the most that servers give
_BIAS = 100
SHORT = 8
"""Tokens in which a choice is written, where that is how it is found out."""
_UNLIKELY = -20.0  # of a choice that was not written
_ANCHORS = ("\n", ":", "a", "0", ">")
_KEPT = 1024


class Spelling:
    """The tokens of texts, as a server that has /tokenize spells them."""

    def __init__(self, asking: Asking, dialect: Dialect) -> None:
        self.asking, self.dialect = asking, dialect
        self._kept: OrderedDict[str, tuple[int, ...]] = OrderedDict()

    async def lone(self, text: str) -> bool:
        """Whether a text is one token."""
        return len(await self.ids(text)) == 1

    async def ids(self, text: str) -> tuple[int, ...]:
        """The tokens of a text, as if it stood alone. Raises as asking does."""
        if text not in self._kept:
            asked = {"model": self.dialect.model, "prompt": text, "add_special_tokens": False}
            found = (await self.asking.value("/tokenize", asked)).get("tokens")
            numbers = found if isinstance(found, list) else []
            self._kept[text] = tuple(n for n in numbers if type(n) is int)
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return self._kept[text]

    async def behind(self, text: str) -> tuple[int, ...]:
        """The tokens of a text in the middle of a line: an anchor in front, taken off again, keeps
        the space away that many tokenizers put before the first word."""
        if not text:
            return ()
        for anchor in _ANCHORS:
            alone, both = await self.ids(anchor), await self.ids(anchor + text)
            if both[: len(alone)] == alone:
                return both[len(alone) :]
        return await self.ids(text)

    async def first(self, prefix: str, choices: Sequence[str]) -> list[int]:
        """Each choice's first token as it is spelled after the prefix. Raises InputError if two
        have the same."""
        before = await self.behind(prefix)
        found: dict[int, str] = {}
        for choice in choices:
            both = await self.behind(prefix + choice)
            apart = both[: len(before)] == before and len(both) > len(before)
            own = both[len(before) :] if apart else await self.behind(choice)
            if not own or own[0] in found:
                other = found.get(own[0], "") if own else ""
                raise InputError(
                    f"The choices {other!r} and {choice!r} begin with the same token.",
                    "Choose words that this model's tokenizer tells apart at once.",
                )
            found[own[0]] = choice
        return list(found)


def asked(way: Verdict, server: str, choices: Sequence[str], ids: Sequence[int]) -> dict[str, Any]:
    """What is said besides the messages, to have one of the choices weighed against the others."""
    said: dict[str, Any] = {"temperature": 0.0, "max_tokens": 1}
    if way == "text":
        return said | {"max_tokens": SHORT}
    said["logprobs"] = True
    if way == "token ids":
        return said | {"logprob_token_ids": list(ids), "return_tokens_as_token_ids": True}
    said["top_logprobs"] = _TOPS
    if way == "bias":
        return said | {"logit_bias": {str(each): _BIAS for each in ids}}
    if way == "choice" and server == "SGLang":
        return said | {"regex": f"({'|'.join(map(re.escape, choices))})"}
    if way == "choice":
        return said | {"structured_outputs": {"choice": list(choices)}}
    return said


def weighed(
    way: Verdict, choices: Sequence[str], ids: Sequence[int], reply: Written
) -> list[float] | None:
    """A log-probability for each choice; None where the reply does not say what it should."""
    if way == "text":
        return _parsed(choices, reply.text)
    tops = reply.tops
    if way == "token ids":
        found = {each.id: each.logprob for each in tops}
        return [found[each] for each in ids] if all(each in found for each in ids) else None
    if not tops:
        return None
    each = [_likeliest(choice, choices, tops) for choice in choices]
    known = [value for value in each if value is not None]
    if way != "top" and len(known) < len(choices):
        return None
    least = min(token.logprob for token in tops)
    return [least if value is None else value for value in each]


def _likeliest(choice: str, choices: Sequence[str], tops: Sequence[Token]) -> float | None:
    """The log-probability of the likeliest token with which this choice begins, and no other."""
    begins = [
        token.logprob
        for token in tops
        if _begins(choice, token.text)
        and not any(_begins(other, token.text) for other in choices if other != choice)
    ]
    return max(begins, default=None)


def _begins(choice: str, token: str) -> bool:
    token, choice = token.strip(), choice.strip()
    return bool(token) and (choice.startswith(token) or token.startswith(choice))


def _parsed(choices: Sequence[str], text: str) -> list[float]:
    """The choice that a text begins with, or else the only one it has; none: all alike."""
    text = text.strip()
    wrote = [c for c in choices if text.startswith(c.strip())]
    wrote = wrote or [c for c in choices if re.search(rf"\b{re.escape(c.strip())}\b", text)]
    if len(wrote) != 1:
        return [-math.log(len(choices))] * len(choices)
    return [0.0 if choice == wrote[0] else _UNLIKELY for choice in choices]
