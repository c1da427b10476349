"""One search that was asked for: what is heard of it, its answer, and its trace afterwards."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any, Literal

from cot_engine.core.answers import Answer
from cot_engine.core.events import Heard, Progress, event_to_json
from cot_engine.core.fold import Fold
from cot_engine.core.problem import Problem
from cot_engine.core.trace import Trace
from cot_engine.core.usage import Role, Usage
from cot_engine.errors import CotEngineError
from cot_engine.options.resolve import Resolved

State = Literal["waiting", "running", "over"]


class Cancelled(CotEngineError):
    """The search was cancelled, by who had asked for it."""


class Ticket:
    """One search. Everything of it happens in the event loop in which its desk was made.

    `problem` and `options` are what was asked, `call` that as it is carried out. It is kept after
    its end, as lines of JSON: `size` is how many bytes they are.
    """

    def __init__(
        self,
        client: str,
        problem: Problem,
        options: dict[str, Any],
        call: Resolved,
        cancel: Callable[[Ticket], None],
    ) -> None:
        self.id = f"chatcmpl-{secrets.token_hex(12)}"
        self.client, self.problem, self.options, self.call = client, problem, options, call
        self.created = time.time()
        self.state: State = "waiting"
        self.size = 0
        self.seconds = 0.0
        """How long it ran."""
        self._cancel = cancel
        self._heard: list[Heard] = []
        self._progress: Progress | None = None
        self._lines: bytes | None = None
        self._answer: Answer | None = None
        self._error: BaseException | None = None
        self._news = asyncio.Event()

    # --- for who asked ---

    async def events(self) -> AsyncIterator[Heard]:
        """What happens, from the first event on; it ends when the search has ended, however it
        did. Of Progress only the latest: who is slow misses some, and holds nobody up."""
        heard, told, at = self._so_far(), None, 0
        while True:
            while at < len(heard):
                yield heard[at]
                at += 1
            if self._progress is not None and self._progress is not told:
                told = self._progress
                yield told
            elif self.state == "over":
                return
            else:
                await self._news.wait()

    async def answer(self) -> Answer:
        """The answer, once it is there. Raises what the search raised, Cancelled if it was
        cancelled, Busy if it was handed back before it began."""
        while self.state != "over":
            await self._news.wait()
        if self._error is not None:
            raise self._error
        assert self._answer is not None
        return self._answer

    def cancel(self) -> None:
        """Stop it, or take it from the queue. One that is over stays as it is."""
        if self.state != "over":
            self._cancel(self)

    @property
    def trace(self) -> Trace | None:
        """What happened so far; None before anything has. Raises TraceError if what was kept
        cannot be read."""
        if self._lines is not None:
            return Trace.parse(self._lines, self.id)
        return Trace(list(self._heard)) if self._heard else None  # type: ignore[arg-type]  # less Progress

    @property
    def usage(self) -> dict[Role, Usage]:
        """What it cost so far, by role."""
        return Fold(self._so_far()).spent

    @property
    def failure(self) -> BaseException | None:
        """Why it has no answer; None if it has one, or may still get one."""
        return self._error

    def lines(self) -> bytes:
        """The trace as its file: one event a line. Takes as long as its pictures take to be
        encoded, for which see `settle`."""
        if self._lines is not None:
            return self._lines
        return "".join(event_to_json(event) + "\n" for event in self._heard).encode(
            "utf-8", "backslashreplace"
        )

    # --- for the desk ---

    def hear(self, event: Heard) -> None:
        """Take in what the search tells."""
        if isinstance(event, Progress):
            self._progress = event
        else:
            self._heard.append(event)
            self._progress = None
        self._tell()

    def begin(self) -> None:
        self.state = "running"
        self._tell()

    def end(self, answer: Answer | None = None, error: BaseException | None = None) -> None:
        """It is over: with an answer, or without one."""
        self.state, self._progress = "over", None
        self._answer, self._error = answer, error
        self._tell()

    def settle(self, lines: bytes) -> None:
        """From now on it is what its file holds, and its pictures are let go of."""
        self._lines, self.size, self._heard = lines, len(lines), []
        self.problem = Problem(self.problem.id, self.problem.question)
        if self._answer is not None:
            self._answer = replace(self._answer, problem=self.problem, trace=Trace())

    def _so_far(self) -> list[Heard]:
        if self._lines is None:
            return self._heard
        return list(Trace.parse(self._lines, self.id)) if self._lines else []

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()


def pixels(problem: Problem) -> int:
    """How many pixels are held for a problem."""
    return sum(width * height for width, height in (image.size for image in problem.images))
