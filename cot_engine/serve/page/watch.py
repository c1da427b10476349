"""A search as a stream of the pieces of its drawing, and what becomes of one nobody looks at."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

from cot_engine.escape import visible
from cot_engine.serve.failures import as_json, described
from cot_engine.serve.ticket import Ticket
from cot_engine.show.live import Live

EVERY = 0.2
"""Seconds between two drawings of a search, at least."""
LEAVE = 30.0
"""Seconds that a search goes on with nobody looking: as long as it takes to load a page again."""


async def pieces(ticket: Ticket) -> AsyncIterator[bytes]:
    """The search from its beginning: "drawing" events with what has changed (`Live.news`), at most
    one each `EVERY` seconds, and one "end", with the answer or the error as the API tells it."""
    live, news = Live(f"{ticket.id}-"), asyncio.Event()

    async def hear() -> None:
        async for event in ticket.events():
            live.take(event)
            news.set()

    hearing = asyncio.ensure_future(hear())
    hearing.add_done_callback(lambda _: news.set())
    try:
        while True:
            news.clear()  # before looking: what comes while this is sent is not to be missed
            over = hearing.done()
            found = live.news()
            if ticket.state == "waiting":
                found["status"] = "Waiting for its turn"
            if found:
                yield _event("drawing", found)
            if over:
                hearing.result()
                break
            await news.wait()
            await asyncio.sleep(0 if hearing.done() else EVERY)
    finally:
        hearing.cancel()
    try:
        answer = await ticket.answer()
    except asyncio.CancelledError:
        raise
    except BaseException as error:
        _, body, _ = described(error)
        yield _event("end", {"state": "failed", **body})
        return
    yield _event("end", {"state": "answered", "answer": visible(answer.text)})


def _event(name: str, value: Any) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + as_json(value) + b"\n\n"


class Watched:
    """Who looks at which search, by the search's id. One that nobody has looked at for a while is
    stopped: its page was closed."""

    def __init__(self) -> None:
        self.eyes: Counter[str] = Counter()
        self._ending: dict[str, asyncio.TimerHandle] = {}

    def look(self, ticket: Ticket) -> None:
        """Somebody looks."""
        self.eyes[ticket.id] += 1
        if ending := self._ending.pop(ticket.id, None):
            ending.cancel()

    def leave(self, ticket: Ticket) -> None:
        """Somebody looks away."""
        self.eyes[ticket.id] -= 1
        if self.eyes[ticket.id] <= 0:
            del self.eyes[ticket.id]
            if ticket.state != "over":
                loop = asyncio.get_running_loop()
                self._ending[ticket.id] = loop.call_later(LEAVE, self._stop, ticket)

    def _stop(self, ticket: Ticket) -> None:
        del self._ending[ticket.id]
        ticket.cancel()
