"""What clients have spent of what they may spend in all: held before a search, settled after it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from cot_engine.core.usage import Usage
from cot_engine.errors import ConfigError
from cot_engine.search.budget import Budget, parse_budget
from cot_engine.serve.limits import Allowance


@dataclass(slots=True)
class _Account:
    since: float
    spent: float = 0.0
    held: float = 0.0


class Quota:
    """The accounts of all clients that have a total. It is kept in memory: a server that starts
    again begins anew. `clock` gives seconds; tests pass their own."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._accounts: dict[str, _Account] = {}

    def hold(self, client: str, allowance: Allowance, budget: Budget | None) -> float | None:
        """Keep what a search may cost. None, or the seconds until there is enough again, if it is
        not there; nothing is kept then."""
        if allowance.total is None or budget is None:
            return None
        total, now = parse_budget(allowance.total), self.clock()
        account = self._accounts.setdefault(client, _Account(now))
        if now - account.since >= allowance.per:
            account.since, account.spent = now, 0.0
        if account.spent + account.held + budget.amount > total.amount:
            return allowance.per - (now - account.since)
        account.held += budget.amount
        return None

    def settle(
        self, client: str, budget: Budget | None, used: Usage | None, seconds: float = 0.0
    ) -> None:
        """Count what a search did cost in place of what was held for it; `used` is None if nobody
        knows, which counts as all of it: of a search that is broken off only whole rounds are
        recorded, and breaking it off just before they are must not make it free."""
        account = self._accounts.get(client)
        if account is None or budget is None:
            return
        account.held = max(0.0, account.held - budget.amount)
        if used is None:
            account.spent += budget.amount
        else:
            account.spent += seconds if budget.unit == "seconds" else budget.of(used)

    def spent(self, client: str) -> float:
        """What a client has spent in this span of time, in its total's unit."""
        account = self._accounts.get(client)
        return account.spent if account else 0.0


def granted(allowance: Allowance, asked: str | None, default: str | None) -> str | None:
    """The budget of a search: the one asked for, the server's own, or the most there may be.
    Raises ConfigError for one that is more than that, or in another unit."""
    if allowance.budget is None:
        return asked if asked is not None else default
    most = parse_budget(allowance.budget)
    if asked is None:
        own = parse_budget(default) if default is not None else None
        return default if own and own.unit == most.unit and own.amount <= most.amount else str(most)
    budget = parse_budget(asked)
    if budget.unit != most.unit:
        raise ConfigError(
            f"The budget is {budget}; here a search may spend at most {most}.",
            f"Give it in {most.unit}, up to {most.amount:g}, or none: it is {most} then.",
        )
    if budget.amount > most.amount:
        raise ConfigError(
            f"The budget is {budget}; the most for one search is {most}.",
            f"Ask for {most} or less.",
        )
    return asked
