"""Whether a model opens the stages itself, as one trained on the tags does, or must be prompted."""

from __future__ import annotations

import asyncio
import itertools
from typing import Literal

from cot_engine.backends.protocol import Backend
from cot_engine.core.boundaries import Until
from cot_engine.core.parts import Part, guard
from cot_engine.core.requests import GREEDY, Generate, Prompt
from cot_engine.core.stages import Plan
from cot_engine.options.problem import grey
from cot_engine.search import replies

Mode = Literal["trained", "prompted"]

SAID: dict[Mode, str] = {
    "trained": "The model opens {} by itself, as one trained on the tags does.",
    "prompted": "The model does not open {} by itself: it is prompted, each opening tag forced.",
}


class Modes:
    """Finds out once for each first stage. To be used in one event loop."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._probes: dict[str, asyncio.Task[Mode]] = {}
        self._scopes = itertools.count()

    async def of(self, plan: Plan) -> Mode:
        """The mode for a plan: asked by whoever comes first, the others wait for the reply. Raises
        what the backend raises; the next one asks again then."""
        tag = plan.stages[0].open
        probe = self._probes.get(tag)
        if probe is None:
            probe = self._probes[tag] = asyncio.ensure_future(self._probe(tag))
        try:
            return await asyncio.shield(probe)  # who gives up gives it up for nobody else
        finally:
            failed = probe.done() and (probe.cancelled() or probe.exception() is not None)
            if failed and self._probes.get(tag) is probe:
                del self._probes[tag]

    async def _probe(self, tag: str) -> Mode:
        """Asks on a fixed problem (a grey image), so that the decision never depends on which
        question came first."""
        images = (grey((64, 64)),) if self.backend.info.max_images else ()
        scope = f"probe#{next(self._scopes)}"
        request = Generate(
            scope, Prompt("What is shown?", images), (), Until((tag,)), (0,), 16, GREEDY
        )
        part = Part("backend", self.backend)
        with guard(part):
            try:
                given = await self.backend.generate(request)
                replies.generated(part, request, given)
            finally:
                self.backend.release(scope)
        written = given.generations[0].text
        return "trained" if written.lstrip().startswith(tag) else "prompted"
