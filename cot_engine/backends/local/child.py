"""The process of one replica: a local backend that answers over a wire. `process` starts it.

It ends when that one closes the wire, or ends, however that happens.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from functools import partial
from typing import Any

from cot_engine.backends.local.opener import Local
from cot_engine.backends.local.wire import ERRORS, Wire
from cot_engine.backends.protocol import Backend
from cot_engine.core.headway import Headway
from cot_engine.errors import CotEngineError, said

BEAT = 0.1
"""Seconds between two words on how far requests have come."""


def main() -> None:
    """Open the model that the first message names, and answer until there is nobody to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is for the one that asks
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is not for the wire
    wire = Wire(sys.stdin.buffer, out)
    try:
        _, _, (local, model, parts) = wire.receive()
        asyncio.run(_Child(wire).live(local, model, parts))
    except (EOFError, OSError):
        pass
    os._exit(0)  # a forward pass may be running: nobody waits for it


class _Child:
    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.tasks: dict[int, asyncio.Task[None]] = {}
        self.headways: dict[int, Headway] = {}

    async def live(self, local: Local, model: str, parts: int) -> None:
        try:
            if local.device == "cpu":
                import torch

                torch.set_num_threads(max(1, torch.get_num_threads() // parts))
            backend = local.open(model, on_notice=lambda note: self.wire.send(0, "note", note))
        except BaseException as error:
            self._failed(0, error)
            return
        self.wire.send(0, "ok", (backend.info, getattr(backend, "holds", None)))
        loop, over = asyncio.get_running_loop(), asyncio.Event()
        reading = threading.Thread(target=self._read, args=(backend, loop, over), daemon=True)
        reading.start()
        told: dict[int, tuple[int, int]] = {}
        while not over.is_set():
            await asyncio.sleep(BEAT)
            now = {n: (h.tokens, h.finished) for n, h in self.headways.items()}
            if news := [n for n, far in now.items() if told.get(n, (0, 0)) != far]:
                written = {n: w() for n in news if (w := self.headways[n].written)}
                self.wire.send(0, "headway", {n: (*now[n], written.get(n)) for n in news})
            told = now

    def _read(self, backend: Backend, loop: Any, over: asyncio.Event) -> None:
        """Everything is done in the loop, in the order in which it was said."""
        do: dict[str, Any] = {
            "estimate": lambda number, request: self._estimate(backend, number, request),
            "release": lambda _, scope: backend.release(scope),
            "cancel": lambda _, number: self._cancel(number),
        }
        try:
            while True:
                number, what, value = self.wire.receive()
                begin = do.get(what) or partial(self._begin, backend, what)
                loop.call_soon_threadsafe(begin, number, value)
        except (EOFError, OSError):
            os._exit(0)

    def _estimate(self, backend: Backend, number: int, request: Any) -> None:
        try:
            self.wire.send(number, "ok", backend.estimate(request))
        except Exception as error:
            self._failed(number, error)

    def _begin(self, backend: Backend, what: str, number: int, request: Any) -> None:
        task = asyncio.get_running_loop().create_task(self._answer(backend, number, what, request))
        self.tasks[number] = task
        task.add_done_callback(lambda _: self.tasks.pop(number, None))

    def _cancel(self, number: int) -> None:
        if (task := self.tasks.get(number)) is not None:
            task.cancel()

    async def _answer(self, backend: Backend, number: int, what: str, request: Any) -> None:
        if request.headway is not None:
            self.headways[number] = request.headway
        try:
            given = await getattr(backend, what)(request)
            self.wire.send(number, "ok", given)
        except Exception as error:
            self._failed(number, error)
        finally:
            self.headways.pop(number, None)

    def _failed(self, number: int, error: BaseException) -> None:
        if isinstance(error, CotEngineError):
            names = (name for name, kind in ERRORS.items() if isinstance(error, kind))
            told = (next(names, "ModelError"), error.message, error.hint)
        else:
            told = ("ModelError", f"The replica failed: {said(error)}", "")
        self.wire.send(number, "error", told)
