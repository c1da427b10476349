"""The facade: load a model once, then solve, solve many, or stream the events of a search.

Every call has an async twin (`asolve`, `asolve_many`, `astream`). Whichever is called, searches run
on an event loop in a thread of the engine's own: so they work in scripts, notebooks and servers
alike, and nothing that a search computes holds up the loop it was awaited in. Strategies, judges
and listeners are called in that thread.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import queue
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, overload

from cot_engine import plugins
from cot_engine.backends.local.amount import SHARE
from cot_engine.backends.local.opener import BUNDLED as BUNDLED
from cot_engine.backends.local.opener import model_path as model_path
from cot_engine.backends.opening import open_backend
from cot_engine.backends.opening import profile_path as profile_path
from cot_engine.backends.protocol import Backend, Opener
from cot_engine.core.answers import Answer
from cot_engine.core.events import Heard
from cot_engine.core.problem import Problem
from cot_engine.core.trace import Trace
from cot_engine.engine.bound import Bound
from cot_engine.engine.feed import Feed, HearingMany, Listener, asked, of_one
from cot_engine.engine.modes import SAID, Modes
from cot_engine.engine.thread import LoopThread, Sent, handing_over, in_thread
from cot_engine.errors import ConfigError, CotEngineError, shown
from cot_engine.judging.probe import Probe
from cot_engine.judging.profile import Profile, probe_for
from cot_engine.judging.protocol import Judge, Scorer
from cot_engine.options.problem import check_number_of_images, judge_images, problem_of
from cot_engine.options.resolve import Given, Resolved, checked, resolve
from cot_engine.search.loop import search
from cot_engine.search.rejudge import REJUDGED, Rejudged, check_rejudged, rejudge

if TYPE_CHECKING:
    from cot_engine.images.load import Image, Source

T = TypeVar("T")
Pictures: TypeAlias = "Source | Image | Sequence[Source | Image] | Problem | None"
"""What a question is asked about: a picture, several, none, or a Problem that holds both."""
Problems: TypeAlias = "Iterable[Problem | tuple[Pictures, str]]"

_LOADING = 32  # problems whose pictures are read, or waited for, at once: each takes a thread


class Engine:
    """A loaded model and the searches that run on it. Close it, or use it as a context manager.

    `profile` says how to judge with the model; `probe` reads its states from all that it writes
    (None: nobody does); `in_flight` bounds the searches that run at once; `judge` is who judges
    where nobody else is named, a verifier too (None: whom the profile names).
    Its methods may be called from several threads. Raises ConfigError for an `in_flight` below 1.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        profile: Profile | None = None,
        probe: Probe | None = None,
        in_flight: int = 32,
        judge: str | Judge | Scorer | None = None,
    ):
        if in_flight < 1:
            raise ConfigError(f"in_flight is {in_flight}.", "It must be at least 1.")
        self.backend = backend
        self.profile, self.probe = profile or Profile(), probe
        self.in_flight = in_flight
        self.judge = judge
        self._scopes = itertools.count()
        self._scorer = functools.cache(functools.partial(plugins.make, "scorer"))  # made once
        self._modes = Modes(backend)
        self._bound = Bound()
        self._loading = asyncio.Semaphore(_LOADING)
        self._loop = LoopThread("cot-engine")
        # An engine that is dropped without being closed leaves no thread behind.
        weakref.finalize(self, self._loop.close, wait=False).atexit = False

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = BUNDLED,
        *,
        backend: str | Opener | None = None,
        device: str = "auto",
        dtype: str = "auto",
        quantize: Literal["8bit", "4bit"] | None = None,
        adapter: str | Path | None = None,
        max_pixels: int | None = None,
        probe: str | Path = "auto",
        memory: float | str = SHARE,
        in_flight: int = 32,
        judge: str | Judge | Scorer | None = None,
        on_notice: Callable[[str], None] | None = None,
        **parameters: Any,
    ) -> Engine:
        """Load a checkpoint folder (or hub id), or the bundled model; or use the model behind a
        server's address (see `Server`), or whatever an installed `backend` opens
        (`backends.opening.open_backend`); `parameters` are that one's own.

        Of a picture with more than `max_pixels` pixels the model is shown a smaller one.
        `memory` is what keys and values may take: a share of what is free once the model is
        loaded (0.9), or an amount such as "20GB". `in_flight` bounds the searches that run at
        once. `adapter` is the folder of a LoRA that is merged into the weights. `probe` is a file
        that reads the model's states, "auto" for that of its profile, "none" for none. `on_notice`
        hears what the user should know, such as a batch that was halved for lack of memory. Raises
        ModelError, and ConfigError or UnknownNameError for a profile in the folder or a probe that
        will not do.
        """
        files = parameters.get("sizes") or model  # a server's model has its files elsewhere
        folder = profile_path(files)
        profile = Profile.of(folder)  # before what takes long
        asked = {"device": device, "dtype": dtype, "quantize": quantize, "memory": memory}
        asked["adapter"] = None if adapter is None else str(adapter)
        asked["max_pixels"] = max_pixels
        parameters |= {k: v for k, v in asked.items() if v not in ("auto", None, SHARE)}
        opened = open_backend(model, backend, parameters, on_notice=on_notice)
        try:
            if (now := profile_path(files)) != folder:  # it came with the weights, a moment ago
                profile = Profile.of(now)
            holds = getattr(opened, "holds", None)
            reading = probe_for(opened.info, probe, profile, now, on_notice, holds)
        except BaseException:
            opened.close()
            raise
        return cls(opened, profile=profile, probe=reading, in_flight=in_flight, judge=judge)

    # --- one problem ---

    def solve(
        self,
        image: Pictures,
        question: str | None = None,
        *,
        config: Given = None,
        on_event: Listener | None = None,
        **options: Any,
    ) -> Answer:
        """Answer one question about an image (a path, URL, PIL image, array, bytes; a list of
        them for several; None for a question alone), or a Problem that holds both.

        `options` are fields of RunConfig but those that an engine is made with; `strategy` and
        `judge` may also be objects, and any other name is a parameter of the strategy:
        `solve(img, q, strategy="best-of-n", n=8)`. `on_event` is called with each event, in the
        engine's thread. Raises CotEngineError: a StrategyError if called in the engine's thread
        (by a listener, a judge or a strategy), a ModelError if the engine is closed.
        """
        call = self._resolved(config, options)
        return self._loop.wait_for(self._solve(call, image, question, on_event))

    async def asolve(
        self,
        image: Pictures,
        question: str | None = None,
        *,
        config: Given = None,
        on_event: Listener | None = None,
        **options: Any,
    ) -> Answer:
        """`solve`, awaitable. `on_event` is called in the engine's thread here, too: `astream`
        hands the events over to the loop that asks."""
        call = self._resolved(config, options)
        return await self._loop.awaited(self._solve(call, image, question, on_event))

    def stream(
        self,
        image: Pictures,
        question: str | None = None,
        *,
        config: Given = None,
        **options: Any,
    ) -> Iterator[Heard]:
        """The events of one search as they happen; the last one is Finished. Leaving the loop
        early stops the search. Raises what `solve` raises, after the Failed event."""
        events: queue.SimpleQueue[Heard | None] = queue.SimpleQueue()
        call = self._resolved(config, options)
        sent = self._loop.send_outside(self._solve(call, image, question, events.put))
        sent.result.add_done_callback(lambda _: events.put(None))
        try:
            while (event := events.get()) is not None:
                yield event
                self._loop.check_process()  # nothing comes any more where the loop is not
            sent.result.result()
        finally:
            sent.result.cancel()

    async def astream(
        self,
        image: Pictures,
        question: str | None = None,
        *,
        config: Given = None,
        **options: Any,
    ) -> AsyncIterator[Heard]:
        """`stream`, as an async iterator."""
        events: asyncio.Queue[Heard | None] = asyncio.Queue()
        put = handing_over(events.put_nowait)
        call = self._resolved(config, options)
        sent = self._loop.send(self._solve(call, image, question, put))
        sent.result.add_done_callback(lambda _: put(None))
        try:
            while (event := await events.get()) is not None:
                yield event
            sent.result.result()
        finally:
            sent.result.cancel()

    # --- many problems ---

    @overload
    def solve_many(
        self,
        problems: Problems,
        *,
        config: Given = None,
        on_event: HearingMany | None = None,
        on_error: Literal["raise"] = "raise",
        **options: Any,
    ) -> Iterator[Answer]: ...
    @overload
    def solve_many(
        self,
        problems: Problems,
        *,
        config: Given = None,
        on_event: HearingMany | None = None,
        on_error: Literal["keep"],
        **options: Any,
    ) -> Iterator[Answer | CotEngineError]: ...
    def solve_many(
        self,
        problems: Problems,
        *,
        config: Given = None,
        on_event: HearingMany | None = None,
        on_error: Literal["raise", "keep"] = "raise",
        **options: Any,
    ) -> Iterator[Answer | CotEngineError]:
        """Answer many questions, `in_flight` at a time on one batch of the model.

        Takes (image, question) pairs or Problems, lazily; yields answers in their order, each as
        soon as it and those before it are there. A problem's trace is the same as if it were
        solved alone. `on_event` gets the problem's position and the event, as it happens, in the
        engine's thread. With `on_error="keep"` a problem that fails yields its error in its place
        and the rest go on. What was answered before `problems` raised, or before the engine was
        closed, is yielded before that error is raised.
        """
        finished = threading.Event()
        feed = self._feed(
            problems,
            config,
            on_event,
            on_error,
            options,
            self._loop.send_outside,
            finished.set,
        )
        try:
            while feed.fill():
                if feed.ready:
                    yield feed.take()
                else:
                    self._loop.check_process()
                    finished.wait()
                    finished.clear()
        finally:
            feed.cancel()

    @overload
    def asolve_many(
        self,
        problems: Problems,
        *,
        config: Given = None,
        on_event: HearingMany | None = None,
        on_error: Literal["raise"] = "raise",
        **options: Any,
    ) -> AsyncIterator[Answer]: ...
    @overload
    def asolve_many(
        self,
        problems: Problems,
        *,
        config: Given = None,
        on_event: HearingMany | None = None,
        on_error: Literal["keep"],
        **options: Any,
    ) -> AsyncIterator[Answer | CotEngineError]: ...
    async def asolve_many(
        self,
        problems: Problems,
        *,
        config: Given = None,
        on_event: HearingMany | None = None,
        on_error: Literal["raise", "keep"] = "raise",
        **options: Any,
    ) -> AsyncIterator[Answer | CotEngineError]:
        """`solve_many`, as an async iterator."""
        finished = asyncio.Event()
        wake = handing_over(lambda _: finished.set())
        send = self._loop.send
        feed = self._feed(problems, config, on_event, on_error, options, send, lambda: wake(None))
        try:
            while feed.fill():
                if feed.ready:
                    yield feed.take()
                else:
                    await finished.wait()
                    finished.clear()
        finally:
            feed.cancel()

    # --- recorded searches ---

    def rejudge(
        self, trace: Trace, *, on_event: Listener | None = None, **options: Any
    ) -> Rejudged:
        """Judge a recorded search again without generating anything anew (`search.rejudge`).

        `options` are `judge`, `tournament` and `judge_image` (what the judge sees), as of `solve`;
        `on_event` is called with each event.
        """
        return self._loop.wait_for(self._rejudge(trace, options, on_event))

    async def arejudge(
        self, trace: Trace, *, on_event: Listener | None = None, **options: Any
    ) -> Rejudged:
        """`rejudge`, awaitable."""
        return await self._loop.awaited(self._rejudge(trace, options, on_event))

    async def _rejudge(
        self, trace: Trace, options: dict[str, Any], listen: Listener | None
    ) -> Rejudged:
        check_rejudged(options)
        call = self._resolved(None, options)
        await self._bound.all_of(call.judge.part)
        return await rejudge(
            trace,
            call.judge,
            self.backend,
            shown=lambda problem: judge_images(problem, call.config),
            scope=f"rejudge:{trace.started.problem}#{next(self._scopes)}",
            listen=listen,
            models=self._bound,
            **{key: getattr(call.config, key) for key in REJUDGED},
        )

    # --- life ---

    def close(self) -> None:
        """Stop what is running, which ends with a ModelError, and free the model. Takes about a
        second at most; a second time it does nothing."""
        self._loop.close()
        self._bound.close()
        self.backend.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- inside ---

    async def _solve(
        self, call: Resolved, image: Any, question: str | None, listen: Listener | None
    ) -> Answer:
        """One search, from what the user gave. Runs in the engine's thread."""
        if listen is not None and not callable(listen):
            raise ConfigError(f"on_event is {shown(listen)}.", "It must be a function.")
        config = call.config
        problem = await self._load(lambda: problem_of(image, question, config.allow_url))
        check_number_of_images(problem, self.backend.info)
        seen = await self._load(lambda: judge_images(problem, config))
        await self._bound.all_of(call.judge.part, *self._verifiers(call.strategy.part))
        plan = call.plan.fit(len(problem.images), config.detail)
        notes = call.notes
        mode = config.mode
        if mode == "auto":
            mode = await self._modes.of(plan)
            notes += (SAID[mode].format(plan.stages[0].open),)
        return await search(
            problem,
            call.strategy,
            call.judge,
            self.backend,
            call.settings(plan, mode),
            scorers=self._scorer,
            models=self._bound,
            verifier=self.profile.verifier or "likelihood",
            judge_images=seen,
            probe=self.probe,
            scope=f"{problem.id}#{next(self._scopes)}",
            notes=notes,
            listen=listen,
        )

    def _resolved(self, config: Given, options: dict[str, Any]) -> Resolved:
        """A call's options as parts; its judge is the engine's own where none is named."""
        named = isinstance(config, Resolved) or getattr(config, "judge", "auto") != "auto"
        if self.judge is not None and not named and options.get("judge", "auto") == "auto":
            options = {**options, "judge": self.judge}
        return checked(resolve(self.profile, config, options))

    def _verifiers(self, strategy: Any) -> list[Any]:
        """The scorers that a strategy's parameters name, as far as there are such."""
        found = []
        for key in ("verifier", "scorer"):
            if isinstance(name := getattr(strategy, key, None), str):
                with suppress(CotEngineError):  # it is asked for when it is, and explained then
                    name = self.profile.verifier or "likelihood" if name == "auto" else name
                    found.append(self._scorer(name))
        return found

    async def _load(self, act: Callable[[], T]) -> T:
        """What takes pictures to be read, in a thread: other searches go on meanwhile."""
        async with self._loading:
            return await in_thread(act)

    def _feed(
        self,
        problems: Problems,
        config: Given,
        on_event: HearingMany | None,
        on_error: Literal["raise", "keep"],
        options: dict[str, Any],
        send: Callable[[Coroutine[Any, Any, Any]], Sent[Any]],
        wake: Callable[[], None],
    ) -> Feed:
        """What `solve_many` and its twin take their answers from; they differ in how they wait."""
        if on_error not in ("raise", "keep"):
            raise ConfigError(f"on_error is {shown(on_error)}.", "It must be raise or keep.")
        call = self._resolved(config, options)

        async def one(index: int, item: Any) -> Answer | CotEngineError:
            listen = None if on_event is None else of_one(index, on_event)
            try:
                return await self._solve(call, *asked(index, item), listen)
            except CotEngineError as error:
                if on_error == "keep" and not self._loop.closed:
                    return error
                raise

        def sent(index: int, item: Any) -> Future[Any]:
            result = send(one(index, item)).result
            result.add_done_callback(lambda _: wake())
            return result

        return Feed(problems, sent, self.in_flight)
