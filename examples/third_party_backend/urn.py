"""A backend without a model: it draws an answer from an urn, and says so in as many words."""

from __future__ import annotations

import asyncio
import random
import re
from dataclasses import dataclass
from typing import ClassVar

from cot_engine import (
    BackendInfo,
    Choose,
    Chosen,
    Generate,
    Generated,
    Generation,
    InputError,
    ModelError,
    Usage,
)

CONTEXT = 10_000
_WORD = re.compile(r"\s*\S+|\s+")  # what is a token here


@dataclass(frozen=True)
class Urn:
    """An urn of answers: urn:yes,no."""

    chatty: bool = False
    models: ClassVar[str] = r"urn:.*"

    def open(self, model, *, on_notice=None) -> UrnBackend:
        answers = [word for word in model.removeprefix("urn:").split(",") if word]
        if not answers:
            raise ModelError(f"The urn {model!r} is empty.", "Write urn:yes,no.")
        return UrnBackend(model, answers, self.chatty)


class UrnBackend:
    def __init__(self, model, answers, chatty):
        self.answers, self.chatty, self.closed = answers, chatty, False
        self.info = BackendInfo("urn", model, "0", "urn", "none", "none", CONTEXT, 16)

    async def generate(self, request: Generate) -> Generated:
        self._check(request)
        await asyncio.sleep(0)
        drawn = tuple(self._drawn(request, seed) for seed in request.seeds)
        decoded = sum(len(each.ids) for each in drawn)
        cost = Usage(prefilled=len(_read(request)), decoded=decoded, calls=len(drawn))
        return Generated(drawn, cost)

    def _drawn(self, request, seed):
        rng = random.Random(0 if request.sampling.greedy else seed)
        text = rng.choice(self.answers)
        if self.chatty:
            text = f"I put my hand in and hold {text}"
        text += request.until.strings[0] if request.until.strings else "."
        end = request.until.end(text)
        words = _WORD.findall(text[:end])
        finish = "eos" if end is None else "stop"
        if len(words) > request.max_new_tokens:
            words, finish = words[: request.max_new_tokens], "length"
        ids = tuple(sum(word.encode()) for word in words)
        return Generation("".join(words), ids, -float(len(words)), finish)

    async def choose(self, request: Choose) -> Chosen:
        self._check(request)
        await asyncio.sleep(0)
        each = tuple(-1.0 - i for i in range(len(request.choices)))
        tails = len(request.tails)
        return Chosen((each,) * tails, Usage(prefilled=tails * len(_read(request)), calls=tails))

    def estimate(self, request):
        if isinstance(request, Choose):
            return Usage(prefilled=len(request.tails) * len(_read(request)))
        decoded = len(request.seeds) * request.max_new_tokens
        return Usage(prefilled=len(_read(request)), decoded=decoded)

    def release(self, scope):
        pass

    def close(self):
        self.closed = True

    def _check(self, request):
        if self.closed:
            raise ModelError("The urn is closed.", "Open another one.")
        if len(_read(request)) >= CONTEXT:
            raise InputError(f"That is more than {CONTEXT} words.", "Ask a shorter question.")


def _read(request) -> list[str]:
    tails = max(request.tails, key=len) if isinstance(request, Choose) else ""
    before = "" if isinstance(request, Choose) else "".join(s.text for s in request.prefix)
    return _WORD.findall(request.prompt.text + tails + before)
