"""A backend made of arithmetic: replies are a function of request and seed."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cot_engine.core.grammar import next_stage, read
from cot_engine.core.headway import Headway
from cot_engine.core.requests import (
    BackendInfo,
    Choose,
    Chosen,
    Dialogue,
    Finish,
    Generate,
    Generated,
    Generation,
    Measure,
    Measured,
    Prompt,
)
from cot_engine.core.stages import DEFAULT_PLAN, Plan
from cot_engine.core.usage import Usage
from cot_engine.errors import InputError, ModelError

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
    backend does, so that costs can be tested. `requests` keeps everything that was asked. With a
    `pause` it takes that many seconds over each word and each pair judged, to be watched at it.
    """

    script: Callable[[Generate, int], str] = staged_reply
    prefer: Callable[[str], float] = lambda text: float(len(text))
    requests: list[Generate | Choose | Measure] = field(default_factory=list)
    released: list[str] = field(default_factory=list)
    info: BackendInfo = BackendInfo(
        "scripted", "scripted", "0", "arithmetic", "none", "none", 1_000_000, 100
    )
    closed: bool = False
    pause: float = 0.0
    _known: dict[str, set[tuple[str, ...]]] = field(default_factory=dict)
    _words: dict[int, str] = field(default_factory=dict)

    async def _take(self, request: Generate | Choose | Measure) -> None:
        self.requests.append(request)
        await asyncio.sleep(0)
        if self.closed:
            raise ModelError("The backend is closed.", "Make another one.")

    async def generate(self, request: Generate) -> Generated:
        await self._take(request)
        context = self._context(request)
        usage = self._read(request.scope, context, request.prompt)
        generations = []
        for seed in request.seeds:
            generation = self._generation(request, seed)
            words = [self._words[i] for i in generation.ids]
            self._remember(request.scope, (*context, *words))
            usage += Usage(decoded=len(words), flops=_FLOPS_PER_TOKEN * len(words))
            generations.append(generation)
        if self.pause:
            await self._write(request, generations)
        return Generated(tuple(generations), usage)

    async def _write(self, request: Generate, generations: list[Generation]) -> None:
        """Let the words come one by one, in all continuations at once."""
        headway = request.headway or Headway()
        written = [""] * len(generations)
        headway.written = lambda: tuple(written)
        for at in range(max(len(generation.ids) for generation in generations)):
            await asyncio.sleep(self.pause)
            for k, generation in enumerate(generations):
                if at < len(generation.ids):
                    written[k] += self._words[generation.ids[at]]
                    headway.tokens += 1
                headway.finished += at == len(generation.ids) - 1

    def _generation(self, request: Generate, seed: int) -> Generation:
        text = self.script(request, seed)
        finish: Finish = "eos"
        if (end := request.until.end(text)) is not None:
            text, finish = text[:end], "stop"
        words = _PIECE.findall(text)
        if len(words) > request.max_new_tokens:
            words, finish = words[: request.max_new_tokens], "length"
        ids = tuple(_number(word) for word in words)
        self._words.update(zip(ids, words, strict=True))
        logprob = -sum(1 + i % 7 for i in ids) / 8
        return Generation("".join(words), ids, logprob, finish)

    async def choose(self, request: Choose) -> Chosen:
        await self._take(request)
        usage, rows = Usage(), []
        for tail in request.tails:
            if self.pause:
                await asyncio.sleep(self.pause)
                if request.headway is not None:
                    request.headway.finished += 1
            context = self._words_of(request.prompt.text + tail, request.prompt)
            usage += self._read(request.scope, context, request.prompt)
            compared = _COMPARED.search(tail)
            texts = compared.groups() if compared else ("", "")
            first, second = (self.prefer(text.strip()) for text in texts)
            margin = first - second
            more = (-9.0,) * (len(request.choices) - 2)
            rows.append((-0.7 + margin / 2, -0.7 - margin / 2, *more))
        return Chosen(tuple(rows), usage)

    async def measure(self, request: Measure) -> Measured:
        """A place's first choice is the likelier by what `prefer` thinks of the data before it; a
        state is that, and 1."""
        await self._take(request)
        usage, found = Usage(), []
        for dialogue in request.dialogues:
            prompt = Prompt("", dialogue.images)
            usage += self._read(
                request.scope, self._words_of(dialogue_text(dialogue), prompt), prompt
            )
            data, places = "", []
            for piece in (piece for turn in dialogue.turns for piece in turn.pieces):
                data += "" if piece.own else piece.text
                if piece.mark:
                    places.append(self._number(request, data))
            found.append(tuple(places) or (self._number(request, data),))
        return Measured(tuple(found), usage)

    def _number(self, request: Measure, data: str) -> tuple[float, ...]:
        liked = self.prefer(data.strip())
        if not request.choices:
            return liked, 1.0
        more = (-9.0,) * (len(request.choices) - 2)
        return (-0.7 + liked / 2, -0.7 - liked / 2, *more)[: len(request.choices)]

    def estimate(self, request: Generate | Choose | Measure) -> Usage:
        known = self._known.get(request.scope, set())
        if isinstance(request, Measure):
            each = request.dialogues
            texts = [self._words_of(dialogue_text(d), Prompt("", d.images)) for d in each]
            fresh = sum(len(text) - _shared(known, text) for text in texts)
            flops = _FLOPS_PER_TOKEN * fresh
            return Usage(len(request.images), fresh, flops=flops)
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
        self.closed = True
        self._known.clear()

    def _context(self, request: Generate) -> tuple[str, ...]:
        written = "".join(segment.text for segment in request.prefix)
        return self._words_of(request.prompt.text, request.prompt, _PIECE.findall(written))

    def _words_of(self, text: str, prompt: Prompt, more: Sequence[str] = ()) -> tuple[str, ...]:
        images = (f"<{image.digest}>" for image in prompt.images)
        words = (*images, *_PIECE.findall(text), *more)
        if len(words) >= self.info.context:
            raise InputError(f"{len(words)} words; the model holds {self.info.context}.")
        return words

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


def dialogue_text(dialogue: Dialogue) -> str:
    """A dialogue as the scripted model reads it."""
    turns = [f"{turn.speaker}: {turn.text}" for turn in dialogue.turns]
    return "\n".join([*turns, "assistant:"] if dialogue.opens else turns)


def _shared(known: set[tuple[str, ...]], words: tuple[str, ...]) -> int:
    k = 0
    while k < len(words) and words[: k + 1] in known:
        k += 1
    return k
