"""A scripted backend on which a token costs more the later it stands, as attention does: what a
conclusion costs then depends on what stands before it, and so on which chain it is reserved for."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cot_engine.backends.scripted import _PIECE
from cot_engine.core.requests import Choose, Chosen, Generate, Generated
from cot_engine.core.usage import Usage
from cot_engine.testing import ScriptedBackend


def _flops(first: int, count: int) -> int:
    """Of `count` tokens that stand behind `first` others."""
    return 1000 * count + 50 * count * (2 * first + count - 1)  # 1000 + 100 for each place


@dataclass
class Attentive(ScriptedBackend):
    """Flops by place instead of by number. And a prefix keeps the tokens that it was sampled with,
    as it does on a real backend: the end of one segment makes no token with the next one's begin.
    """

    def _context(self, request: Generate) -> tuple[str, ...]:
        own = (word for segment in request.prefix for word in _PIECE.findall(segment.text))
        return (*self._words_of(request.prompt.text, request.prompt), *own)

    def _priced(self, usage: Usage, context: int, decoded: tuple[int, ...]) -> Usage:
        flops = _flops(context - usage.prefilled, usage.prefilled)
        return replace(usage, flops=flops + sum(_flops(context, n) for n in decoded))

    async def generate(self, request: Generate) -> Generated:
        reply = await super().generate(request)
        decoded = tuple(len(generation.ids) for generation in reply.generations)
        return replace(reply, usage=self._priced(reply.usage, len(self._context(request)), decoded))

    async def choose(self, request: Choose) -> Chosen:
        estimate = self.estimate(request)
        chosen = await super().choose(request)
        flops = estimate.flops if chosen.usage.prefilled == estimate.prefilled else 0
        if not flops:  # tails that share a beginning: no more than the estimate in any case
            flops = estimate.flops * chosen.usage.prefilled // max(1, estimate.prefilled)
        return replace(chosen, usage=replace(chosen.usage, flops=flops))

    def estimate(self, request: Generate | Choose) -> Usage:
        usage = super().estimate(request)
        if isinstance(request, Generate):
            decoded = (request.max_new_tokens,) * len(request.seeds)
            return self._priced(usage, len(self._context(request)), decoded)
        longest = max(
            len(self._words_of(request.prompt.text + tail, request.prompt))
            for tail in request.tails
        )
        return replace(usage, flops=_flops(longest - 1, 1) * usage.prefilled)
