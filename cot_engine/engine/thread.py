"""An event loop in a thread of its own, to which any thread may send coroutines.

What is sent is always answered: by its result, by its error, or, once the loop was closed, by a
ModelError. Nothing here starts a thread in order to clean up, and nobody waits for long.
"""

from __future__ import annotations

import asyncio
import functools
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent import futures
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any, Generic, TypeVar

from cot_engine.errors import ModelError, StrategyError

T = TypeVar("T")

GRACE = 0.5
"""Seconds that `close` gives what is in flight to end by itself, to record that it was stopped."""


class Sent(Generic[T]):
    """A coroutine on its way. `result` may be cancelled from any thread, which cancels it; `over`
    is done when nothing of it runs any more."""

    def __init__(self) -> None:
        self.result: Future[T] = Future()
        self.over: Future[None] = Future()


class LoopThread:
    """Starts with the first coroutine, ends with `close`, and runs in this process only."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.closed = False
        self._process = os.getpid()
        self._lock = threading.RLock()  # collected garbage may cancel what is sent, anywhere
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._ended = False
        self._open: dict[Sent[Any], asyncio.Task[Any] | None] = {}

    @property
    def inside(self) -> bool:
        """Whether the caller is in this loop's thread, where waiting for it would never end."""
        return threading.current_thread() is self._thread

    def send(self, coroutine: Coroutine[Any, Any, T]) -> Sent[T]:
        """Run a coroutine there. Raises ModelError if the loop was closed, or is not of this
        process."""
        sent: Sent[T] = Sent()
        try:
            self._check()
            with self._lock:
                self._check()
                loop = self._loop or self._start()
                self._open[sent] = None
                loop.call_soon_threadsafe(self._begin, coroutine, sent)
        except BaseException:
            coroutine.close()
            raise
        return sent

    def send_outside(self, coroutine: Coroutine[Any, Any, T]) -> Sent[T]:
        """`send`, for those who will wait: what runs here cannot. Raises StrategyError."""
        if self.inside:
            coroutine.close()
            raise StrategyError(
                "The engine was asked to solve, and to wait for it, in its own thread, by a"
                " listener, a judge or a strategy of a search: that would never end.",
                "Await asolve() in a judge, or ask in another thread.",
            )
        return self.send(coroutine)

    def wait_for(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine that runs here, waited for in another thread."""
        sent = self.send_outside(coroutine)
        try:
            return sent.result.result()
        except KeyboardInterrupt:
            # The search gets to record that it was stopped before the interrupt goes on.
            sent.result.cancel()
            futures.wait([sent.over], timeout=5)
            raise

    async def awaited(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine that runs here, awaited in any other loop."""
        sent = self.send(coroutine)
        try:
            return await asyncio.wrap_future(sent.result)
        except asyncio.CancelledError:
            sent.result.cancel()
            await asyncio.wait([asyncio.wrap_future(sent.over)], timeout=5)  # as in `wait_for`
            raise

    def close(self, wait: bool = True) -> None:
        """Stop what is in flight, which is answered with a ModelError, and end the thread.

        Returns within a second, whatever is in flight, and from whichever thread it is called;
        without `wait`, at once.
        """
        if os.getpid() != self._process:
            self.closed = True
            return
        with self._lock:
            begun, self.closed = self.closed, True
            loop, thread = self._loop, self._thread
            if loop is None or thread is None or begun:
                return
            # Behind whatever was sent before; nothing is sent after it.
            loop.call_soon_threadsafe(self._end)
        if wait and not self.inside:
            thread.join(GRACE)
            self._answer_all()  # a listener that does not return holds up the loop, nobody else

    # --- in the thread ---------------------------------------------------------------------------

    def _start(self) -> asyncio.AbstractEventLoop:
        self._loop = loop = asyncio.new_event_loop()
        run = functools.partial(self._run, loop)
        self._thread = threading.Thread(target=run, name=self.name, daemon=True)
        self._thread.start()
        return loop

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        while not self._ended:
            # asyncio lets SystemExit and KeyboardInterrupt of a task out. The task has it as its
            # error, too; the others go on.
            with suppress(SystemExit, KeyboardInterrupt):
                loop.run_forever()
        self._answer_all()
        loop.close()

    def _begin(self, coroutine: Coroutine[Any, Any, T], sent: Sent[T]) -> None:
        if sent.result.done():  # given up before it began
            coroutine.close()
            self._settled(sent)
            return
        task = asyncio.get_running_loop().create_task(coroutine)
        self._open[sent] = task
        task.add_done_callback(lambda _: self._settle(task, sent))
        soon = asyncio.get_running_loop().call_soon_threadsafe

        def given_up(result: Future[T]) -> None:
            with suppress(RuntimeError):  # the loop was closed: nothing is left to be done
                if result.cancelled():
                    soon(task.cancel)

        sent.result.add_done_callback(given_up)

    def _settle(self, task: asyncio.Task[T], sent: Sent[T]) -> None:
        with suppress(InvalidStateError):  # somebody gave it up
            if task.cancelled():
                sent.result.set_exception(self._was_closed())
            elif isinstance(error := task.exception(), (SystemExit, KeyboardInterrupt)):
                sent.result.set_exception(_no_exit(error))
            elif error is not None:
                sent.result.set_exception(error)
            else:
                sent.result.set_result(task.result())
        self._settled(sent)

    def _settled(self, sent: Sent[Any]) -> None:
        with self._lock:
            self._open.pop(sent, None)
        with suppress(InvalidStateError):
            sent.over.set_result(None)

    def _end(self) -> None:
        loop = asyncio.get_running_loop()
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()

        async def ended() -> None:
            if tasks:
                await asyncio.wait(tasks, timeout=GRACE * 0.8)
            self._ended = True
            loop.stop()

        self._last = loop.create_task(ended())  # kept, or it may be collected

    # --- in any thread ---------------------------------------------------------------------------

    def _answer_all(self) -> None:
        with self._lock:
            left, self._open = list(self._open), {}
        for sent in left:
            with suppress(InvalidStateError):
                sent.result.set_exception(self._was_closed())
            with suppress(InvalidStateError):
                sent.over.set_result(None)  # an error here nobody would fetch, and asyncio tell of

    def check_process(self) -> None:
        """Raises ModelError in a process that was forked from the one it runs in."""
        if os.getpid() != self._process:
            raise ModelError(
                f"This engine was made in process {self._process}; this is process {os.getpid()},"
                " forked from it, which has none of its threads.",
                "Make an engine in each process, after the fork.",
            )

    def _check(self) -> None:
        self.check_process()
        if self.closed:
            raise ModelError("The engine is closed.", "Make another one; a closed one cannot run.")

    def _was_closed(self) -> ModelError:
        return ModelError("The engine was closed while this was in flight.", "Ask another one.")


def _no_exit(error: BaseException) -> StrategyError:
    return StrategyError(
        f"{type(error).__name__} was raised in a search.",
        "A strategy, judge or listener ends its search by an error of its own, not the process.",
    )


async def in_thread(act: Callable[[], T]) -> T:
    """The result of `act`, run in a thread that nobody waits for when the process ends (as they
    do for those of `asyncio.to_thread`). If the caller is cancelled it runs on, unheard."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def tell(settle: Callable[[], object]) -> None:
        with suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(lambda: done.done() or settle())

    def run() -> None:
        try:
            value = act()
        except BaseException as error:
            caught = error  # the name of an except clause is gone when the lambda runs
            tell(lambda: done.set_exception(caught))
        else:
            tell(lambda: done.set_result(value))

    threading.Thread(target=run, name="cot-engine loading", daemon=True).start()
    return await done


def handing_over(act: Callable[[Any], object]) -> Callable[[Any], None]:
    """`act` for other threads to call: it runs in the event loop of here and now."""
    loop = asyncio.get_running_loop()

    def hand_over(value: Any) -> None:
        with suppress(RuntimeError):  # that loop was closed: nobody waits any more
            loop.call_soon_threadsafe(act, value)

    return hand_over
