"""Whose turn it is: a queue of all clients, bounded, in which none can crowd out another."""

from __future__ import annotations

import itertools
from collections import Counter, deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """What waits, by client, at most `most` together.

    The next place goes to the client that has the fewest, and among equals to the one that was
    served longest ago. Of one client it is first come, first served.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.places: Counter[str] = Counter()
        self._waiting: dict[str, deque[T]] = {}
        self._served: dict[str, int] = {}
        self._count = itertools.count(1)

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def waiting(self, client: str) -> int:
        """How many of a client's wait."""
        return len(self._waiting.get(client, ()))

    def put(self, client: str, item: T) -> T | None:
        """Let it wait. Where there is no room, something is returned that must go: the latest of
        the client with most, if that has two more than this one, else the item itself."""
        out: T | None = None
        if len(self) >= self.most:
            if (crowd := self._crowd(client)) is None:
                return item
            out = self._waiting[crowd].pop()
        self._waiting.setdefault(client, deque()).append(item)
        return out

    def has_room(self, client: str) -> bool:
        """Whether something of this client's could wait."""
        return len(self) < self.most or self._crowd(client) is not None

    def _crowd(self, client: str) -> str | None:
        """The client that has so many more than this one that it must make room."""
        most = max(self._waiting, key=self.waiting, default=client)
        return most if self.waiting(most) >= self.waiting(client) + 2 else None

    def take(self) -> tuple[str, T] | None:
        """The next to have a place, and its client; None if nothing waits."""
        if not self._waiting:
            return None
        client = min(self._waiting, key=lambda c: (self.places[c], self._served.get(c, 0)))
        item = self._waiting[client].popleft()
        self.seat(client)
        self._forget_empty(client)
        return client, item

    def seat(self, client: str) -> None:
        """Give it a place."""
        self.places[client] += 1
        self._served[client] = next(self._count)

    def leave(self, client: str) -> None:
        """A place is free again."""
        self.places[client] -= 1
        self._forget(client)

    def remove(self, client: str, item: T) -> bool:
        """Let it wait no longer. False if it does not."""
        if item not in self._waiting.get(client, ()):
            return False
        self._waiting[client].remove(item)
        self._forget_empty(client)
        return True

    def clear(self) -> list[T]:
        """All that waits, which waits no longer."""
        left = [item for items in self._waiting.values() for item in items]
        self._waiting.clear()
        return left

    def _forget_empty(self, client: str) -> None:
        if not self._waiting[client]:
            del self._waiting[client]
        self._forget(client)

    def _forget(self, client: str) -> None:
        """Clients come and go by the thousand: nothing is kept of one that has nothing here."""
        if client not in self._waiting and self.places[client] <= 0:
            self.places.pop(client, None)
            self._served.pop(client, None)
