"""How far a request has come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Headway:
    """How far a request has come, for whoever watches: `tokens` written, how many of its
    continuations (or tails) are `finished`, and `written`, which gives what each continuation
    reads so far, in the order of the seeds.

    A backend counts it up while it works, from whatever thread; it is read at any time, and says
    nothing about the answer. `written` is called now and then by who watches, in that one's
    thread, so that to make text of tokens costs the model nothing; it is None until there is
    something to read. A backend need do none of it: the core sees what has been answered.
    """

    tokens: int = 0
    finished: int = 0
    written: Callable[[], Sequence[str]] | None = None

    def begin_anew(self) -> None:
        """Nothing is written yet, after all."""
        self.tokens = self.finished = 0
        self.written = None
