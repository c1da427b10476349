"""The models that verifiers are bound to: each opened once an engine, and closed with it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable
from typing import Any

from cot_engine.backends.opening import open_backend
from cot_engine.backends.protocol import Backend
from cot_engine.core.binding import Binding
from cot_engine.engine.thread import in_thread
from cot_engine.errors import ModelError


class Bound:
    """Opens what is asked for, in the engine's event loop; several searches that ask for the same
    model wait for it together. What could not be opened is tried again by whoever asks next."""

    def __init__(self) -> None:
        self._opening: dict[Binding, asyncio.Task[Backend]] = {}
        self._open: list[Backend] = []
        self._lock = threading.Lock()  # it is closed in any thread
        self._closed = False

    async def __call__(self, binding: Binding) -> Backend:
        """The model that a verifier is bound to. Raises what opening it raises."""
        task = self._opening.get(binding)
        if task is None or (task.done() and (task.cancelled() or task.exception())):
            task = self._opening[binding] = asyncio.ensure_future(self._opened(binding))
        return await asyncio.shield(task)  # others may wait for it as well

    async def all_of(self, *parts: Any) -> None:
        """Open what these judges and scorers are bound to, before a search begins."""
        for part in parts:
            for binding in bindings_of(part):
                await self(binding)

    async def _opened(self, binding: Binding) -> Backend:
        opened = await in_thread(
            lambda: open_backend(binding.model, binding.backend, dict(binding.parameters))
        )
        with self._lock:
            self._open.append(opened)
            closed = self._closed
        if closed:
            opened.close()
            raise ModelError("The engine was closed while a verifier's model was being loaded.")
        return opened

    def close(self) -> None:
        """Close all of them."""
        with self._lock:
            self._closed, opened, self._open = True, self._open, []
        for backend in opened:
            backend.close()


def bindings_of(part: Any) -> Iterable[Binding]:
    """What a judge or scorer says that it is bound to."""
    found = getattr(part, "bindings", ())
    return found if isinstance(found, tuple) and all(isinstance(b, Binding) for b in found) else ()
