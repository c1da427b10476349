"""The facade: load a model once, then solve, solve many, or stream the events of a search.

Every call has an async twin (`asolve`, `asolve_many`, `astream`). The synchronous ones run on an
event loop in a thread of the engine's own, so they work in scripts, notebooks and servers alike.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from cot_engine import plugins
from cot_engine.backends import Backend
from cot_engine.boundaries import Until
from cot_engine.concurrency import cancel
from cot_engine.config import RunConfig
from cot_engine.errors import ConfigError, CotEngineError, InputError
from cot_engine.events import Event, Trace
from cot_engine.judges import Judge
from cot_engine.profile import Profile
from cot_engine.rejudge import Rejudged, rejudge
from cot_engine.run import Run, grey
from cot_engine.search import search
from cot_engine.stages import Plan
from cot_engine.types import GREEDY, Answer, Generate, Problem, Prompt

BUNDLED = "bundled"

_MODES = {
    "trained": "The model opens {} by itself, as one trained on the tags does.",
    "prompted": "The model does not open {} by itself: it is prompted, each opening tag forced.",
}

Listener = Callable[[Event], None]


def model_path(model: str | Path) -> str | Path:
    """The folder of the bundled model for its name; anything else as it is."""
    return Path(__file__).parent / "bundled" if model == BUNDLED else model


class Engine:
    """A loaded model and the searches that run on it. Close it, or use it as a context manager.

    `profile` says how to judge with the model. Its methods may be called from several threads.
    """

    def __init__(self, backend: Backend, *, profile: Profile | None = None, in_flight: int = 32):
        if in_flight < 1:
            raise ConfigError(f"in_flight is {in_flight}.", "It must be at least 1.")
        self.backend = backend
        self.profile = profile or Profile()
        self.in_flight = in_flight
        self._scopes = itertools.count()
        self._modes: dict[str, Literal["trained", "prompted"]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = BUNDLED,
        *,
        device: str = "auto",
        dtype: str = "auto",
        quantize: Literal["8bit", "4bit"] | None = None,
        in_flight: int = 32,
        on_notice: Callable[[str], None] | None = None,
    ) -> Engine:
        """Load a checkpoint folder (or hub id), or the bundled model.

        `in_flight` bounds the searches that run at once. `on_notice` hears what the user should
        know, such as a batch that was halved for lack of memory. Raises ModelError, and
        ConfigError or UnknownNameError for a profile in the folder that will not do.
        """
        from cot_engine.backends.local import LocalBackend

        path = model_path(model)
        profile = Profile.of(path)  # before what takes long
        backend = LocalBackend.load(
            path,
            device=device,
            dtype=dtype,
            quantize=quantize,
            on_notice=on_notice,
            name=str(model),  # "bundled" means the same model on every machine, its path does not
        )
        return cls(backend, profile=profile, in_flight=in_flight)

    # --- one problem ---

    def solve(
        self,
        image: Any,
        question: str | None = None,
        *,
        config: RunConfig | None = None,
        on_event: Listener | None = None,
        **options: Any,
    ) -> Answer:
        """Answer one question about an image (a path, URL, PIL image, array, bytes; a list of
        them for several; None for a question alone), or a Problem that holds both.

        `options` are fields of RunConfig; `strategy` and `judge` may also be objects, and any
        other name is a parameter of the strategy: `solve(img, q, strategy="best-of-n", n=8)`.
        `on_event` is called with each event, in the engine's thread. Raises CotEngineError.
        """
        return self._run(self.asolve(image, question, config=config, on_event=on_event, **options))

    async def asolve(
        self,
        image: Any,
        question: str | None = None,
        *,
        config: RunConfig | None = None,
        on_event: Listener | None = None,
        **options: Any,
    ) -> Answer:
        """`solve`, awaitable."""
        run = Run(self.profile, config, options)
        return await self._search(run.problem(image, question), run, on_event)

    def stream(
        self, image: Any, question: str, *, config: RunConfig | None = None, **options: Any
    ) -> Iterator[Event]:
        """The events of one search as they happen; the last one is Finished. Leaving the loop
        early stops the search. Raises what `solve` raises, after the Failed event."""
        return self._iterate(self.astream(image, question, config=config, **options))

    async def astream(
        self, image: Any, question: str, *, config: RunConfig | None = None, **options: Any
    ) -> AsyncIterator[Event]:
        """`stream`, as an async iterator."""
        queue: asyncio.Queue[Event | None] = asyncio.Queue()
        task = asyncio.ensure_future(
            self.asolve(image, question, config=config, on_event=queue.put_nowait, **options)
        )
        task.add_done_callback(lambda _: queue.put_nowait(None))
        try:
            while (event := await queue.get()) is not None:
                yield event
            await task
        finally:
            await cancel([task])

    # --- many problems ---

    def solve_many(
        self,
        problems: Iterable[Problem | tuple[Any, str]],
        *,
        config: RunConfig | None = None,
        on_event: Callable[[int, Event], None] | None = None,
        on_error: Literal["raise", "keep"] = "raise",
        **options: Any,
    ) -> Iterator[Answer | CotEngineError]:
        """Answer many questions, `in_flight` at a time on one batch of the model.

        Takes (image, question) pairs or Problems, lazily; yields answers in their order, each as
        soon as it and those before it are there. A problem's trace is the same as if it were
        solved alone. `on_event` gets the problem's position and the event, as it happens. With
        `on_error="keep"` a problem that fails yields its error in its place and the rest go on.
        """
        return self._iterate(
            self.asolve_many(
                problems, config=config, on_event=on_event, on_error=on_error, **options
            )
        )

    async def asolve_many(
        self,
        problems: Iterable[Problem | tuple[Any, str]],
        *,
        config: RunConfig | None = None,
        on_event: Callable[[int, Event], None] | None = None,
        on_error: Literal["raise", "keep"] = "raise",
        **options: Any,
    ) -> AsyncIterator[Answer | CotEngineError]:
        """`solve_many`, as an async iterator."""
        run = Run(self.profile, config, options)
        waiting: deque[asyncio.Task] = deque()

        async def one(index: int, item: Problem | tuple[Any, str]) -> Answer | CotEngineError:
            listen = None if on_event is None else lambda event: on_event(index, event)
            try:
                problem = run.problem(item) if isinstance(item, Problem) else run.problem(*item)
                return await self._search(problem, run, listen)
            except CotEngineError as error:
                if on_error == "keep":
                    return error
                raise

        try:
            for index, item in enumerate(problems):
                waiting.append(asyncio.ensure_future(one(index, item)))
                while sum(not task.done() for task in waiting) >= self.in_flight:
                    busy = [task for task in waiting if not task.done()]
                    await asyncio.wait(busy, return_when=asyncio.FIRST_COMPLETED)
                while waiting and waiting[0].done():
                    yield waiting.popleft().result()
            while waiting:
                yield await waiting.popleft()
        finally:
            await cancel(waiting)

    # --- recorded searches ---

    def rejudge(
        self,
        trace: Trace,
        *,
        judge: str | Judge = "auto",
        tournament: str = "knockout",
        judge_image: Literal["seen", "blank", "swap"] = "seen",
        on_event: Listener | None = None,
    ) -> Rejudged:
        """Judge a recorded search again without generating anything anew (`cot_engine.rejudge`).

        `judge_image` is what the judge sees; `on_event` is called with each event.
        """
        return self._run(
            self.arejudge(
                trace,
                judge=judge,
                tournament=tournament,
                judge_image=judge_image,
                on_event=on_event,
            )
        )

    async def arejudge(
        self,
        trace: Trace,
        *,
        judge: str | Judge = "auto",
        tournament: str = "knockout",
        judge_image: Literal["seen", "blank", "swap"] = "seen",
        on_event: Listener | None = None,
    ) -> Rejudged:
        """`rejudge`, awaitable."""
        config = RunConfig(tournament=tournament, judge_image=judge_image)
        run = Run(self.profile, config, {"judge": judge})
        return await rejudge(
            trace,
            run.judge,
            tournament,
            self.backend,
            judge_image=judge_image,
            shown=run.judge_images,
            scope=f"rejudge:{trace.started.problem}#{next(self._scopes)}",
            listen=on_event,
        )

    # --- life ---

    def close(self) -> None:
        """Stop what is running and free the model."""
        with self._lock:
            loop, self._loop = self._loop, None
        if loop is not None:
            loop.call_soon_threadsafe(loop.stop)
        self.backend.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- inside ---

    async def _search(self, problem: Problem, run: Run, listen: Listener | None) -> Answer:
        if len(problem.images) > self.backend.info.max_images:
            raise InputError(
                f"The problem has {len(problem.images)} images; {self.backend.info.model} takes"
                f" at most {self.backend.info.max_images}.",
                "Give fewer images, or a model that takes several.",
            )
        plan = run.settings.plan.fit(len(problem.images), run.settings.detail)
        mode, notes = run.mode, ()
        if mode is None:
            mode = await self._mode(plan)
            notes = (_MODES[mode].format(plan.stages[0].open),)
        return await search(
            problem,
            run.strategy,
            run.judge,
            self.backend,
            replace(run.settings, mode=mode),
            scorers=lambda name: plugins.make("scorer", name, {}),
            judge_images=run.judge_images(problem),
            scope=f"{problem.id}#{next(self._scopes)}",
            notes=notes,
            listen=listen,
        )

    async def _mode(self, plan: Plan) -> Literal["trained", "prompted"]:
        """Whether the model opens the plan's first stage itself, asked once on a fixed problem
        (a grey image, so that the decision never depends on which question came first)."""
        tag = plan.stages[0].open
        if tag not in self._modes:
            images = (grey((64, 64)),) if self.backend.info.max_images else ()
            scope = f"probe#{next(self._scopes)}"
            request = Generate(
                scope, Prompt("What is shown?", images), (), Until((tag,)), (0,), 16, GREEDY
            )
            try:
                written = (await self.backend.generate(request)).generations[0].text
            finally:
                self.backend.release(scope)
            trained = written.lstrip().startswith(tag)
            self._modes[tag] = "trained" if trained else "prompted"
        return self._modes[tag]

    def _run(self, coroutine: Coroutine) -> Any:
        done = threading.Event()

        async def watched() -> Any:
            try:
                return await coroutine
            finally:
                done.set()

        future = asyncio.run_coroutine_threadsafe(watched(), self._running_loop())
        try:
            return future.result()
        except KeyboardInterrupt:
            # The search gets to record that it was stopped before the interrupt goes on.
            future.cancel()
            done.wait(5)
            raise

    def _iterate(self, items: AsyncIterator) -> Iterator:
        end = object()

        async def following() -> Any:
            return await anext(items, end)

        async def stop() -> None:
            await items.aclose()  # type: ignore[attr-defined]

        try:
            while (item := self._run(following())) is not end:
                yield item
        finally:
            self._run(stop())

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                name = "cot-engine"
                threading.Thread(target=self._loop.run_forever, name=name, daemon=True).start()
            return self._loop
