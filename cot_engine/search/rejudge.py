"""Judge a recorded search again, with another judge or tournament, generating no candidate anew.

Each recorded selection is held again on its own candidates. Where the new winner differs from the
recorded one, later stages were grown from the old winner: they are judged as they stand, and
`Rejudged.answer` is the recorded one unless the last selection itself falls differently.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from cot_engine.backends.protocol import Backend, measuring
from cot_engine.core import parts
from cot_engine.core.answers import Answer
from cot_engine.core.boundaries import Until
from cot_engine.core.events import Event, Heard, Judged, Selected
from cot_engine.core.grammar import conclusion
from cot_engine.core.options import SearchOptions, options_of, shared
from cot_engine.core.problem import Problem
from cot_engine.core.requests import (
    GREEDY,
    BackendInfo,
    Choose,
    Chosen,
    Generate,
    Generated,
    Measure,
    Measured,
    Prompt,
)
from cot_engine.core.trace import Trace
from cot_engine.core.usage import Usage
from cot_engine.errors import ModelError, TraceError, UnknownNameError
from cot_engine.images.load import Image, load_image
from cot_engine.judging import prompts
from cot_engine.search.loop import Named
from cot_engine.search.progress import Reporter
from cot_engine.search.select import Arena
from cot_engine.search.session import Models, Session, Settings
from cot_engine.search.strategy import Select

REJUDGED = {f.name: f.default for f in options_of(SearchOptions, "judging") if f.name != "orders"}
"""Options that judging again may be given, and what they are if it is not: whatever the search
had. Only the orders in which candidates are shown stay those of the search."""


def check_rejudged(options: Iterable[str]) -> None:
    """Raises UnknownNameError for options that judging again does not have."""
    known = ("judge", *REJUDGED)
    for key in options:
        if key not in known:
            raise UnknownNameError("option of rejudge called", key, known)


@dataclass(frozen=True, slots=True)
class Selection:
    """One recorded selection (`before`) and the same candidates judged again (`after`)."""

    before: Selected
    after: Selected

    @property
    def same(self) -> bool:
        """Whether the same candidates were kept, in whatever order."""
        return set(self.before.kept) == set(self.after.kept)


@dataclass(frozen=True, slots=True)
class Rejudged(SearchOptions):
    """`answer` is what the search would have said if only its last selection had been judged this
    way; `usage` what judging this way would have cost the search. Its options are those of the
    search but for `REJUDGED`."""

    judge: str
    selections: tuple[Selection, ...]
    answer: str
    usage: Usage

    @property
    def agreement(self) -> float:
        """The share of selections that kept the same candidates (1.0 if there was none)."""
        if not self.selections:
            return 1.0
        return sum(s.same for s in self.selections) / len(self.selections)


def recorded_problem(trace: Trace) -> Problem:
    """The problem of a trace, its images from the trace itself.

    Raises TraceError if the trace was written without images.
    """
    import base64

    started = trace.started
    images: list[Image] = []
    for record in started.images:
        if record.image is not None:
            images.append(record.image)
            continue
        if not (png := record.png()):
            raise TraceError(
                "The trace does not hold its image, so it cannot be judged by looking again.",
                "Record it with images, or judge by likelihood.",
            )
        images.append(load_image(base64.b64decode(png)))
    return Problem(started.problem, started.question, tuple(images))


async def rejudge(
    trace: Trace,
    judge: Named,
    backend: Backend | None = None,
    *,
    shown: Callable[[Problem], tuple[Image, ...]] | None = None,
    scope: str = "",
    listen: Callable[[Heard], None] | None = None,
    models: Models | None = None,
    **changed: Any,
) -> Rejudged:
    """Hold every selection of `trace` again. `backend` is needed by judges that ask a model,
    `models` by those that are bound to others.

    `shown` makes the images that the judge sees, if not the problem's own. `scope` must be unique
    among what is in flight on the backend. `listen` gets the events. `changed` are the options
    (of `REJUDGED`) that are not to be at their default.
    Raises TraceError if the trace is incomplete, or if the judge needs a backend and has none, and
    StrategyError if the judge or `listen` breaks its contract.
    """
    started, fold = trace.started, trace.fold()
    heard: list[Event] = []
    tell = parts.listener(listen)

    def emit(event: Event) -> None:
        heard.append(event)
        tell(event)

    settings = Settings(
        plan=started.plan,
        mode=started.mode,
        sampling=started.sampling,
        **shared(started) | REJUDGED | changed,
    )
    free = backend is None
    problem = Problem(started.problem, started.question) if free else recorded_problem(trace)
    scope = scope or f"rejudge:{started.problem}"
    prompt = prompts.answer_prompt(problem, started.plan, started.mode, started.detail)
    model: Any = _NoBackend() if backend is None else _AsSearched(backend, scope, prompt)
    images = problem.images if shown is None else shown(problem)
    session = Session(
        *(problem, model, settings, emit, scope, images),
        reporter=Reporter(listen and tell),
        models=models,
    )
    selections = []
    try:
        arena = Arena(session, judge.part, judge.name)
        for _, before in fold.selections:
            try:
                beam = tuple(fold.chains[name] for name in before.candidates)
            except KeyError as missing:
                raise TraceError(f"The trace lacks the candidate {missing}.") from None
            await arena.select(Select(beam, len(before.kept), before.about))
            after = heard[-1]
            assert isinstance(after, Selected)
            selections.append(Selection(before, replace(after, round=before.round)))
    except BaseException:
        with contextlib.suppress(ModelError):  # what came first is what counts
            session.release()
        raise
    session.release()
    answer = trace.finished.answer if trace.finished else ""
    if selections and not selections[-1].same:
        answer = conclusion(fold.chains[selections[-1].after.kept[0]].text, started.plan)
    usage = sum((s.after.usage for s in selections), Usage())
    return Rejudged(judge.name, tuple(selections), answer, usage, **shared(settings))


def replayed(trace: Trace, rejudged: Rejudged) -> Trace:
    """The trace with its selections replaced by the new ones, for drawing."""
    new = iter(rejudged.selections)
    events: list[Event] = []
    for event in trace:
        if isinstance(event, Judged):
            continue
        events.append(next(new).after if isinstance(event, Selected) else event)
    at = events.index(trace.started)
    events[at] = replace(trace.started, judge=rejudged.judge, **shared(rejudged))
    return Trace(events)


@dataclass
class _AsSearched:
    """The backend as a judge finds it in a search: the question and its pictures have been read,
    and are not charged to the judge. They are read before its first request, if it makes any."""

    backend: Backend
    scope: str
    prompt: Prompt
    reading: asyncio.Future[Generated] | None = field(default=None, repr=False)

    async def _read(self) -> None:
        if self.reading is None:
            request = Generate(self.scope, self.prompt, (), Until(), (0,), 1, GREEDY)
            self.reading = asyncio.ensure_future(self.backend.generate(request))
        await self.reading

    async def generate(self, request: Generate) -> Generated:
        await self._read()
        return await self.backend.generate(request)

    @property
    def info(self) -> BackendInfo:
        return self.backend.info

    async def choose(self, request: Choose) -> Chosen:
        await self._read()
        return await self.backend.choose(request)

    async def measure(self, request: Measure) -> Measured:
        model = measuring(self.backend)
        await self._read()
        return await model.measure(request)

    def estimate(self, request: Generate | Choose | Measure) -> Usage:
        if isinstance(request, Measure):
            return measuring(self.backend).estimate(request)
        return self.backend.estimate(request)

    def release(self, scope: str) -> None:
        self.backend.release(scope)

    def close(self) -> None:
        self.backend.close()


class _NoBackend:
    """Stands in where a judge should need no model, and says so if it does."""

    def release(self, scope: str) -> None:
        pass

    async def _refuse(self, request: object) -> Answer:
        raise TraceError(
            "This judge asks a model, and none is loaded.", "Name one with --model, or a backend."
        )

    generate = choose = measure = _refuse
    info = BackendInfo("none", "none", "", "none", "none", "none", 0, 0)

    def close(self) -> None:
        pass

    def estimate(self, request: object) -> Usage:
        return Usage()
