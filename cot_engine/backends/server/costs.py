"""What requests to a server cost: what it counted, and before that what they can cost at most.

A server counts the tokens of a prompt when it has read it. What it has read in a search is
remembered, as text; what another text has in common with that, the server has in its cache, but for
a block at its end. What comes on top is bounded by its bytes. Where the model's folder is known
(`sizes`), its own tokenizer counts, and floating-point operations follow from its config.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from cot_engine.backends.server.dialect import Dialect
from cot_engine.backends.server.measuring import asked_prompts
from cot_engine.backends.server.verdicts import SHORT
from cot_engine.backends.server.written import Written
from cot_engine.core.requests import Choose, Generate, Measure, Prompt
from cot_engine.core.usage import Usage

if TYPE_CHECKING:
    from cot_engine.backends.server.sizes import Sizes

_TURN = "\0"  # between the user's text and the reply, in what is remembered
_RETOLD = 4
"""Tokens by which what a model wrote may become more when it is read as a text."""


@dataclass
class Known:
    """Texts with their tokens, behind the same pictures: those that the server `read`, and those
    that it has `written` so far, which it may spell otherwise when it reads them."""

    read: dict[str, int] = field(default_factory=dict)
    written: dict[str, int] = field(default_factory=dict)


@dataclass
class Scope:
    """What is remembered of a search: its `salt`, which keeps its part of the server's cache apart,
    the digests of the pictures that were `encoded`, and by pictures what is `known`."""

    salt: str
    encoded: set[str] = field(default_factory=set)
    known: dict[tuple[str, ...], Known] = field(default_factory=dict)

    def of(self, prompt: Prompt) -> Known:
        """What is known behind these pictures."""
        return self.known.setdefault(tuple(image.digest for image in prompt.images), Known())


@dataclass
class Costs:
    """Those of one server."""

    dialect: Dialect
    sizes: Sizes | None = None

    # --- afterwards ------------------------------------------------------------------------------

    def charged(
        self, scope: Scope, prompt: Prompt, prefix: str, replies: Sequence[Written], drawn: int = 0
    ) -> Usage:
        """What these cost, all of which read `prompt` and `prefix`; so many tokens of each were
        drawn to be looked at, and not written."""
        used, known, text = Usage(), scope.of(prompt), prompt.text + _TURN + prefix
        for each in replies:
            read = self.total(known, prompt, text) if each.prompt is None else each.prompt
            cached = each.cached
            if cached is None:  # it was given up before that was said, or is never said
                cached = self.held(known, text) if self.dialect.block else 0
            cached, decoded = min(cached, read), max(0, each.decoded - drawn)
            used += Usage(prefilled=read - cached, cached=cached, decoded=decoded, calls=1)
            if self.sizes is not None:
                flops = self.sizes.text(prompt, read - cached, cached, decoded)
                used = replace(used, flops=used.flops + flops)
            known.read[text] = read
            if each.text and decoded:
                known.written[text + each.text] = read + decoded + _RETOLD
        new = self._new(scope, prompt)
        scope.encoded |= new.keys()
        return replace(used, encodes=len(new), flops=used.flops + self._seen(new.values()))

    # --- before ----------------------------------------------------------------------------------

    def estimate(self, scope: Scope, request: Generate | Choose | Measure) -> Usage:
        """The most that a request can cost, if the server still has in its cache what it read in
        this search."""
        if isinstance(request, Measure):
            return self._measuring(scope, request)
        if isinstance(request, Generate):
            prefix = "".join(segment.text for segment in request.prefix)
            texts = [request.prompt.text + _TURN + prefix] * len(request.seeds)
            decoded = request.max_new_tokens
        else:
            start, end = request.prompt.text, _TURN + request.prefix
            texts = [start + tail + end for tail in request.tails]
            decoded = SHORT if self.dialect.verdict == "text" else 0
        known = scope.of(request.prompt)
        known = Known(dict(known.read), known.written)
        new = self._new(scope, request.prompt)
        used = Usage(encodes=len(new), flops=self._seen(new.values()), calls=len(texts))
        return used + self._reading(known, request.prompt, texts, decoded)

    def _measuring(self, scope: Scope, request: Measure) -> Usage:
        """Each place is read for itself; what was read for one before it, the server has."""
        decoded = SHORT if self.dialect.verdict == "text" else 0
        behind: dict[tuple[str, ...], Known] = {}
        new: dict[str, Any] = {}
        used = Usage()
        for prompt, prefix in asked_prompts(request):
            key = tuple(image.digest for image in prompt.images)
            if key not in behind:
                known = scope.of(prompt)
                behind[key] = Known(dict(known.read), known.written)
            new |= self._new(scope, prompt)
            text = prompt.text + _TURN + prefix
            used += self._reading(behind[key], prompt, [text], decoded) + Usage(calls=1)
        return used + Usage(encodes=len(new), flops=self._seen(new.values()))

    def _reading(self, known: Known, prompt: Prompt, texts: Sequence[str], decoded: int) -> Usage:
        """What reading these can cost at most, one after the other, and writing behind each."""
        used = Usage()
        for text in texts:
            total = self.total(known, prompt, text)
            cached = max(0, min(self.held(known, text), total - 1)) if self.dialect.block else 0
            known.read[text] = total
            used += Usage(prefilled=total - cached, cached=cached, decoded=decoded)
            if self.sizes is not None:
                flops = self.sizes.text(prompt, total - cached, cached, decoded)
                used = replace(used, flops=used.flops + flops)
        return used

    def counted(self, scope: Scope, prompt: Prompt, prefix: str) -> int:
        """How many tokens they take, 0 where nobody has counted them."""
        known, text = scope.of(prompt), prompt.text + _TURN + prefix
        exact = text in known.read or self.sizes is not None
        return self.total(known, prompt, text) if exact else 0

    def total(self, known: Known, prompt: Prompt, text: str) -> int:
        """How many tokens a text takes with its pictures: at most, where nobody has read it."""
        if text in known.read:
            return known.read[text]
        if self.sizes is not None:
            user, _, reply = text.partition(_TURN)
            return self.sizes.tokens(Prompt(user, prompt.images), reply)
        d = self.dialect
        fresh = d.start + self._most(text) + d.picture * len(prompt.images)
        for texts in (known.read, known.written):
            if (near := _nearest(texts, text)) is not None:
                fresh = min(fresh, texts[near[0]] + self._most(text[near[1] :]))
        return fresh

    def held(self, known: Known, text: str) -> int:
        """How many tokens of a text the server has in its cache, at least: those of the text that
        was read and has the most in common with it, without those of the rest and of one block."""
        near = _nearest(known.read, text)
        if near is None:
            return 0
        other, common = near
        return max(0, known.read[other] - self._most(other[common:]) - self.dialect.block)

    def _most(self, text: str) -> int:
        """The most tokens that a piece of text takes, as far as is known."""
        if not text:
            return 0
        if self.sizes is not None:
            return self.sizes.piece(text.replace(_TURN, "\n")) + 1
        return 1 + round(len(text.encode("utf-8", "replace")) * self.dialect.per_byte)

    def _new(self, scope: Scope, prompt: Prompt) -> dict[str, Any]:
        return {i.digest: i for i in prompt.images if i.digest not in scope.encoded}

    def _seen(self, images: Any) -> int:
        return 0 if self.sizes is None else sum(map(self.sizes.image, images))


def _nearest(known: dict[str, int], text: str) -> tuple[str, int] | None:
    """Of the texts that were read, the one that has the longest beginning in common with `text`,
    and how long that is; None if none has any."""
    found: tuple[str, int] | None = None
    for other in known:
        least = 0 if found is None else found[1]
        # Most texts are left aside by one comparison.
        if other[: least + 1] == text[: least + 1] and len(other) > least:
            common = _common(other, text)
            if common > least:
                found = other, common
    return found


def _common(one: str, other: str) -> int:
    """How many characters two texts have in common at their beginning."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
