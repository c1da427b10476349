"""The core: drive one search. A strategy asks, and is answered; the trace records."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.metadata
import inspect
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cot_engine.backends.protocol import Backend
from cot_engine.core import parts
from cot_engine.core.answers import Answer
from cot_engine.core.chain import Beam, Chain
from cot_engine.core.events import (
    Event,
    Failed,
    Finished,
    Heard,
    ImageRecord,
    Notice,
    Started,
)
from cot_engine.core.grammar import conclusion, incomplete
from cot_engine.core.options import shared
from cot_engine.core.parts import Part, guard
from cot_engine.core.problem import Problem
from cot_engine.core.trace import Trace
from cot_engine.errors import (
    CotEngineError,
    ModelError,
    StrategyError,
    message,
    said,
    shown,
)
from cot_engine.judging.probe import Probe
from cot_engine.judging.protocol import Scorer
from cot_engine.search import yielded
from cot_engine.search.expand import Exhausted, Growth
from cot_engine.search.progress import Reporter
from cot_engine.search.rounds import Rounds
from cot_engine.search.select import Arena
from cot_engine.search.session import Models, Session, Settings
from cot_engine.search.strategy import Continuation, Request, Select, Task

if TYPE_CHECKING:
    from cot_engine.images.load import Image

_MOST_REQUESTS = 10_000  # a strategy that asks more is not going to end


@dataclass(frozen=True, slots=True)
class Named:
    """A part of a search with the name that traces and tables know it by."""

    name: str
    part: Any


async def search(
    problem: Problem,
    strategy: Named,
    judge: Named,
    backend: Backend,
    settings: Settings,
    *,
    scorers: Callable[[str], Scorer],
    verifier: str = "likelihood",
    models: Models | None = None,
    judge_images: tuple[Image, ...] = (),
    probe: Probe | None = None,
    scope: str = "",
    notes: tuple[str, ...] = (),
    listen: Callable[[Heard], None] | None = None,
) -> Answer:
    """Run one search to its answer.

    `listen` gets every event as it happens, in order, and Progress between them. `verifier` is
    the scorer that "auto" stands for; `judge_images` is what the judge is shown; `probe` reads the
    model's states; `models` opens what verifiers are bound to; `notes` are recorded at the start as
    notices.
    Raises BudgetError if the budget cannot pay for an answer, StrategyError if the strategy, the
    judge, a scorer or `listen` breaks its contract, ModelError if the backend does, and what it
    raises on purpose; a Failed event ends the trace then, and what was recorded before stays.
    """
    trace = Trace()
    tell = parts.listener(listen)

    def emit(event: Event) -> None:
        trace.events.append(event)
        tell(event)

    noted: set[str] = set()

    def record(event: Event) -> None:
        if isinstance(event, Notice):  # of every round the same: said once
            if event.text in noted:
                return
            noted.add(event.text)
        emit(event)

    plan = settings.plan
    session = Session(
        *(problem, backend, settings, record, scope or problem.id, judge_images),
        reporter=Reporter(listen and tell),
        probe=probe,
        models=models,
    )
    try:
        emit(_started(session, strategy, judge))
        for note in (*notes, *(note for image in problem.images for note in image.notes)):
            emit(Notice(note))
        growth, arena = Growth(session), Arena(session, judge.part, judge.name)
        session.check_affordable()
        asking = _Asking(strategy, growth, scorers, verifier)
        chain = await _drive(asking, Rounds(growth, arena, asking.scorer))
        if not chain.done:
            session.round += 1
            chain, _ = await growth.conclude(chain)
        session.release()
        meter = session.meter
        text = conclusion(chain.text, plan)
        faults = _fault_counts(trace)
        finished = Finished(
            *(text, chain.id, dict(meter.usage), faults, meter.left, meter.seconds),
            incomplete(chain, plan, str(settings.budget or "")),
            chain.confidence,
        )
        emit(finished)
    except BaseException as error:
        # Neither a backend that cannot forget nor a listener that fails hides what came first.
        with contextlib.suppress(ModelError):
            session.release()
        with contextlib.suppress(StrategyError):
            emit(Failed(type(error).__name__, message(error)))
        raise
    return Answer(
        text,
        chain,
        problem,
        finished.usage,
        finished.seconds,
        finished.left,
        trace,
        finished.incomplete,
    )


async def _drive(asking: _Asking, rounds: Rounds) -> Chain:
    """Send a strategy what it asks for until it returns a chain, or the budget ends it."""
    reply, count = None, 0
    try:
        while count < _MOST_REQUESTS:
            asked = asking.next(reply)
            if isinstance(asked, Chain):
                return asked
            count += len(asked) if isinstance(asked, tuple) else 1
            reply = await rounds.answer(asked)
            # Searches that need no model would otherwise never let others run.
            await asyncio.sleep(0)
        asking.part.broke(f"asked {_MOST_REQUESTS} times without an end")
    except Exhausted as exhausted:
        asking.close()
        return exhausted.chain
    except BaseException:
        with contextlib.suppress(StrategyError):
            asking.close()  # now, not whenever it is collected
        raise


class _Asking:
    """A strategy's generator, guarded; what it asks and returns, checked."""

    def __init__(
        self, strategy: Named, growth: Growth, scorers: Callable[[str], Scorer], verifier: str
    ) -> None:
        self.part = Part("strategy", strategy.part, strategy.name)
        self.scorers, self.verifier = scorers, verifier
        self.plan, self.known = growth.session.plan, growth.known
        start: Beam = (Chain(),)
        with guard(self.part):
            if isinstance(strategy.part, Continuation):
                start = tuple(strategy.part.chains)
                self.known.update((chain.id, chain) for chain in start)
            search = self.part.method("search")
            self.generator = search(Task(growth.session.problem, self.plan, start))
            if not isinstance(self.generator, Generator):
                if inspect.iscoroutine(self.generator):
                    self.generator.close()
                self.part.broke(
                    f"gave {shown(self.generator)} as its search",
                    "search() must be a generator: a plain def with yield, and not async.",
                )

    def next(self, reply: Any) -> Request | tuple[Request, ...] | Chain:
        with guard(self.part):
            try:
                request = self.generator.send(reply)
            except StopIteration as stop:
                return yielded.returned(self.part, stop.value, self.known)
        return yielded.checked(self.part, request, self.plan, self.known, self.verifier)

    def scorer(self, request: Request, name: str) -> Scorer:
        """The scorer that a request names. Raises StrategyError if there is none, or it is
        broken."""
        try:
            return self.scorers(name)
        except CotEngineError as error:
            field = "by" if isinstance(request, Select) else "scorer"
            what = f"yielded {type(request).__name__}({field}={shown(name)})"
            raise self.part.error(f"{what}: {said(error)}", error.hint) from error

    def close(self) -> None:
        with guard(self.part):
            self.generator.close()


def _started(session: Session, strategy: Named, judge: Named) -> Started:
    settings, problem = session.settings, session.problem
    images = tuple(
        ImageRecord(image.digest, image.source, image.size, image.notes, image=image)
        for image in problem.images
    )
    return Started(
        problem=problem.id,
        question=problem.question,
        images=images,
        strategy=strategy.name,
        parameters=parts.parameters(strategy.part),
        judge=judge.name,
        plan=settings.plan,
        mode=settings.mode,
        sampling=settings.sampling,
        budget=str(settings.budget) if settings.budget else None,
        backend=session.backend.info,
        versions=dict(_versions()),
        **shared(settings),
    )


@functools.cache
def _versions() -> dict[str, str]:
    """Read once: it takes milliseconds, and installed packages do not change under a process."""
    found = {}
    for name in ("cot-engine", "torch", "transformers"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _fault_counts(trace: Trace) -> dict[str, int]:
    counts: dict[str, int] = {}
    for event in trace:
        for chain in getattr(event, "chains", ()):
            for fault in chain.steps[-1].faults:
                name = fault.partition(":")[0]
                counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items()))
