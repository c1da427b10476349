"""How long a search goes on that nobody watches: apart from the tests that keep a loop running."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

from cot_engine.serve.page import watch


def test_who_looks_again_is_not_held_to_when_he_first_looked_away():
    stopped, timers = [], []
    ticket = SimpleNamespace(id="a", state="running", cancel=lambda: stopped.append(1))

    async def looking():
        loop, watched = asyncio.get_running_loop(), watch.Watched()
        later = loop.call_later
        loop.call_later = lambda *call: timers.append(later(0, *call[1:])) or timers[-1]
        for _ in range(2):
            watched.look(ticket)
            watched.leave(ticket)
        loop.call_later = later
        while not stopped:
            await asyncio.sleep(0.01)

    asyncio.run(looking())
    assert [timer.cancelled() for timer in timers] == [True, False]
    assert stopped == [1]
