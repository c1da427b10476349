"""How the suites run a part: in a thread of its own, as the engine does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cot_engine.errors import ModelError, StrategyError


def apart(act: Callable[[], None]) -> None:
    """Run `act` in another thread and raise here what it raised there.

    So a part that raises KeyboardInterrupt is found out, which in the main thread is the user's,
    and a suite may be run where an event loop runs already.
    """
    raised: list[BaseException] = []

    def run() -> None:
        try:
            with kept():
                act()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join()
    if raised:
        raise raised.pop()


@contextmanager
def kept() -> Iterator[None]:
    """A broken contract, as the core names it, is a failed assertion."""
    try:
        yield
    except (StrategyError, ModelError) as error:
        raise AssertionError(str(error)) from error
