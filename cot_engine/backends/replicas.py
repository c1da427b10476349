"""Several backends of one model as one: a search is kept on one of them, and moved if that ends.

A request says everything, seeds included, so to an answer it does not matter which of them gives
it. It does to what is computed: only where a search began are its image and prefixes held.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from cot_engine.backends.protocol import Backend, measuring
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
from cot_engine.errors import BackendGone, ConfigError, ModelError, said, shown

_SAME = ("digest", "architecture", "dtype", "context", "max_images")
_ENDS = 3
"""Replicas that may end under a request: whatever ends so many may be what ends them all."""

_log = logging.getLogger("cot_engine")


class Replicas:
    """Implements `Backend`, over `backends` that must be the same model in the same dtype.

    A search goes where the fewest are kept, to the first of several such, with its first request,
    and stays until it is released. Whether a replica is gone is for its backend to say, by a
    `BackendGone`: it is asked nothing more, what was in flight on it is asked again elsewhere, and
    its searches go on there. What they read again is charged to them. Any other error is an answer.
    Raises ConfigError for no backends, ModelError for unlike ones.
    """

    def __init__(
        self, backends: Sequence[Backend], on_notice: Callable[[str], None] | None = None
    ) -> None:
        if not backends:
            raise ConfigError("There are no replicas.", "Give one backend at least.")
        self.backends = tuple(backends)
        self._on_notice = on_notice
        self._devices = [backend.info.device for backend in self.backends]
        self._lock = threading.Lock()  # guards the two: a search may be released in any thread
        self._homes: dict[str, int] = {}
        self._gone: dict[int, str] = {}
        self._closed = False
        first = self.backends[0].info
        for number, backend in enumerate(self.backends[1:], 2):
            for field in _SAME:
                mine, other = getattr(first, field), getattr(backend.info, field)
                if mine != other:
                    raise ModelError(
                        f"Replica {number} has the {field.replace('_', ' ')} {shown(other)}, "
                        f"the first has {shown(mine)}.",
                        "Answers would depend on who gives them: all must be the same model in "
                        "the same dtype.",
                    )

    def __enter__(self) -> Replicas:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def info(self) -> BackendInfo:
        """The model's, with all devices and all notes."""
        infos = [backend.info for backend in self.backends]
        notes = dict.fromkeys(note for info in infos for note in info.notes)
        gone = self._gone.copy().values()
        return replace(infos[0], device=",".join(self._devices), notes=(*notes, *gone))

    @property
    def holds(self) -> tuple[int, tuple[int, ...]] | None:
        """How wide the model's states are, and the layers that have them; None: they do not say."""
        return getattr(self.backends[0], "holds", None)

    async def generate(self, request: Generate) -> Generated:
        """Raises what the search's backend raises, and BackendGone when no replica is left."""
        generated: Generated = await self._ask("generate", request)
        return generated

    async def choose(self, request: Choose) -> Chosen:
        """Raises as `generate` does."""
        chosen: Chosen = await self._ask("choose", request)
        return chosen

    async def measure(self, request: Measure) -> Measured:
        """Raises as `generate` does, and InputError where the replicas cannot."""
        measured: Measured = await self._ask("measure", request)
        return measured

    def estimate(self, request: Generate | Choose | Measure) -> Usage:
        """By the search's own backend, which knows what is held; where there is none yet, by any.
        Raises as `generate` does."""
        while True:
            at = self._home(request.scope, stay=False)
            try:
                if isinstance(request, Measure):
                    return measuring(self.backends[at]).estimate(request)
                return self.backends[at].estimate(request)
            except BackendGone as error:
                self._lost(at, error)

    def release(self, scope: str) -> None:
        """Forget what was kept for a search, and where: all are told, for any may have made an
        estimate for it."""
        with self._lock:
            self._homes.pop(scope, None)
        for at, backend in enumerate(self.backends):
            if at not in self._gone:
                backend.release(scope)

    def close(self) -> None:
        """Close all at the same time: each may wait for a forward pass."""
        self._closed = True  # what ends from here on is not asked again
        others = [threading.Thread(target=each.close, daemon=True) for each in self.backends[1:]]
        for thread in others:
            thread.start()
        self.backends[0].close()
        for thread in others:
            thread.join()

    # --- inside ----------------------------------------------------------------------------------

    async def _ask(self, method: str, request: Generate | Choose | Measure) -> Any:
        for _ in range(_ENDS):
            at = self._home(request.scope)
            try:
                asked = self.backends[at]
                if isinstance(request, Measure):
                    return await measuring(asked).measure(request)
                return await getattr(asked, method)(request)
            except BackendGone as error:
                self._lost(at, error)
                last = error
            if request.headway is not None:  # it begins anew
                request.headway.begin_anew()
        raise ModelError(
            f"{_ENDS} replicas ended one after the other with this request in flight, the last "
            f"with {said(last)}",
            "It may be this request that ends them; it is not asked again.",
        ) from last

    def _home(self, scope: str, stay: bool = True) -> int:
        """Which replica a search is kept on (from now on, if it is to `stay`). Raises BackendGone
        if there is none."""
        with self._lock:
            at = self._homes.get(scope)
            if at is None or at in self._gone:
                living = [i for i in range(len(self.backends)) if i not in self._gone]
                if not living:
                    raise BackendGone(
                        f"None of the {len(self.backends)} replicas is left: "
                        f"{list(self._gone.values())[-1]}",
                        "Load the model again.",
                    )
                kept = Counter(self._homes.values())
                at = min(living, key=lambda i: kept[i])
                if stay:
                    self._homes[scope] = at
            return at

    def _lost(self, at: int, error: BackendGone) -> None:
        """Ask this one nothing more. Raises `error` where it was closed on purpose."""
        if self._closed:
            raise error
        note = f"Replica {at + 1} ({self._devices[at]}) is gone: {said(error)}"
        with self._lock:
            if self._gone.setdefault(at, note) is not note:
                return
        _log.warning("%s Its searches go on elsewhere.", note)
        if self._on_notice is not None:
            with suppress(Exception):  # it is no part of what is computed
                self._on_notice(note)
