"""Drawing tokens for many rows at once, each row from its own stream of random numbers.

All of it happens on the device of the logits, and nothing waits for it: a step of the decode batch,
this included, can be captured as a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cot_engine.core.requests import Sampling

_MASK = (1 << 64) - 1
_ALL = 1 << 40  # more tokens than any vocabulary has
FEW = 1024  # top-p of a whole vocabulary looks at so many first; smaller ones are sorted whole,
WIDER = 32  # and at so many times as many next
CHUNK = 1 << 17  # numbers that a race over a whole vocabulary makes at a time, on a CPU
BLOCK = 64  # its tokens race in blocks of this,
LEADING = 32  # so many blocks of which are raced again exactly


def seed64(seed: int) -> int:
    """The 64 bits of a seed, as a signed number: torch multiplies no others."""
    return ((seed & _MASK) ^ (1 << 63)) - (1 << 63)


_GOLDEN, _FIRST, _SECOND, _STRIDE = map(
    seed64, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xD1342543DE82EF95)
)


def _shifted(x: torch.Tensor, bits: int, room: torch.Tensor) -> torch.Tensor:
    """To the right, with zeros from the left, in `room`."""
    return torch.bitwise_right_shift(x, bits, out=room).bitwise_and_(_MASK >> bits)


def _mix(x: torch.Tensor, room: torch.Tensor | None = None) -> torch.Tensor:
    """The finaliser of splitmix64, in place: every input bit reaches every output bit."""
    room = torch.empty_like(x) if room is None else room
    x.bitwise_xor_(_shifted(x, 30, room)).mul_(_FIRST)
    x.bitwise_xor_(_shifted(x, 27, room)).mul_(_SECOND)
    return x.bitwise_xor_(_shifted(x, 31, room))


def keys(seeds: torch.Tensor, counters: torch.Tensor) -> torch.Tensor:
    """The `counters`-th key of each seed's stream (all int64, read as 64 bits).

    A counter-based stream needs no state, so a row draws the same numbers whatever rows are
    beside it, on every machine.
    """
    return _mix(_mix(seeds + _GOLDEN) + counters * _STRIDE) ^ seeds


def uniforms(keys: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Numbers strictly between 0 and 1, float64: the `ids`-th of each key (broadcast together)."""
    bits = _mix(keys + ids * _GOLDEN)
    return _shifted(bits, 12, bits).double().add_(0.5).mul_(2.0**-52)


