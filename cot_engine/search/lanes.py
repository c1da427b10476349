"""Lanes: what runs side by side, in step, so that nothing depends on how long each takes.

Each lane runs until it waits for the model or is over. When all do, what they ask is sent at once,
in the lanes' order; when all of it is answered they go on. So a backend gets the same requests in
the same order every time, and what it charges for a shared prefix is charged to the same one. That
holds as long as a part asks within PATIENCE; what waits longer for the world may come a turn later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from cot_engine.core.events import Event, Progress
from cot_engine.search.concurrency import gather

T = TypeVar("T")

PATIENCE = 0.5
"""Seconds that lanes wait for one that neither asks nor ends: it may be waiting for one of them,
for a lock that their judge holds, or for the world. Then they go on without it."""


@dataclass(eq=False)
class _Call:
    """What a lane asks of the model; `task` is there once it was sent."""

    send: Callable[[], Awaitable[Any]]
    answer: asyncio.Future[Any]
    task: asyncio.Future[Any] | None = None


@dataclass(eq=False)
class Lane:
    """One of several. `running` are its tasks, those that wait for the model included; `waiting` is
    what they ask."""

    lanes: Lanes
    running: int = 1
    waiting: list[_Call] = field(default_factory=list)
    over: bool = False

    async def call(self, send: Callable[[], Awaitable[T]]) -> T:
        """What `send` gives, sent when every lane waits."""
        call = _Call(send, asyncio.get_running_loop().create_future())
        self.waiting.append(call)
        self.lanes.look_soon()
        try:
            answer: T = await call.answer
            return answer
        except asyncio.CancelledError:
            with suppress(ValueError):
                self.waiting.remove(call)
            if call.task is not None:
                call.task.cancel()
            raise

    async def gather(self, coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
        """`concurrency.gather` of what asks the model in this lane."""
        many = list(coroutines)
        self.running += len(many) - 1

        async def ended(coroutine: Coroutine[Any, Any, T]) -> T:
            try:
                return await coroutine
            finally:
                self.running -= 1
                self.lanes.look_soon()

        try:
            return await gather(map(ended, many))
        finally:
            self.running += 1

    @property
    def waits(self) -> bool:
        return self.over or 0 < self.running <= len(self.waiting)


class Lanes:
    def __init__(self, count: int) -> None:
        self.each = [Lane(self) for _ in range(count)]
        self.sending: asyncio.Task[None] | None = None
        self.looking: asyncio.Handle | None = None
        self.patience: asyncio.TimerHandle | None = None

    def look_soon(self) -> None:
        """Look once whoever can run now has had a turn: a judge may ask several things at once, in
        tasks that nobody counts."""
        if self.looking is None:
            self.looking = asyncio.get_running_loop().call_soon(self._look)

    def _look(self) -> None:
        """Send what is asked, if every lane waits."""
        self.looking = None
        if self.sending is not None or not any(lane.waiting for lane in self.each):
            return
        if all(lane.waits for lane in self.each):
            self._send_all()
        elif self.patience is None:
            self.patience = asyncio.get_running_loop().call_later(PATIENCE, self._send_all)

    def _send_all(self) -> None:
        if self.patience is not None:
            self.patience.cancel()
            self.patience = None
        if self.sending is not None:
            return
        calls = [call for lane in self.each for call in lane.waiting]
        for lane in self.each:
            lane.waiting.clear()
        if calls:
            self.sending = asyncio.ensure_future(self._send(calls))

    async def _send(self, calls: list[_Call]) -> None:
        for call in calls:
            call.task = asyncio.ensure_future(call.send())
        await asyncio.wait([call.task for call in calls if call.task])
        self.sending = None
        for call in calls:
            task = call.task
            if call.answer.done() or task is None:
                continue  # nobody waits for it any longer
            if task.cancelled():
                call.answer.set_exception(asyncio.CancelledError())
            elif (error := task.exception()) is not None:
                call.answer.set_exception(error)
            else:
                call.answer.set_result(task.result())
        self.look_soon()  # what was asked meanwhile


class InOrder:
    """Passes on the events of the first lane that is not over, and keeps those of later ones."""

    def __init__(self, record: Callable[[Event], None], count: int) -> None:
        self.pass_on = record
        self.at, self.ended = 0, [False] * count
        self.kept: list[list[Event]] = [[] for _ in range(count)]

    def record(self, k: int, event: Event) -> None:
        if k == self.at:
            self.pass_on(event)
        else:
            self.kept[k].append(event)

    def tell(self, k: int, tell: Callable[[Progress], object], progress: Progress) -> None:
        if k == self.at:
            tell(progress)

    def over(self, k: int) -> None:
        self.ended[k] = True
        while self.at < len(self.ended) and self.ended[self.at]:
            self.at += 1
            if self.at < len(self.ended):
                for event in self.kept[self.at]:
                    self.pass_on(event)
                self.kept[self.at].clear()
