"""How far a request has come."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Headway:
    """How far a request has come, for whoever watches: `tokens` written, and how many of its
    continuations (or tails) are `finished`.

    A backend counts it up while it works, from whatever thread; it is read at any time, and says
    nothing about the answer. A backend need not: the core counts what has been answered.
    """

    tokens: int = 0
    finished: int = 0
