"""Drawing tokens for many rows at once, each row from its own stream of random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cot_engine.core.requests import Sampling

_MASK = (1 << 64) - 1
_ALL = 1 << 40  # more tokens than any vocabulary has


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64: every input bit reaches every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def keys(seeds: np.ndarray, counters: np.ndarray) -> np.ndarray:
    """The `counters`-th key of each seed's stream (all uint64).

    A counter-based stream needs no state, so a row draws the same numbers whatever rows are
    beside it, on every machine.
    """
    state = _mix(seeds + np.uint64(0x9E3779B97F4A7C15)) + counters * np.uint64(0xD1342543DE82EF95)
    return _mix(state) ^ seeds


def uniforms(keys: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Numbers strictly between 0 and 1, float64: the `ids`-th of each key (broadcast together)."""
    state = keys + ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return ((_mix(state) >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def seed64(seed: int) -> int:
    return seed & _MASK


@dataclass(frozen=True, slots=True)
class RowSampling:
    """The rows' sampling settings [rows, 1]; `widest` is the largest top-k."""

    temperature: np.ndarray
    top_k: np.ndarray
    top_p: np.ndarray
    widest: int

    @classmethod
    def of(cls, rows: Sequence[Sampling]) -> RowSampling:
        sizes = [1 if s.greedy else s.top_k or _ALL for s in rows]
        return cls(
            np.array([[1.0 if s.greedy else s.temperature] for s in rows]),
            np.array(sizes)[:, None],
            np.array([[s.top_p] for s in rows]),
            max(sizes),
        )


def draw(
    logits: torch.Tensor,
    settings: RowSampling,
    keys: np.ndarray,
    banned: int | None = None,
    of: np.ndarray | None = None,
) -> tuple[list[int], list[float]]:
    """One token per row of `logits` [rows, vocabulary], and its log-probability (nats).

    With `of`, one per element of it, which says of which row: several draws from the same logits.
    A log-probability that is not finite says that the logits are no numbers (one nan or +inf among
    them, or nothing but -inf) and that the token means nothing. -inf, a token that is masked, is
    never drawn while there is another.

    Temperature, then top-k, then top-p, then an exponential race: the token with the least
    E / share wins, E from an exponential distribution (the Gumbel-max trick, its logarithm taken
    off). E belongs to the row's key in `keys` [rows, uint64] and the token's id, so rounding, which
    is another in another batch, changes the winner only where the first two are equal to the last
    digits; a number held against cumulated shares would feel the rounding at all their edges.
    The log-probability is the model's own: temperature 1, nothing cut. `banned` is never drawn.
    The few likeliest go to numpy: on arrays this small its operations take a quarter of torch's
    time, and a GPU is waited for once.
    """
    logprobs = logits.float().log_softmax(-1)
    if banned is not None:
        logprobs[:, banned] = float("-inf")
    widest = min(settings.widest, logits.shape[-1])
    top, ids = (part.cpu().numpy() for part in logprobs.topk(widest, dim=-1))
    if of is not None:
        top, ids = top[of], ids[of]
    row = np.arange(len(ids))
    if widest == 1:
        chosen = np.zeros_like(row)
    else:
        with np.errstate(invalid="ignore"):  # -inf - -inf: such rows are told by what is returned
            share = np.exp((top - top[:, :1]) / settings.temperature)
        share[np.arange(widest) >= settings.top_k] = 0
        share /= share.sum(-1, keepdims=True)
        below = share.cumsum(-1)  # the probability of this token and all likelier ones
        # Top-p keeps the smallest set that reaches p: every token with less than p before it.
        kept = (below - share < settings.top_p) & (share > 0)
        last = np.maximum(kept.sum(-1) - 1, 0)
        share[np.arange(widest) > last[:, None]] = 0
        chosen = (share / -np.log(uniforms(keys[:, None], ids))).argmax(-1)
    return ids[row, chosen].tolist(), top[row, chosen].tolist()
