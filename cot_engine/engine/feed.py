"""Many problems on their way at once: sent as there is room, answered in their order."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any

from cot_engine.core.events import Heard
from cot_engine.core.problem import Problem
from cot_engine.errors import InputError

Listener = Callable[[Heard], None]
HearingMany = Callable[[int, Heard], None]


class Feed:
    """Takes from `problems` and sends, with its position, what there is room for: at most
    `in_flight` that are not answered yet. Raises InputError where nothing can be taken from it."""

    def __init__(
        self, problems: Iterable[Any], send: Callable[[int, Any], Future[Any]], in_flight: int
    ) -> None:
        if not isinstance(problems, Iterable):
            raise InputError(
                f"The problems are a {type(problems).__name__}.", "Give a list or an iterator."
            )
        self.problems = iter(problems)
        self.send = send
        self.in_flight = in_flight
        self.sent: deque[Future[Any]] = deque()  # not taken yet, in order
        self.count = 0
        self.over = False
        self.error: Exception | None = None

    @property
    def ready(self) -> bool:
        return self.sent[0].done()

    def fill(self) -> bool:
        """Send what there is room for. False when all was sent and taken.

        An error of `problems`, or of sending, is raised once what was sent before was taken.
        """
        while not self.over and sum(not it.done() for it in self.sent) < self.in_flight:
            try:
                self.sent.append(self.send(self.count, next(self.problems)))
                self.count += 1
            except StopIteration:
                self.over = True
            except Exception as error:
                self.over, self.error = True, error
        if not self.sent and self.error is not None:
            raise self.error
        return bool(self.sent)

    def take(self) -> Any:
        """The next answer, which is ready; or its error, raised."""
        return self.sent.popleft().result()

    def cancel(self) -> None:
        for result in self.sent:
            result.cancel()


def of_one(index: int, on_event: HearingMany) -> Listener:
    """The listener of one of many, under the name of the one that hears them all."""

    def listen(event: Heard) -> None:
        on_event(index, event)

    return functools.update_wrapper(listen, on_event, updated=())


def asked(index: int, item: Any) -> tuple[Any, str | None]:
    """The image and question of one of many. Raises InputError."""
    if isinstance(item, Problem):
        return item, None
    if isinstance(item, (tuple, list)) and len(item) == 2:
        return item[0], item[1] if item[1] is not None else ""
    raise InputError(
        f"Problem {index} is {type(item).__name__}.", "Give a Problem, or an image and a question."
    )
