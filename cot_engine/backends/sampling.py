"""Drawing tokens for many rows at once, each row from its own stream of random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cot_engine.types import Sampling

_MASK = (1 << 64) - 1
_ALL = 1 << 40  # more tokens than any vocabulary has


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64: every input bit reaches every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniforms(seeds: np.ndarray, counters: np.ndarray) -> np.ndarray:
    """Numbers in [0, 1) [rows], float64: the `counters`-th of each seed's stream (both uint64).

    A counter-based stream needs no state, so a row draws the same numbers whatever rows are
    beside it, on every machine.
    """
    state = _mix(seeds + np.uint64(0x9E3779B97F4A7C15)) + counters * np.uint64(0xD1342543DE82EF95)
    return (_mix(_mix(state) ^ seeds) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def seed64(seed: int) -> int:
    return seed & _MASK


@dataclass(frozen=True, slots=True)
class Settings:
    """The rows' sampling settings as tensors [rows]; `widest` is the largest top-k."""

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    widest: int

    @classmethod
    def of(cls, rows: Sequence[Sampling], device: torch.device) -> Settings:
        sizes = [1 if s.greedy else s.top_k or _ALL for s in rows]
        return cls(
            torch.tensor([1.0 if s.greedy else s.temperature for s in rows], device=device),
            torch.tensor(sizes, device=device),
            torch.tensor([s.top_p for s in rows], device=device),
            max(sizes),
        )


def draw(
    logits: torch.Tensor, settings: Settings, uniform: np.ndarray, banned: int | None = None
) -> tuple[list[int], list[float]]:
    """One token per row of `logits` [rows, vocabulary], and its log-probability (nats).

    Temperature, then top-k, then top-p, then the inverse of the cumulative distribution at
    `uniform` [rows]. The log-probability is the model's own: temperature 1, nothing cut.
    `banned` is never drawn.
    """
    logits = logits.float()
    total = logits.logsumexp(-1)
    if banned is not None:
        logits = logits.index_fill(1, torch.tensor([banned], device=logits.device), float("-inf"))
    widest = min(settings.widest, logits.shape[-1])
    top, ids = logits.topk(widest, dim=-1)
    if widest == 1:
        chosen = torch.zeros_like(ids)
    else:
        rank = torch.arange(widest, device=logits.device)
        scaled = (top / settings.temperature[:, None]).masked_fill_(
            rank >= settings.top_k[:, None], float("-inf")
        )
        share = scaled.softmax(-1)
        below = share.cumsum(-1)  # the probability of this token and all likelier ones
        # Top-p keeps the smallest set that reaches p: every token with less than p before it.
        kept = (below - share < settings.top_p[:, None]) & (share > 0)
        size = kept.sum(-1, keepdim=True).clamp_(min=1)
        mass = below.gather(-1, size - 1)
        target = torch.from_numpy(uniform).to(logits.device, below.dtype)[:, None] * mass
        chosen = torch.minimum((below <= target).sum(-1, keepdim=True), size - 1)
    logprobs = top.gather(-1, chosen).squeeze(-1) - total
    return ids.gather(-1, chosen).squeeze(-1).tolist(), logprobs.tolist()
