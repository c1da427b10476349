"""The backend for a model behind an OpenAI-compatible server.

    backend = Server().open("http://127.0.0.1:8000/v1")
    generated = await backend.generate(Generate(...))

Each candidate is a request of its own, with its own seed: candidate i of 2 is candidate i of 8,
which it would not be as one of `n` choices, whose seeds a server counts up. That they have the
prompt in common costs little: the server has it in its cache.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from cot_engine.backends.server.asking import Asking, all_of
from cot_engine.backends.server.costs import Costs, Scope
from cot_engine.backends.server.dialect import Dialect
from cot_engine.backends.server.measuring import begun, messages, places, prompt_of, spelled
from cot_engine.backends.server.messages import Pictures, Plain, conversation
from cot_engine.backends.server.verdicts import Spelling, asked, weighed
from cot_engine.backends.server.written import Refused, Written
from cot_engine.core.headway import Headway
from cot_engine.core.requests import (
    BackendInfo,
    Choose,
    Chosen,
    Generate,
    Generated,
    Measure,
    Measured,
    Prompt,
)
from cot_engine.core.usage import Usage
from cot_engine.errors import InputError, ModelError

if TYPE_CHECKING:
    from cot_engine.backends.server.sizes import Sizes

T = TypeVar("T")


class ServerBackend:
    """Implements `Measuring`. `opener.Server` makes one; `close` it, or use it in a `with`.

    `dialect` says how the server is asked; `name` what traces call the model. To be used in one
    event loop at a time.
    """

    def __init__(
        self,
        asking: Asking,
        dialect: Dialect,
        name: str,
        sizes: Sizes | None = None,
        max_pixels: int | None = None,
    ) -> None:
        self.asking, self.dialect, self.sizes = asking, dialect, sizes
        if sizes is not None:
            sizes.adapter.max_pixels = max_pixels
        self.costs = Costs(dialect, sizes)
        self.spelling = Spelling(asking, dialect)
        self._name = name
        self._pictures = Pictures(max_pixels)
        self._plain = Plain(self.spelling.lone if dialect.tokenize else None)
        self._scopes: dict[str, Scope] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    def __enter__(self) -> ServerBackend:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def info(self) -> BackendInfo:
        d, sizes = self.dialect, self.sizes
        known = "" if sizes is None else f" {sizes.digest}"
        return BackendInfo(
            name="server",
            model=self._name,
            digest=f"{d.model}{known}",
            architecture="not known" if sizes is None else sizes.architecture,
            device=urlsplit(self.asking.line.base_url).netloc,
            dtype="its own dtype",
            context=d.context,
            max_images=d.pictures,
            notes=d.notes,
            max_pixels=self._pictures.most,
        )

    # --- requests --------------------------------------------------------------------------------

    async def generate(self, request: Generate) -> Generated:
        if not request.seeds or request.max_new_tokens < 1:
            raise InputError("A request to write needs at least one seed and one new token.")
        return await self._unless_closed(self._generate(request))

    async def choose(self, request: Choose) -> Chosen:
        if not request.tails or not request.choices:
            raise InputError("A request to choose needs at least one tail and one choice.")
        return await self._unless_closed(self._choose(request))

    async def measure(self, request: Measure) -> Measured:
        if not request.dialogues or not all(dialogue.turns for dialogue in request.dialogues):
            raise InputError("A request to measure needs at least one dialogue, each with a turn.")
        if not request.choices:
            raise InputError(
                "A chat server tells no states of its model, which a head reads.",
                "Load the model in this process, or behind a server that pools: "
                "ADDRESS#task=pooling.",
            )
        if self.dialect.verdict == "text":
            raise InputError(
                "The server tells no log-probabilities, which a verifier by tokens reads.",
                "Ask it in writing: a verifier of kind text.",
            )
        return await self._unless_closed(self._measure(request))

    def estimate(self, request: Generate | Choose | Measure) -> Usage:
        self._check_open()
        scope = self._scopes.get(request.scope) or Scope("")
        return self.costs.estimate(scope, request)

    def release(self, scope: str) -> None:
        self._scopes.pop(scope, None)

    def close(self) -> None:
        """Fail what is in flight at once, and let go of the connections."""
        self._closed = True
        for task in list(self._tasks):
            _in_its_loop(task.get_loop(), task.cancel)
        self.asking.line.close()
        self._scopes.clear()

    # --- writing ---------------------------------------------------------------------------------

    async def _generate(self, request: Generate) -> Generated:
        began, scope = time.monotonic(), self._scope(request.scope)
        prefix = "".join(segment.text for segment in request.prefix)
        payload = await self._payload(request.scope, request.prompt, "", prefix)
        payload |= self.dialect.sampling(request.sampling) | self.dialect.numbered()
        payload |= self.dialect.stops(request.until.strings)
        read: list[Written] = []
        room = self.dialect.context - self.costs.counted(scope, request.prompt, prefix)
        most = max(1, min(request.max_new_tokens, room))
        try:
            made = await self._candidates(payload, request, most)
        except InputError:
            room = await self._room(payload, most, read)
            if room >= most:
                raise
            made = await self._candidates(payload, request, room)
        most = request.max_new_tokens
        try:
            generations = tuple(
                each.generation(most, request.deadline is not None) for each in made
            )
        except Refused as error:
            raise InputError(f"The server answered, but {error}.") from None
        sent = [each for each in made if each.sent] + read
        usage = self.costs.charged(scope, request.prompt, prefix, sent)
        return Generated(generations, _taking(usage, began))

    async def _candidates(
        self, payload: dict[str, Any], request: Generate, most: int
    ) -> list[Written]:
        """One for each seed, all asked at the same time."""
        telling = _Telling(request.headway, len(request.seeds))
        early = request.until.sentence or (bool(request.until.strings) and "stop" not in payload)
        payload = payload | {"max_tokens": most}
        if early or request.deadline is not None or request.headway is not None:
            payload |= self.dialect.streamed()

        async def one(at: int, seed: int) -> Written:
            into = Written(sent=False)

            def make() -> Written:
                nonlocal into
                into = telling.of(at, Written(request.until, early))
                return into

            left = None if request.deadline is None else request.deadline - time.monotonic()
            try:
                async with asyncio.timeout(left):
                    await self.asking.written(payload | {"seed": seed}, make)
            except TimeoutError:
                pass  # what is there by the deadline is what there is
            telling.finished()
            return into

        return await all_of(*(one(at, seed) for at, seed in enumerate(request.seeds)))

    async def _room(self, payload: dict[str, Any], wanted: int, read: list[Written]) -> int:
        """How many tokens fit behind a prompt with which `wanted` did not; what was asked to find
        out goes to `read`. Raises InputError where it is not their number that is refused."""
        if wanted == 1:
            return wanted
        one = await self.asking.written(payload | {"max_tokens": 1, "temperature": 0.0}, Written)
        read.append(one)
        return wanted if one.prompt is None else max(1, self.dialect.context - one.prompt)

    # --- choosing --------------------------------------------------------------------------------

    async def _choose(self, request: Choose) -> Chosen:
        began, scope, way = time.monotonic(), self._scope(request.scope), self.dialect.verdict
        choices = request.choices
        ids = await self.spelling.first(request.prefix, choices) if self.dialect.tokenize else []
        payloads = [
            await self._payload(request.scope, request.prompt, tail, request.prefix)
            for tail in request.tails
        ]
        how = asked(way, self.dialect.server, choices, ids)
        telling = _Telling(request.headway, len(payloads))

        async def one(payload: dict[str, Any]) -> Written:
            found = await self.asking.written(payload | how, Written)
            telling.finished()
            return found

        replies = await all_of(*map(one, payloads))
        usage, rows = Usage(), []
        for tail, reply in zip(request.tails, replies, strict=True):
            row = weighed(way, choices, ids, reply)
            if row is None:
                raise ModelError(
                    "The server's reply does not weigh the choices, as it did when it was probed.",
                    "Has it been started anew with other options? Open it again.",
                )
            rows.append(tuple(row))
            prompt = Prompt(request.prompt.text + tail, request.prompt.images)
            # That a token is drawn to see its probability costs nothing: it is never read.
            drawn = int(way != "text")
            usage += self.costs.charged(scope, prompt, request.prefix, [reply], drawn)
        return Chosen(tuple(rows), _taking(usage, began))

    async def _measure(self, request: Measure) -> Measured:
        began, scope, way = time.monotonic(), self._scope(request.scope), self.dialect.verdict
        choices = request.choices
        ids = await self.spelling.first("", choices) if self.dialect.tokenize else []
        how = asked(way, self.dialect.server, choices, ids)
        each = [(d, place) for d in request.dialogues for place in places(d)]
        self._check_pictures(max(len(d.images) for d in request.dialogues))
        telling = _Telling(request.headway, len(each))

        async def one(turns: Any, pieces: Any) -> Written:
            made = await messages(turns, self._plain, self._pictures.parts)
            chat = begun(made, await spelled(pieces, self._plain))
            said = self.dialect.common() | chat | self.dialect.of_search(scope.salt)
            found = await self.asking.written(said | how, Written)
            telling.finished()
            return found

        replies = await all_of(*(one(*place) for _, place in each))
        usage, rows = Usage(), []
        for (_, (turns, pieces)), reply in zip(each, replies, strict=True):
            row = weighed(way, choices, ids, reply)
            if row is None:
                raise ModelError(
                    "The server's reply does not weigh the choices, as it did when it was probed.",
                    "Has it been started anew with other options? Open it again.",
                )
            rows.append(tuple(row))
            prefix = "".join(piece.text for piece in pieces)
            usage += self.costs.charged(scope, prompt_of(turns), prefix, [reply], 1)
        left = iter(rows)
        numbers = tuple(tuple(next(left) for _ in range(d.places)) for d in request.dialogues)
        return Measured(numbers, _taking(usage, began))

    # --- what both have --------------------------------------------------------------------------

    async def _payload(self, scope: str, prompt: Prompt, tail: str, prefix: str) -> dict[str, Any]:
        pictures = await self._pictures.parts(prompt.images)
        self._check_pictures(len(pictures))
        text, prefix = await self._plain(prompt.text + tail), await self._plain(prefix)
        said = self.dialect.common() | conversation(text, pictures, prefix)
        return said | self.dialect.of_search(self._scope(scope).salt)

    def _check_pictures(self, count: int) -> None:
        if count > self.dialect.pictures:
            raise InputError(
                f"There are {count} pictures; the server's model takes "
                f"{self.dialect.pictures} at once."
            )

    def _scope(self, scope: str) -> Scope:
        return self._scopes.setdefault(scope, Scope(secrets.token_hex(16)))

    def _check_open(self) -> None:
        if self._closed:
            raise ModelError("The backend is closed.", "Open the server again.")

    async def _unless_closed(self, work: Coroutine[Any, Any, T]) -> T:
        """Do it, unless this is closed before it is done."""
        try:
            self._check_open()
        except ModelError:
            work.close()
            raise
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            mine = asyncio.current_task()
            if not self._closed or (mine is not None and mine.cancelling()):
                raise
            raise ModelError("The backend was closed.", "Open the server again.") from None
        finally:
            self._tasks.discard(task)


class _Telling:
    """Tells who watches how far it is: tokens and texts of all continuations, how many are
    finished."""

    def __init__(self, headway: Headway | None, count: int) -> None:
        self.headway = headway
        self._tokens = [0] * count
        self._replies = [Written(sent=False) for _ in range(count)]

    def of(self, at: int, into: Written) -> Written:
        """`into`, watched as the continuation of that number."""
        self._replies[at] = into
        if self.headway is not None:
            into.heard = lambda tokens: self._heard(at, tokens)
        return into

    def _heard(self, at: int, tokens: int) -> None:
        self._tokens[at] = tokens
        assert self.headway is not None  # else nobody tells it
        self.headway.tokens = sum(self._tokens)
        self.headway.written = lambda: [each.text for each in self._replies]

    def finished(self) -> None:
        if self.headway is not None:
            self.headway.finished += 1


def _taking(usage: Usage, began: float) -> Usage:
    """With the seconds that it was waited for."""
    return replace(usage, seconds=time.monotonic() - began)


def _in_its_loop(loop: asyncio.AbstractEventLoop, act: Callable[[], Any]) -> None:
    with suppress(RuntimeError):  # it is closed already
        loop.call_soon_threadsafe(act)