@dataclass(frozen=True, slots=True)
class RowSampling:
    """The rows' sampling settings [rows, 1], and what all of them allow to be left out: `widest` is
    the largest top-k that some row has, `whole` says that some row has none, `mixed` that not all
    have the same, `nucleus` that some row cuts by top-p."""

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    widest: int
    whole: bool
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
            max((size for size in sizes if size < _ALL), default=1),
            max(sizes) == _ALL,
            min(sizes) != max(sizes),
            any(p < 1 for p, size in zip(shares, sizes, strict=True) if size > 1),
        )

    @property
    def kind(self) -> tuple[int, bool, bool, bool]:
        """What is left out: rows of the same kind can be drawn by the same operations."""
        return self.widest, self.whole, self.mixed, self.nucleus

    def tensors(self) -> list[torch.Tensor]:
        return [self.temperature, self.top_k, self.top_p]


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

    A whole vocabulary is sorted only where top-p cuts it: all of it on a GPU, which is not to be
    asked; on a CPU the likeliest tokens that reach p, and no more than `WIDER` times as many.
    """
    logprobs = logits.float().log_softmax(-1)
    if banned is not None:
        logprobs[:, banned] = float("-inf")
    size = logits.shape[-1]
    width = min(settings.widest, size)
    if settings.whole and settings.nucleus:
        width = min(max(FEW, width), size) if logits.device.type == "cpu" else size
    if settings.whole and not settings.nucleus:
        chosen = _race(logprobs if of is None else logprobs[of], settings.temperature, keys)
        if settings.mixed:
            few = _among(logprobs, width, settings, keys, of)
            chosen = torch.where(settings.top_k < _ALL, few, chosen)
    else:
        chosen = _among(logprobs, width, settings, keys, of)
    own = logprobs if of is None else logprobs[of]
    return chosen[:, 0], own.gather(1, chosen)[:, 0]


def _among(
    logprobs: torch.Tensor,
    width: int,
    settings: RowSampling,
    keys: torch.Tensor,
    of: torch.Tensor | None,
) -> torch.Tensor:
    """The winners [rows, 1] among the `width` likeliest tokens. Where that is less than a row's
    top-k, and top-p wants more of them, the row is drawn again among more."""
    if width == 1:
        ids = logprobs.max(-1, keepdim=True)[1]
        return ids if of is None else ids[of]
    size = logprobs.shape[1]
    top, ids = logprobs.topk(width, dim=-1)
    if of is not None:
        top, ids = top[of], ids[of]
    share = ((top - top[:, :1]) / settings.temperature).exp()
    if settings.mixed:
        share *= torch.arange(width, device=top.device) < settings.top_k
    short = None
    if settings.nucleus:
        below = share.cumsum(-1)  # of this token and all likelier ones
        enough = settings.top_p * below[:, -1:]
        if settings.whole and width < size:
            own = logprobs if of is None else logprobs[of]
            mass = (own - top[:, :1]).div_(settings.temperature.float()).exp_().sum(-1, True)
            cut = settings.top_k < _ALL
            enough = torch.where(cut, enough, settings.top_p * mass)
            short = ((below[:, -1:] < enough) & ~cut)[:, 0].nonzero()[:, 0]
        # Top-p keeps the smallest set that reaches p: every token with less than p before it.
        share *= below - share < enough
    won = (share / -uniforms(keys[:, None], ids).log()).argmax(-1, keepdim=True)
    chosen = ids.gather(1, won)
    if short is not None and len(short):
        temperature, top_k, top_p = (part[short] for part in settings.tensors())
        rest = RowSampling(temperature, top_k, top_p, *settings.kind)
        chosen[short] = _among(own, min(WIDER * width, size), rest, keys[short], short)
    return chosen


def _race(logprobs: torch.Tensor, temperature: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """The winners [rows, 1] among all tokens, which need not be sorted for that."""
    highest = logprobs.amax(-1, keepdim=True)
    if logprobs.shape[1] > LEADING * BLOCK:
        ids = _leading(logprobs, highest, temperature.reciprocal().float(), keys)
        logprobs = logprobs.gather(1, ids)
    else:
        ids = torch.arange(logprobs.shape[1], device=keys.device).expand(len(keys), -1)
    share = ((logprobs - highest) / temperature).exp_()
    won = (share / -uniforms(keys[:, None], ids).log()).argmax(-1, keepdim=True)
    return ids.gather(1, won)


def _leading(
    logprobs: torch.Tensor, highest: torch.Tensor, colder: torch.Tensor, keys: torch.Tensor
) -> torch.Tensor:
    """Ids [rows, LEADING * BLOCK] of tokens among which the winner of the whole race is.

    All run in float32, and for E = -log(1 - v) with v itself, which is less: it takes no logarithm
    and lets nobody seem slower than he is. The winner is in one of the blocks with the best of
    these unless tokens in as many other blocks seem faster, each by v in place of E: about e^-32.
    On a CPU some run at a time, so that what is made lies in its cache.
    """
    rows, size = logprobs.shape
    each = max(CHUNK // rows // BLOCK, 1) * BLOCK if logprobs.device.type == "cpu" else size
    numbers = torch.arange(size, device=keys.device).mul_(_GOLDEN)
    state, room = (keys.new_empty(rows * each) for _ in range(2))  # for all parts: new is dear
    late, speed = (logprobs.new_empty(rows * each) for _ in range(2))
    best = []
    for first in range(0, size, each):
        part = logprobs[:, first : first + each]
        s, r, v, f = (x[: part.numel()].view(part.shape) for x in (state, room, late, speed))
        torch.add(keys[:, None], numbers[first : first + each], out=s)
        v.copy_(_shifted(_mix(s, r).bitwise_not_(), 12, r)).add_(0.5)  # 2^52 times v
        f = torch.sub(part, highest, out=f).mul_(colder).exp_().div_(v)
        f = torch.nn.functional.pad(f, (0, -f.shape[1] % BLOCK))
        best.append(f.view(rows, -1, BLOCK).amax(-1))
    block = torch.cat(best, 1).topk(LEADING, dim=-1)[1]
    ids = block[..., None] * BLOCK + torch.arange(BLOCK, device=keys.device)
    return ids.view(rows, -1).clamp_(max=size - 1)
