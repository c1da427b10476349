"""How far a search has come inside what it is doing, for whoever listens: `Progress` events.

The model's thread counts (`core.headway`); a timer on the search's event loop looks at the counts
some times a second, and makes text of the tokens that have come. So being watched costs the model
nothing, and a search that nobody listens to has neither counts nor a timer.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from cot_engine.core.events import Doing, Progress
from cot_engine.core.headway import Headway

EVERY = 0.1
"""Seconds between two looks at a search."""

_WINDOW = 2.0  # seconds over which a rate is measured


@dataclass
class _Writing:
    """Who is being written by a request: the candidates of these ids, each behind `before`, which
    is there already."""

    headway: Headway
    ids: tuple[str, ...]
    before: str


@dataclass
class _Now:
    """What is being done. `whole` are the requests whose continuations are what is counted,
    `parts` those that write pieces of them; `settled` counts what the core itself saw done.
    `writing` are those of both that write candidates, the later piece of one after the earlier."""

    doing: Doing
    unit: str
    of: int
    at_most: bool
    orders: int
    begun: float
    whole: list[Headway] = field(default_factory=list)
    parts: list[Headway] = field(default_factory=list)
    writing: list[_Writing] = field(default_factory=list)
    settled: int = 0
    written: int = 0  # tokens of requests that are no longer looked at
    seen: deque[tuple[float, int]] = field(default_factory=deque)  # (when, tokens by then)

    def look(self) -> Progress:
        now = time.monotonic()
        tokens = self.written + sum(h.tokens for h in (*self.whole, *self.parts))
        while len(self.seen) > 1 and now - self.seen[0][0] > _WINDOW:
            self.seen.popleft()
        when, before = self.seen[0] if self.seen else (now, tokens)
        rate = (tokens - before) / (now - when) if now > when else 0.0
        self.seen.append((now, tokens))
        done = self.settled + sum(h.finished for h in self.whole) // self.orders
        done = min(done, self.of) if self.of else done
        return Progress(
            *(self.doing, self.unit, done, self.of, self.at_most),
            *(tokens, round(rate, 1), round(now - self.begun, 3)),
            self.texts(),
        )

    def texts(self) -> dict[str, str]:
        """What each candidate reads so far."""
        found: dict[str, str] = {}
        for each in self.writing:
            texts = tuple(each.headway.written()) if each.headway.written else ()
            texts += ("",) * (len(each.ids) - len(texts))
            found.update(zip(each.ids, (each.before + text for text in texts), strict=False))
        return found


class Reporter:
    """Tells `listen` how far a search is; does nothing without one. All of it happens on the
    search's event loop."""

    def __init__(self, listen: Callable[[Progress], object] | None = None) -> None:
        self.listen = listen
        self.now: _Now | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.task: asyncio.Task[Any] | None = None  # that of the search
        self.last: Progress | None = None
        self.error: BaseException | None = None

    @contextmanager
    def doing(
        self, doing: Doing, unit: str, of: int = 0, *, at_most: bool = False, orders: int = 1
    ) -> Iterator[None]:
        """While this lasts, `of` pieces of work are being done, each of `orders` requested ones.

        What the listener raises meanwhile ends it at once, and is raised.
        """
        if self.listen is None:
            yield
            return
        self.now = _Now(doing, unit, of, at_most, orders, time.monotonic())
        self.last, self.task = None, asyncio.current_task()
        try:
            self._say()
            if self.error is None:
                yield
        except asyncio.CancelledError:
            if self.error is None or self.task is None or self.task.uncancel():
                raise  # by somebody else, too
        finally:
            self.now = None
            if self.timer is not None:
                self.timer.cancel()
        if self.error is not None:
            raise self.error

    def request(
        self, whole: bool = True, ids: tuple[str, ...] = (), before: str = ""
    ) -> Headway | None:
        """The counts of a new request. `whole`: each of its continuations (or tails) is one of
        the pieces that are counted, not a part of one. `ids` are those of the candidates that it
        writes, if it does, of which `before` is there already."""
        if self.now is None:
            return None
        headway = Headway()
        (self.now.whole if whole else self.now.parts).append(headway)
        if ids:
            self.now.writing.append(_Writing(headway, ids, before))
        return headway

    def answered(
        self, headway: Headway | None, tokens: int, finished: int, texts: tuple[str, ...] = ()
    ) -> None:
        """A request was answered: what its backend may not have counted, or told."""
        if headway is not None:
            headway.tokens, headway.finished = max(headway.tokens, tokens), finished
            headway.written = lambda: texts

    def settle(self, pieces: int = 1) -> None:
        """So many pieces of work are done, whatever their requests had told of it."""
        if self.now is not None:
            self.now.settled += pieces
            self.now.written += sum(headway.tokens for headway in self.now.whole)
            self.now.whole.clear()

    def _say(self) -> None:
        """Tell the listener, if there is something new, and once more in a moment."""
        if self.now is None or self.listen is None or self.error is not None:
            return
        found = self.now.look()
        try:
            if self.last is None or _without_time(found) != _without_time(self.last):
                self.last = found
                self.listen(found)
        except BaseException as error:  # raised in a timer it would end nothing, or the loop
            self.error = error
            return
        self.timer = asyncio.get_running_loop().call_later(EVERY, self._tick)

    def _tick(self) -> None:
        self._say()
        if self.error is not None and self.task is not None:
            self.task.cancel()


def _without_time(progress: Progress) -> tuple[object, ...]:
    p = progress
    return p.doing, p.unit, p.done, p.of, p.tokens, p.tokens_per_second
