"""A search as server-sent events, for OpenAI's clients; and what a client that leaves stops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from starlette.responses import Response

from cot_engine.core.events import Failed, Finished, Notice, Progress, Started
from cot_engine.serve.failures import as_json, described
from cot_engine.serve.guard import Receive, Send
from cot_engine.serve.ticket import Cancelled, Ticket
from cot_engine.serve.told import Thinking, finish_reason, head, more, usage_of

T = TypeVar("T")

BEGIN_SECONDS = 5.0
"""How long a stream waits to begin, so that what is wrong is still an error with a status."""
ALIVE_SECONDS = 15.0
"""How long a stream may be silent before a comment says that it is alive."""
SEND_SECONDS = 60.0
"""How long a client may take to read what it is sent."""


async def attended(receive: Receive, ticket: Ticket, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`. If who asked goes away meanwhile, or this is cancelled, the search is.
    Raises Cancelled then."""
    gone = asyncio.ensure_future(_gone(receive))
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({gone, task}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        ticket.cancel()
        raise Cancelled("Who had asked is gone.")
    except asyncio.CancelledError:
        ticket.cancel()
        raise
    finally:
        gone.cancel()
        task.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def begun(ticket: Ticket) -> None:
    """Wait until it has begun, for a while. Raises what it failed with before it had."""
    with suppress(TimeoutError):
        async with asyncio.timeout(BEGIN_SECONDS):
            async for event in ticket.events():
                if not isinstance(event, (Started, Notice, Failed, Progress)):
                    return
            await ticket.answer()


async def chunks(ticket: Ticket, model: str, usage: bool) -> AsyncIterator[bytes]:
    """The search as chat.completion.chunks, from its beginning: a delta of reasoning_content for
    each stage that is decided, the answer as one of content."""

    def chunk(delta: dict[str, Any], finish: str | None = None, **own: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        also = {"usage": None} if usage else {}
        told = {**head(ticket, model, "chat.completion.chunk"), "choices": [choice], **also, **own}
        return _event(told)

    yield chunk({"role": "assistant", "content": ""})
    thinking = Thinking(ticket.call.plan)
    finished: Finished | None = None
    async for event in ticket.events():
        for text in thinking.take(event):
            yield chunk({"reasoning_content": text})
        if isinstance(event, Finished):
            finished = event
    try:
        await ticket.answer()
    except BaseException as error:
        if isinstance(error, asyncio.CancelledError):
            raise
        _, body, _ = described(error)
        yield _event(body)
        return
    assert finished is not None
    yield chunk({"content": finished.answer})
    own = more(ticket, finished)
    yield chunk({}, finish_reason(finished.incomplete), cot_engine=own)
    if usage:
        empty = {**head(ticket, model, "chat.completion.chunk"), "choices": []}
        yield _event({**empty, "usage": usage_of(finished.usage)})
    yield b"data: [DONE]\n\n"


def _event(value: Any) -> bytes:
    return b"data: " + as_json(value) + b"\n\n"


class EventStream(Response):
    """Server-sent events of a search. A client that leaves, or does not read, ends it, unless it
    only `watches`; one that is slow holds up nobody else."""

    media_type = "text/event-stream"

    def __init__(
        self, ticket: Ticket, events: AsyncIterator[bytes], *, watches: bool = False
    ) -> None:
        super().__init__()
        self.ticket, self.events, self.watches = ticket, events, watches

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        headers += [(b"x-accel-buffering", b"no"), (b"cache-control", b"no-store")]
        gone: asyncio.Future[Any] = asyncio.ensure_future(_gone(receive))
        waiting: asyncio.Future[Any] | None = None
        try:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            while True:
                waiting = waiting or asyncio.ensure_future(_next(self.events))
                await asyncio.wait(
                    {gone, waiting},
                    timeout=ALIVE_SECONDS,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if gone.done():
                    return
                text: bytes | None = b": alive\n\n"
                if waiting.done():
                    text, waiting = waiting.result(), None
                if text is None:
                    break
                async with asyncio.timeout(SEND_SECONDS):
                    await send({"type": "http.response.body", "body": text, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            return  # left unfinished, so that the connection is closed
        finally:
            if not self.watches:
                self.ticket.cancel()
            gone.cancel()
            if waiting is not None:
                waiting.cancel()


async def _next(events: AsyncIterator[bytes]) -> bytes | None:
    return await anext(events, None)
