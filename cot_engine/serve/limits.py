"""What a server allows: to all, and to one client."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from cot_engine.core.options import number
from cot_engine.errors import ConfigError
from cot_engine.images.download import AllowUrl
from cot_engine.options.config import MAX_N
from cot_engine.search.budget import parse_budget

DAY = 86_400.0


@dataclass(frozen=True, slots=True)
class Allowance:
    """What one client may spend. `budget` is the most for one search, and what a search gets that
    names none; `total` the most for all within `per` seconds, in the same unit; `n` the most
    candidates of a selection. Raises ConfigError."""

    budget: str | None = None
    total: str | None = None
    per: float = DAY
    n: int = 16

    def __post_init__(self) -> None:
        number(1, MAX_N, whole=True)("n", self.n)
        number(1, 366 * DAY)("per", self.per)
        most = parse_budget(self.budget) if self.budget is not None else None
        if self.total is None:
            return
        total = parse_budget(self.total)
        # Held before a search and settled after it, so that no client ever spends more.
        if most is None or most.unit != total.unit:
            raise ConfigError(
                f"A client's total is {total}, and the most for one search is"
                f" {most or 'not limited'}.",
                f"Give both in the same unit, such as a budget of {total.amount / 100:g}"
                f" {total.unit}.",
            )


@dataclass(frozen=True, slots=True)
class Limits:
    """What a desk allows. Raises ConfigError.

    `queue` searches may wait; `pictures` of one question, each of at most `pixels`, and `held`
    pixels of all questions together; `upload` bytes of one request, `uploads` of all together.
    `seconds` is the longest that a search may run, `grace` the longest that closing waits for those
    that do. The last `traces` traces are kept, of at most `trace_bytes` together, or all of them in
    `folder`. `allowance` is what a client may spend that `clients` does not name.
    """

    queue: int = 64
    pictures: int = 16
    pixels: int = 25_000_000
    held: int = 400_000_000
    upload: int = 32_000_000
    uploads: int = 256_000_000
    seconds: float = 600.0
    grace: float = 30.0
    traces: int = 200
    trace_bytes: int = 200_000_000
    folder: Path | None = None
    allow_url: AllowUrl = False
    allowance: Allowance = Allowance()
    clients: Mapping[str, Allowance] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, low in (("queue", 0), ("traces", 0), ("trace_bytes", 0), ("pictures", 0)):
            number(low, 10**12, whole=True)(name, getattr(self, name))
        for name in ("pixels", "held", "upload", "uploads"):
            number(1, 10**12, whole=True)(name, getattr(self, name))
        for name in ("seconds", "grace"):
            number(0, 366 * DAY)(name, getattr(self, name))

    def of(self, client: str) -> Allowance:
        """What a client may spend."""
        return self.clients.get(client, self.allowance)

    def with_clients(self, clients: Mapping[str, Allowance]) -> Limits:
        """The same with what these clients may spend."""
        return replace(self, clients=clients)
