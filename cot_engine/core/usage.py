"""What a piece of work cost, and in which role."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["generate", "judge", "score", "verify"]
"""Who asked: growing, a judge of the searching model, a scorer of it, or a verifier, which may ask
another model."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What one piece of work cost. Adds up with `+`.

    `encodes` images through the vision tower; `prefilled`, `cached` and `decoded` tokens of the
    language model (an image counts as the tokens it occupies); `flops` floating-point operations,
    a multiply-add counting two; `calls` sampled continuations and judged orderings, however they
    were batched; `seconds` of model time, a batch's time being shared among the rows in it in
    proportion to their tokens.
    """

    encodes: int = 0
    prefilled: int = 0
    cached: int = 0
    decoded: int = 0
    flops: int = 0
    calls: int = 0
    seconds: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.encodes + other.encodes,
            self.prefilled + other.prefilled,
            self.cached + other.cached,
            self.decoded + other.decoded,
            self.flops + other.flops,
            self.calls + other.calls,
            self.seconds + other.seconds,
        )

    def __sub__(self, other: Usage) -> Usage:
        return Usage(
            self.encodes - other.encodes,
            self.prefilled - other.prefilled,
            self.cached - other.cached,
            self.decoded - other.decoded,
            self.flops - other.flops,
            self.calls - other.calls,
            self.seconds - other.seconds,
        )

    @property
    def tokens(self) -> int:
        """Tokens the model computed: prefilled + decoded (cached ones were paid for before)."""
        return self.prefilled + self.decoded
