"""A backend made of arithmetic, and searches on it."""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cot_engine import plugins
from cot_engine.backends import Backend, BackendInfo
from cot_engine.events import Event
from cot_engine.judges import Judge, Scorer, ScorerJudge
from cot_engine.search import Named, search
from cot_engine.session import Settings
from cot_engine.stages import DEFAULT_PLAN, Plan, next_stage, read
from cot_engine.strategy import Strategy
from cot_engine.types import (
    Answer,
    Choose,
    Chosen,
    Generate,
    Generated,
    Generation,
    Problem,
    Prompt,
    Usage,
)

_PIECE = re.compile(r"\s*\S+|\s+")
_COMPARED = re.compile(r"(?:Attempt 1:\n|1: )(.*?)\n(?:Attempt 2:\n|2: )(.*)", re.DOTALL)
_FLOPS_PER_TOKEN = 1000


def _number(*parts: object) -> int:
    text = "|".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest())


def staged_reply(request: Generate, seed: int, plan: Plan = DEFAULT_PLAN) -> str:
    """What the scripted model writes by default: the stages still ahead, well formed.

    Each stage is a sentence of some words and a number in 0..4 drawn from the seed; the last one
    is that number alone.
    """
    written = "".join(segment.text for segment in request.prefix)
    plan = plan.fit(len(request.prompt.images))
    reading, text = read(written, plan), ""
    while True:
        stage = plan[reading.open] if reading.open else next_stage(reading, plan)
        if stage is None:
            return text
        draw = 0 if request.sampling.greedy else _number(seed, stage.tag) % 5
        content = str(draw) if stage == plan.last else f"About {stage.tag.lower()} {draw}."
        text += ("" if reading.open else stage.open) + content + stage.close
        reading = read(written + text, plan)


@dataclass
class ScriptedBackend:
    """A backend whose replies are a function of request and seed; no model, no clock.

    A token is a word with the whitespace before it. Prefixes are shared within a scope as a real
    backend does, so that costs can be tested. `requests` keeps everything that was asked.
    """

    script: Callable[[Generate, int], str] = staged_reply
    prefer: Callable[[str], float] = lambda text: float(len(text))
    requests: list[Generate | Choose] = field(default_factory=list)
    released: list[str] = field(default_factory=list)
    info: BackendInfo = BackendInfo(
        "scripted", "scripted", "0", "arithmetic", "none", "none", 1_000_000, 100
    )
    _known: dict[str, set[tuple[str, ...]]] = field(default_factory=dict)
    _words: dict[int, str] = field(default_factory=dict)

    async def generate(self, request: Generate) -> Generated:
        self.requests.append(request)
        await asyncio.sleep(0)
        context = self._context(request)
        usage = self._read(request.scope, context, request.prompt)
        generations = []
        for seed in request.seeds:
            generation = self._generation(request, seed)
            words = [self._words[i] for i in generation.ids]
            self._remember(request.scope, (*context, *words))
            usage += Usage(decoded=len(words), flops=_FLOPS_PER_TOKEN * len(words))
            generations.append(generation)
        return Generated(tuple(generations), usage)

    def _generation(self, request: Generate, seed: int) -> Generation:
        text, finish = self.script(request, seed), "eos"
        if (end := request.until.end(text)) is not None:
            text, finish = text[:end], "stop"
        words = _PIECE.findall(text)
        if len(words) > request.max_new_tokens:
            words, finish = words[: request.max_new_tokens], "length"
        ids = tuple(_number(word) for word in words)
        self._words.update(zip(ids, words, strict=True))
        logprob = -sum(1 + i % 7 for i in ids) / 8
        return Generation("".join(words), ids, logprob, finish)  # type: ignore[arg-type]

    async def choose(self, request: Choose) -> Chosen:
        self.requests.append(request)
        await asyncio.sleep(0)
        usage, rows = Usage(), []
        for tail in request.tails:
            context = self._words_of(request.prompt.text + tail, request.prompt)
            usage += self._read(request.scope, context, request.prompt)
            compared = _COMPARED.search(tail)
            texts = compared.groups() if compared else ("", "")
            first, second = (self.prefer(text.strip()) for text in texts)
            margin = first - second
            rows.append((-0.7 + margin / 2, -0.7 - margin / 2))
        return Chosen(tuple(rows), usage)

    def estimate(self, request: Generate | Choose) -> Usage:
        known = self._known.get(request.scope, set())
        if isinstance(request, Choose):
            texts = [self._words_of(request.prompt.text + t, request.prompt) for t in request.tails]
        else:
            texts = [self._context(request)]
        fresh = sum(len(text) - _shared(known, text) for text in texts)
        decoded = (
            len(request.seeds) * request.max_new_tokens if isinstance(request, Generate) else 0
        )
        return Usage(
            encodes=len(request.prompt.images),
            prefilled=fresh,
            decoded=decoded,
            flops=_FLOPS_PER_TOKEN * (fresh + decoded),
        )

    def release(self, scope: str) -> None:
        self.released.append(scope)
        self._known.pop(scope, None)

    def close(self) -> None:
        self._known.clear()

    def _context(self, request: Generate) -> tuple[str, ...]:
        written = "".join(segment.text for segment in request.prefix)
        return (*self._words_of(request.prompt.text, request.prompt), *_PIECE.findall(written))

    def _words_of(self, text: str, prompt: Prompt) -> tuple[str, ...]:
        return (*(f"<{image.digest}>" for image in prompt.images), *_PIECE.findall(text))

    def _read(self, scope: str, words: tuple[str, ...], prompt: Prompt) -> Usage:
        known = self._known.setdefault(scope, set())
        shared = _shared(known, words)
        encodes = sum((f"<{image.digest}>",) not in known for image in prompt.images)
        known.update((f"<{image.digest}>",) for image in prompt.images)
        self._remember(scope, words)
        fresh = len(words) - shared
        return Usage(encodes, fresh, shared, 0, _FLOPS_PER_TOKEN * fresh)

    def _remember(self, scope: str, words: tuple[str, ...]) -> None:
        known = self._known.setdefault(scope, set())
        known.update(words[:k] for k in range(1, len(words) + 1))


def _shared(known: set[tuple[str, ...]], words: tuple[str, ...]) -> int:
    k = 0
    while k < len(words) and words[: k + 1] in known:
        k += 1
    return k


def scorer_of(name: str) -> Scorer:
    """The scorer of that name, as an engine makes it."""
    return plugins.make("scorer", name, {})


def solve_scripted(
    strategy: Strategy,
    *,
    backend: Backend | None = None,
    judge: Judge | None = None,
    problem: Problem | None = None,
    settings: Settings | None = None,
    listen: Callable[[Event], None] | None = None,
    scorers: Callable[[str], Scorer] | None = None,
) -> Answer:
    """Run one search from synchronous code, on the scripted backend unless told otherwise.
    `scorers` gives the scorer of a name, if not plug-ins do."""
    return asyncio.run(
        search(
            problem or Problem("p", "How many are there?"),
            Named(type(strategy).__name__, strategy),
            Named("likelihood", judge or ScorerJudge()),
            backend or ScriptedBackend(),
            settings or Settings(),
            scorers=scorers or scorer_of,
            listen=listen,
        )
    )


def alike(a: Any, b: Any, tolerance: float = 1e-3) -> bool:
    """Whether two canonical traces are equal, numbers to a tolerance: sums of log-probabilities
    differ in their last digits from batch to batch."""
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(alike(a[key], b[key], tolerance) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(alike(x, y, tolerance) for x, y in zip(a, b, strict=True))
    return a == b
