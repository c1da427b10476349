"""How far long work is, and how long the rest will take."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass
class Clock:
    """Work on `total` things, of which `first` were done before: by an earlier run, whose time says
    nothing about this one's. `most` bounds the run, in seconds, where something does."""

    total: int
    first: int = 0
    most: float | None = None
    began: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Since this run began."""
        return time.monotonic() - self.began

    def left(self, done: int) -> float | None:
        """Seconds to the end, at the mean rate of this run so far; None before anything is done."""
        made = done - self.first
        return self.seconds / made * max(0, self.total - done) if made > 0 else None

    def said(self, done: int) -> str:
        """ "120 of 3,000 (4 %), about 3 h 12 min left", and when the run stops, if before that."""
        parts = [f"{done:,} of {self.total:,} ({share(done, self.total)})"]
        left = self.left(done)
        if left is not None and done < self.total:
            parts.append(f"about {duration(left)} left")
            if self.most is not None and left > (rest := max(0.0, self.most - self.seconds)):
                parts.append(f"this run stops in {duration(rest)}")
        return ", ".join(parts)


def share(done: int, total: int) -> str:
    """ "4 %", and never 100 before the end."""
    return f"{min(100 * done // max(1, total), 100)} %"


def duration(seconds: float) -> str:
    """ "45 s", "6 min 40 s", "3 h 12 min", "4 d 2 h"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 100 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"
