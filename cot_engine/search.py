"""The core: drive one search. A strategy asks; growth and arena carry it out; the trace records."""

from __future__ import annotations

import asyncio
import functools
import importlib.metadata
from collections.abc import Callable
from dataclasses import asdict, dataclass, is_dataclass

from cot_engine.arena import Arena
from cot_engine.backends import Backend
from cot_engine.errors import CotEngineError, StrategyError
from cot_engine.events import (
    Event,
    Failed,
    Finished,
    Heard,
    ImageRecord,
    Notice,
    Scored,
    Started,
    Trace,
)
from cot_engine.filling import fill
from cot_engine.growth import Exhausted, Growth
from cot_engine.judges import Case, OutOfBudget, Scorer
from cot_engine.progress import Reporter
from cot_engine.session import MeteredAsk, Session, Settings
from cot_engine.stages import conclusion, incomplete
from cot_engine.strategy import Expand, Score, Select, Strategy, Task
from cot_engine.types import Answer, Chain, Problem

_MOST_REQUESTS = 10_000  # a strategy that asks more is not going to end


@dataclass(frozen=True, slots=True)
class Named:
    """A part of a search with the name that traces and tables know it by."""

    name: str
    part: object


async def search(
    problem: Problem,
    strategy: Named,
    judge: Named,
    backend: Backend,
    settings: Settings,
    *,
    scorers: Callable[[str], Scorer],
    judge_images: tuple = (),
    scope: str = "",
    notes: tuple[str, ...] = (),
    listen: Callable[[Heard], None] | None = None,
) -> Answer:
    """Run one search to its answer.

    `listen` gets every event as it happens, in order, and Progress between them. `judge_images` is
    what the judge is shown; `notes` are recorded at the start as notices.
    Raises BudgetError if the budget cannot pay for an answer, StrategyError if the strategy or
    the judge breaks its contract, and whatever the backend raises; a Failed event ends the trace
    then, and what was recorded before stays.
    """
    trace = Trace()

    def emit(event: Event) -> None:
        trace.events.append(event)
        if listen is not None:
            listen(event)

    plan = settings.plan.fit(len(problem.images), settings.detail)
    session = Session(
        *(problem, plan, backend, settings, emit, scope or problem.id, judge_images),
        reporter=Reporter(listen),
    )
    emit(_started(session, strategy, judge))
    for note in (*notes, *(note for image in problem.images for note in image.notes)):
        emit(Notice(note))
    growth = Growth(session)
    try:
        session.check_affordable()
        chain = await _drive(strategy, Arena(session, judge.part), growth, scorers)  # type: ignore[arg-type]
        if not chain.done:
            chain, _ = await growth.conclude(chain)
    except BaseException as error:
        emit(Failed(type(error).__name__, str(error)))
        raise
    finally:
        backend.release(session.scope)
    meter = session.meter
    text = conclusion(chain.text, plan)
    finished = Finished(
        text,
        chain.id,
        dict(meter.usage),
        _fault_counts(trace),
        meter.left,
        meter.seconds,
        incomplete(chain, plan, str(settings.budget or "")),
    )
    emit(finished)
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


async def _drive(
    strategy: Named, arena: Arena, growth: Growth, scorers: Callable[[str], Scorer]
) -> Chain:
    """Send a strategy what it asks for until it returns a chain, or the budget ends it."""
    session = growth.session
    asked = _Asking(strategy, Task(session.problem, session.plan))
    reply = None
    for _ in range(_MOST_REQUESTS):
        request = asked.next(reply)
        match request:
            case Chain():
                return request
            case Expand():
                beam, until, n, greedy = request.beam, request.until, request.n, request.greedy
                try:
                    if request.upto is None:
                        reply = await growth.expand(tuple(beam), until, n, greedy)
                    else:
                        reply = await fill(growth, tuple(beam), until, n, request.upto, greedy)
                except Exhausted as exhausted:
                    asked.close()
                    return exhausted.chain
            case Select():
                reply = await arena.select(request)
            case Score():
                reply = await _score(session, request, scorers)
            case _:
                raise StrategyError(
                    f"The strategy {strategy.name} yielded {request!r}.",
                    "Yield Expand, Select or Score, and return a Chain.",
                )
        # Searches that need no model would otherwise never let others run.
        await asyncio.sleep(0)
    raise StrategyError(
        f"The strategy {strategy.name} asked {_MOST_REQUESTS} times without an end."
    )


class _Asking:
    """A strategy's generator, its own errors turned into StrategyError."""

    def __init__(self, strategy: Named, task: Task) -> None:
        self.name = strategy.name
        part: Strategy = strategy.part  # type: ignore[assignment]
        self.generator = self._guard(lambda: part.search(task))

    def next(self, reply):
        def send():
            try:
                return self.generator.send(reply)
            except StopIteration as stop:
                if not isinstance(stop.value, Chain):
                    raise StrategyError(
                        f"The strategy {self.name} returned {stop.value!r}.", "Return a Chain."
                    ) from None
                return stop.value

        return self._guard(send)

    def close(self) -> None:
        self._guard(self.generator.close)

    def _guard(self, act: Callable):
        try:
            return act()
        except CotEngineError:
            raise
        except Exception as error:
            raise StrategyError(
                f"The strategy {self.name} raised {type(error).__name__}: {error}."
            ) from error


async def _score(
    session: Session, request: Score, scorers: Callable[[str], Scorer]
) -> tuple[float, ...]:
    scorer = scorers(request.scorer)
    chains = tuple(request.beam)
    ask = MeteredAsk(session, "score", chains[0].segments if chains else ())
    case = Case(session.problem, session.plan, "step", None, session.judge_images)
    try:
        with session.reporter.doing("scoring", request.scorer):
            scores = await scorer.score(chains, case, ask)
    except OutOfBudget:
        # Known to every scorer's user, and free: what the model itself thought of its text.
        scores = [chain.likelihood() for chain in chains]
        session.emit(Notice(f"Scored by likelihood: the budget left no room for {request.scorer}."))
    by_id = {chain.id: score for chain, score in zip(chains, scores, strict=True)}
    session.emit(Scored(request.scorer, by_id, ask.usage))
    return tuple(scores)


def _started(session: Session, strategy: Named, judge: Named) -> Started:
    settings, problem = session.settings, session.problem
    images = tuple(
        ImageRecord(
            image.digest,
            image.source,
            image.size,
            image.notes,
            image=image,
        )
        for image in problem.images
    )
    part = strategy.part
    return Started(
        problem=problem.id,
        question=problem.question,
        images=images,
        strategy=strategy.name,
        parameters=asdict(part) if is_dataclass(part) else {},  # type: ignore[call-overload]
        judge=judge.name,
        tournament=settings.tournament,
        orders=settings.orders,
        judge_image=settings.judge_image,
        plan=session.plan,
        mode=settings.mode,
        detail=settings.detail,
        seed=settings.seed,
        sampling=settings.sampling,
        budget=str(settings.budget) if settings.budget else None,
        backend=session.backend.info,
        versions=dict(_versions()),
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
