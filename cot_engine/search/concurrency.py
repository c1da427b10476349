"""Awaiting many coroutines, none of them left behind when one fails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


async def gather(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Await all; if one fails, cancel the others and raise its error."""
    tasks = [asyncio.ensure_future(c) for c in coroutines]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        await cancel(tasks)
        raise


async def bounded(
    coroutines: Iterable[Coroutine[Any, Any, T]], at_once: int, on_done: Callable[[T], None]
) -> None:
    """Await all, `at_once` at a time, and hand over each result as soon as it is there. The next
    coroutine is asked for when it can begin. If one fails, or the caller is cancelled, those in
    flight are cancelled."""
    waiting: set[asyncio.Task[T]] = set()

    async def some() -> None:
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in done:  # one that is not reached stays, so that its error is fetched, too
            waiting.remove(task)
            on_done(task.result())

    try:
        for coroutine in coroutines:
            waiting.add(asyncio.ensure_future(coroutine))
            if len(waiting) >= at_once:
                await some()
        while waiting:
            await some()
    finally:
        await cancel(waiting)


async def cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait until they have ended."""
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
