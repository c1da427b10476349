"""Drawing tokens for many rows at once, each row from its own stream of random numbers.

All of it happens on the device of the logits, and nothing waits for it: a step of the decode batch,
this included, can be captured as a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch

from cot_engine.core.requests import Sampling

_MASK = (1 << 64) - 1
_ALL = 1 << 40  # more tokens than any vocabulary has
CHUNK = 1 << 17  # numbers that a race over a whole vocabulary makes at a time, on a CPU


def seed64(seed: int) -> int:
    """The 64 bits of a seed, as a signed number: torch multiplies no others."""
    return ((seed & _MASK) ^ (1 << 63)) - (1 << 63)


_GOLDEN, _FIRST, _SECOND, _STRIDE = map(
    seed64, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xD1342543DE82EF95)
)


def _shifted(x: torch.Tensor, bits: int) -> torch.Tensor:
    """To the right, with zeros from the left."""
    return (x >> bits).bitwise_and_(_MASK >> bits)


def _mix(x: torch.Tensor) -> torch.Tensor:
    """The finaliser of splitmix64: every input bit reaches every output bit."""
    x = _shifted(x, 30).bitwise_xor_(x).mul_(_FIRST)
    x = _shifted(x, 27).bitwise_xor_(x).mul_(_SECOND)
    return _shifted(x, 31).bitwise_xor_(x)


def keys(seeds: torch.Tensor, counters: torch.Tensor) -> torch.Tensor:
    """The `counters`-th key of each seed's stream (all int64, read as 64 bits).

    A counter-based stream needs no state, so a row draws the same numbers whatever rows are
    beside it, on every machine.
    """
    return _mix(_mix(seeds + _GOLDEN) + counters * _STRIDE) ^ seeds


def uniforms(keys: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Numbers strictly between 0 and 1, float64: the `ids`-th of each key (broadcast together)."""
    return _shifted(_mix(keys + ids * _GOLDEN), 12).double().add_(0.5).mul_(2.0**-52)


@dataclass(frozen=True, slots=True)
class RowSampling:
    """The rows' sampling settings [rows, 1], and what all of them allow to be left out: `widest` is
    the largest top-k, `mixed` says that there are others, `nucleus` that some row cuts by top-p."""

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    widest: int
    mixed: bool
    nucleus: bool

    @classmethod
    def of(cls, rows: Sequence[Sampling], device: torch.device | None = None) -> RowSampling:
        sizes = [1 if s.greedy else s.top_k or _ALL for s in rows]
        warmth = [1.0 if s.greedy else s.temperature for s in rows]
        shares = [s.top_p for s in rows]
        return cls(
            torch.tensor(warmth, dtype=torch.float64, device=device)[:, None],
            torch.tensor(sizes, device=device)[:, None],
            torch.tensor(shares, dtype=torch.float64, device=device)[:, None],
            max(sizes),
            min(sizes) != max(sizes),
            any(p < 1 for p, size in zip(shares, sizes, strict=True) if size > 1),
        )

    @property
    def kind(self) -> tuple[int, bool, bool]:
        """What is left out: rows of the same kind can be drawn by the same operations."""
        return self.widest, self.mixed, self.nucleus

    def tensors(self) -> list[torch.Tensor]:
        return [getattr(self, field.name) for field in fields(self)[:3]]


def draw(
    logits: torch.Tensor,
    settings: RowSampling,
    keys: torch.Tensor,
    banned: int | None = None,
    of: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token per row of `logits` [rows, vocabulary], int64 [rows], and its log-probability
    (nats), float32 [rows].

    With `of`, one per element of it, which says of which row: several draws from the same logits.
    A log-probability that is not finite says that the logits are no numbers (one nan or +inf among
    them, or nothing but -inf) and that the token means nothing. -inf, a token that is masked, is
    never drawn while there is another.

    Temperature, then top-k, then top-p, then an exponential race: the token with the least
    E / share wins, E from an exponential distribution (the Gumbel-max trick, its logarithm taken
    off). E belongs to the row's key in `keys` [rows] and the token's id, so rounding, which is
    another in another batch, changes the winner only where the first two are equal to the last
    digits; a number held against cumulated shares would feel the rounding at all their edges. Of
    tokens that are equally likely at the edge of top-k or top-p, which is kept is the device's
    choice. The log-probability is the model's own: temperature 1, nothing cut. `banned` is never
    drawn.
    """
    logprobs = logits.float().log_softmax(-1)
    if banned is not None:
        logprobs[:, banned] = float("-inf")
    widest = min(settings.widest, logits.shape[-1])
    if widest == 1:
        top, ids = logprobs.max(-1, keepdim=True)
        chosen = torch.zeros_like(ids) if of is None else ids.new_zeros(len(of), 1)
    elif widest == logits.shape[-1] and not (settings.mixed or settings.nucleus):
        top = logprobs if of is None else logprobs[of]
        ids = _race(top, settings.temperature, keys)
        return ids[:, 0], top.gather(1, ids)[:, 0]
    else:
        top, ids = logprobs.topk(widest, dim=-1)
    if of is not None:
        top, ids = top[of], ids[of]
    if widest > 1:
        share = ((top - top[:, :1]) / settings.temperature).exp()
        if settings.mixed:
            share *= torch.arange(widest, device=top.device) < settings.top_k
        if settings.nucleus:
            below = share.cumsum(-1)  # of this token and all likelier ones
            # Top-p keeps the smallest set that reaches p: every token with less than p before it.
            share *= below - share < settings.top_p * below[:, -1:]
        chosen = (share / -uniforms(keys[:, None], ids).log()).argmax(-1, keepdim=True)
    return ids.gather(1, chosen)[:, 0], top.gather(1, chosen)[:, 0]


def _race(logprobs: torch.Tensor, temperature: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """The winners [rows, 1] among all tokens, which need not be sorted for that; on a CPU some at a
    time, so that what is made lies in its cache."""
    rows, size = logprobs.shape
    each = max(1, CHUNK // rows) if logprobs.device.type == "cpu" else size
    highest = logprobs.amax(-1, keepdim=True)
    found = []
    for first in range(0, size, each):
        part = logprobs[:, first : first + each]
        ids = torch.arange(first, first + part.shape[1], device=part.device)
        share = ((part - highest) / temperature).exp_()
        # E is -log: without the sign the least wins.
        best, at = share.div_(uniforms(keys[:, None], ids).log_()).min(-1, keepdim=True)
        found.append((best, at + first))
    if len(found) == 1:
        return found[0][1]
    best, at = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
    return at.gather(1, best.argmin(-1, keepdim=True))
