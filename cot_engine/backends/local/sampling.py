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
BLOCK = 64  # so many tokens of a whole vocabulary race as one at first,
CHUNK = 1 << 17  # and so many are weighed at a time, on a CPU


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
    the largest top-k that some row has, `mixed` says that not all have the same, `nucleus` that
    some row cuts by top-p, `wide` by that alone; `uncut` that some row cuts nothing, `cut` that
    some does."""

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    widest: int
    mixed: bool
    nucleus: bool
    wide: bool
    uncut: bool
    cut: bool

    @classmethod
    def of(cls, rows: Sequence[Sampling], device: torch.device | None = None) -> RowSampling:
        sizes = [1 if s.greedy else s.top_k or _ALL for s in rows]
        warmth = [1.0 if s.greedy else s.temperature for s in rows]
        shares = [s.top_p for s in rows]
        whole = [size == _ALL and p >= 1 for p, size in zip(shares, sizes, strict=True)]
        return cls(
            torch.tensor(warmth, dtype=torch.float64, device=device)[:, None],
            torch.tensor(sizes, device=device)[:, None],
            torch.tensor(shares, dtype=torch.float64, device=device)[:, None],
            max((size for size in sizes if size < _ALL), default=1),
            min(sizes) != max(sizes),
            any(p < 1 for p, size in zip(shares, sizes, strict=True) if size > 1),
            any(p < 1 for p, size in zip(shares, sizes, strict=True) if size == _ALL),
            any(whole),
            not all(whole),
        )

    @property
    def kind(self) -> tuple[int, bool, bool, bool, bool, bool]:
        """What is left out: rows of the same kind can be drawn by the same operations."""
        return self.widest, self.mixed, self.nucleus, self.wide, self.uncut, self.cut

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
    digits; a number held against cumulated shares would feel the rounding at all their edges.
    Where nothing is cut, tokens race in two heats (`_race`). Of tokens that are equally likely at
    the edge of top-k or top-p, which is kept is the device's choice. The log-probability is the
    model's own: temperature 1, nothing cut. `banned` is never drawn.

    A whole vocabulary is sorted only where top-p cuts it: all of it on a GPU, which is not to be
    asked; on a CPU the likeliest tokens that reach p, and no more than `WIDER` times as many.
    """
    logprobs = logits.float().log_softmax(-1)
    if banned is not None:
        logprobs[:, banned] = float("-inf")
    size = logits.shape[-1]
    width = min(settings.widest, size)
    if settings.wide:
        width = min(max(FEW, width), size) if logits.device.type == "cpu" else size
    if settings.cut:
        chosen = _among(logprobs, width, settings, keys, of)
    if settings.uncut:
        raced = _race(logprobs if of is None else logprobs[of], settings.temperature, keys)
        cut = (settings.top_k < _ALL) | (settings.top_p < 1)
        chosen = torch.where(cut, chosen, raced) if settings.cut else raced
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
        if settings.wide and width < size:
            own = logprobs if of is None else logprobs[of]
            mass = (own - top[:, :1]).div_(settings.temperature.float()).exp_().sum(-1, True)
            wide = (settings.top_k == _ALL) & (settings.top_p < 1)
            enough = torch.where(wide, settings.top_p * mass, enough)
            short = ((below[:, -1:] < enough) & wide)[:, 0].nonzero()[:, 0]
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
    """The winners [rows, 1] among all tokens, in two heats: `BLOCK`s of neighbours race with the
    sum of their tokens' shares, then the tokens of the block that won. A token's chance is its
    block's times its own among that: its share, as if all had raced, with few random numbers."""
    highest = logprobs.amax(-1, keepdim=True)
    sums = _sums(logprobs, highest, temperature.reciprocal().float())
    blocks = torch.arange(sums.shape[1], device=keys.device)
    block = (sums / -uniforms(keys[:, None], ~blocks).log()).argmax(-1, keepdim=True)
    ids = block * BLOCK + torch.arange(BLOCK, device=keys.device)
    past = ids >= logprobs.shape[1]
    ids = ids.masked_fill(past, 0)
    share = ((logprobs.gather(1, ids) - highest) / temperature).exp_().masked_fill_(past, 0)
    won = (share / -uniforms(keys[:, None], ids).log()).argmax(-1, keepdim=True)
    return ids.gather(1, won)


def _sums(logprobs: torch.Tensor, highest: torch.Tensor, colder: torch.Tensor) -> torch.Tensor:
    """Of the tokens' shares (the likeliest one's is 1) by block, [rows, blocks]. On a CPU of some
    at a time, so that what is made lies in its cache."""
    rows, size = logprobs.shape
    each = max(CHUNK // rows // BLOCK, 1) * BLOCK if logprobs.device.type == "cpu" else size
    room = logprobs.new_empty(rows * min(each, size))  # for all parts: new is dear
    sums = []
    for first in range(0, size, each):
        part = logprobs[:, first : first + each]
        share = room[: part.numel()].view(part.shape)
        torch.sub(part, highest, out=share).mul_(colder).exp_()
        padded = torch.nn.functional.pad(share, (0, -part.shape[1] % BLOCK))
        sums.append(padded.view(rows, -1, BLOCK).sum(-1))
    return torch.cat(sums, 1)
