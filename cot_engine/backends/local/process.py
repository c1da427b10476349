"""A local backend in a process of its own, and several of them as replicas.

Threads would do for the arithmetic, which lets go of Python; but between two passes over a model
that is small, or a GPU that is fast, Python is busy, and one interpreter is busy once. In a process
each, replicas have an interpreter each, and what ends one (a device that fails) ends no other.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from cot_engine.backends.local.wire import ERRORS, Wire
from cot_engine.backends.protocol import Opener
from cot_engine.backends.replicas import Replicas
from cot_engine.core.headway import Headway
from cot_engine.core.requests import (
    BackendInfo,
    Choose,
    Chosen,
    Generate,
    Generated,
    Measure,
    Measured,
)
from cot_engine.core.usage import Usage
from cot_engine.errors import BackendGone

_MAIN = (
    "import sys; sys.path[:] = sys.argv[1:]; "
    "from cot_engine.backends.local.child import main; main()"
)
_CLOSED = "The backend is closed."


def open_replicas(
    openers: Sequence[tuple[Opener, str, int]],
    folder: str,
    name: str,
    on_notice: Callable[[str], None] | None = None,
) -> Replicas:
    """One for each (opener, its device, how many share that), loaded at the same time. The model in
    `folder` is called `name`. Raises what opening it raises."""
    told: set[str] = set()

    def notice(note: str) -> None:  # all of them say the same of a folder
        if on_notice is not None and note not in told:
            told.add(note)
            on_notice(note)

    replicas: list[ProcessBackend] = []
    try:
        for opener, device, parts in openers:
            replicas.append(ProcessBackend(opener, device, parts, folder, name, notice))
        for replica in replicas:
            replica.opened()
        return Replicas(replicas, notice)
    except BaseException:
        for replica in replicas:
            replica.close()
        raise


class ProcessBackend:
    """Implements `Measuring`, by a process that has the model. If that ends, so does this, with a
    BackendGone for everybody. It begins to load at once; `opened` waits for it."""

    def __init__(
        self,
        opener: Opener,
        device: str,
        parts: int,
        folder: str,
        name: str,
        notice: Callable[[str], None],
    ) -> None:
        command = [sys.executable, "-c", _MAIN, *sys.path]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe)
        self._link = _Link(self.process, device, notice)
        # Neither a backend that is dropped nor the end of the interpreter leaves a process behind.
        weakref.finalize(self, self._link.end, _CLOSED)
        self._name = name
        self._hello = self._link.expect(0)
        self._link.send(0, "open", (opener, folder, parts))
        self._info: BackendInfo | None = None
        self.holds: tuple[int, tuple[int, ...]] | None = None  # as of `LocalBackend`
        threading.Thread(target=self._link.listen, name="cot-engine-replica", daemon=True).start()

    def opened(self) -> None:
        """Raises what opening the model raised."""
        info, self.holds = self._hello.result()
        self._info = replace(info, model=self._name, device=self._link.device)

    @property
    def info(self) -> BackendInfo:
        assert self._info is not None, "it was not waited for"
        notes = dict.fromkeys((*self._info.notes, *self._link.notes))
        return replace(self._info, notes=tuple(notes))

    async def generate(self, request: Generate) -> Generated:
        generated: Generated = await self._asked("generate", request)
        return generated

    async def choose(self, request: Choose) -> Chosen:
        chosen: Chosen = await self._asked("choose", request)
        return chosen

    async def measure(self, request: Measure) -> Measured:
        measured: Measured = await self._asked("measure", request)
        return measured

    def estimate(self, request: Generate | Choose | Measure) -> Usage:
        usage: Usage = self._link.ask("estimate", replace(request, headway=None))[1].result()
        return usage

    def release(self, scope: str) -> None:
        with suppress(BackendGone):
            self._link.send(0, "release", scope)

    def close(self) -> None:
        self._link.end(_CLOSED)

    async def _asked(self, method: str, request: Generate | Choose | Measure) -> Any:
        own = replace(request, headway=request.headway and Headway())  # the other side's own
        number, answer = self._link.ask(method, own, request.headway)
        try:
            return await asyncio.wrap_future(answer)
        except asyncio.CancelledError:
            with suppress(BackendGone):
                self._link.send(0, "cancel", number)
            raise


class _Link:
    """The wire to a process, and who waits for what from it. Its thread holds no backend, so that
    one that is dropped can be collected."""

    def __init__(
        self, process: subprocess.Popen[bytes], device: str, notice: Callable[[str], None]
    ) -> None:
        assert process.stdin is not None and process.stdout is not None
        self.process, self.device, self.notice = process, device, notice
        self.wire = Wire(process.stdout, process.stdin)
        self.notes: list[str] = []
        self.over = ""  # why nothing is answered any more
        self._lock = threading.RLock()  # collected garbage may end a link, anywhere
        self._numbers = itertools.count(1)
        self._waiting: dict[int, tuple[Future[Any], Headway | None]] = {}
        self._process = os.getpid()

    def expect(self, number: int, headway: Headway | None = None) -> Future[Any]:
        """The answer to the message of that number."""
        answer: Future[Any] = Future()
        with self._lock:
            if self.over:
                raise BackendGone(self.over, "Load the model again.")
            self._waiting[number] = answer, headway
        return answer

    def ask(self, what: str, value: Any, headway: Headway | None = None) -> tuple[int, Future[Any]]:
        number = next(self._numbers)
        answer = self.expect(number, headway)
        self.send(number, what, value)
        return number, answer

    def send(self, number: int, what: str, value: Any) -> None:
        """Raises BackendGone if there is nobody to send it to."""
        if os.getpid() != self._process:
            raise BackendGone(
                "This process was forked from the one that loaded the model.",
                "Load the model in the child, or start it with multiprocessing's 'spawn'.",
            )
        try:
            if not self.over:
                self.wire.send(number, what, value)
        except (OSError, ValueError):  # it has ended, or is being closed
            self.end(self._how())
        if self.over:
            raise BackendGone(self.over, "Load the model again.")

    def listen(self) -> None:
        try:
            while True:
                self._hear(*self.wire.receive())
        except Exception:  # the end of the pipe, mostly; whatever it is, nothing can follow
            self.end(self._how())

    def _hear(self, number: int, what: str, value: Any) -> None:
        if what == "note":
            self.notes.append(value)
            with suppress(Exception):  # it is no part of what is computed
                self.notice(value)
            return
        if what == "headway":
            for each, (tokens, finished, texts) in value.items():
                if (headway := self._waiting.get(each, (None, None))[1]) is not None:
                    headway.tokens, headway.finished = tokens, finished
                    headway.written = texts and partial(list, texts)
            return
        answer, _ = self._waiting.pop(number, (None, None))
        if answer is not None:
            with suppress(InvalidStateError):  # it was given up
                if what == "ok":
                    answer.set_result(value)
                else:
                    name, message, hint = value
                    answer.set_exception(ERRORS[name](message, hint))

    def _how(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(1)
        code = self.process.returncode
        said = "" if code is None else f" (signal {-code})" if code < 0 else f" (exit {code})"
        return f"The process of the replica on {self.device} has ended{said}."

    def end(self, why: str) -> None:
        """Whoever waits is told. The process is killed: it keeps nothing that is worth a wait."""
        if os.getpid() != self._process:
            return
        with self._lock:
            self.over = self.over or why
            waiting, self._waiting = self._waiting, {}
        for answer, _ in waiting.values():
            with suppress(InvalidStateError):
                answer.set_exception(BackendGone(self.over, "Load the model again."))
        self.process.kill()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(1)
