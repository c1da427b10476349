"""What a stranger writes, as `mypy --strict` wants it. Checked, never run."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cot_engine import (
    Answer,
    Ask,
    Beam,
    Budget,
    Case,
    Chain,
    CotEngineError,
    Engine,
    Event,
    Expand,
    Judge,
    Plan,
    Progress,
    Retrace,
    RunConfig,
    Score,
    Scorer,
    Search,
    Select,
    Stage,
    Strategy,
    Task,
    Trace,
    TraceFile,
    Usage,
    Verdict,
    check_between,
    event_from_json,
    event_to_json,
    load_image,
    parse_budget,
    read_widths,
    settled,
)
from cot_engine.testing import check_judge, check_scorer, check_strategy


@dataclass(frozen=True)
class Shortest:
    """A scorer."""

    async def score(self, chains: Sequence[Chain], case: Case, ask: Ask) -> list[float]:
        return [-float(len(chain.text)) for chain in chains]


class Longer:
    """A judge whose `symmetric` is a plain attribute."""

    symmetric = True

    async def compare(
        self, pairs: Sequence[tuple[Chain, Chain]], case: Case, ask: Ask
    ) -> list[Verdict]:
        margins = [float(len(a.text) - len(b.text)) for a, b in pairs]
        return [Verdict("first" if m > 0 else "second" if m < 0 else "tie", m) for m in margins]


@dataclass(frozen=True)
class Asking:
    """A judge whose `symmetric` is a field, and that asks the model."""

    symmetric: bool = False

    async def compare(
        self, pairs: Sequence[tuple[Chain, Chain]], case: Case, ask: Ask
    ) -> list[Verdict]:
        return [Verdict("tie") for _ in pairs]


@dataclass(frozen=True)
class Own:
    """A strategy. What a request is answered with depends on it: say what you expect."""

    n: int = 4

    def search(self, task: Task) -> Search:
        beam = task.start
        for stage in task.plan:
            grown: Beam = yield Expand(beam, until=stage, n=self.n)
            scores: tuple[float, ...] = yield Score(grown, "likelihood")
            beam = yield Select(tuple(c for c, s in zip(grown, scores, strict=True) if s > -9))
            if max(scores) < -9:
                beam = yield Retrace(grown, stage, max(scores), -9.0)
        last: Beam = yield Expand(beam, until="end")
        more: Beam = yield Expand(beam, until="end", n=2, optional=True)
        best: Beam = yield Select((*last, *more), about="whole", by="auto", unsure=0.1, agree=True)
        return best[0]


def narrow(texts: list[str]) -> bool:
    check_between("stop", 0.8, 0, 1, above=True)
    widths: tuple[int, ...] = read_widths("4,4,2,1")
    return settled(texts, 0.8, [0.5] * len(texts), doubt=0.35, left=widths[-1])


def told(event: Event | Progress) -> str:
    from cot_engine.core.events import Finished, Grown, Selected

    match event:
        case Progress():
            return f"{event.done} of {event.of}"
        case Grown():
            return event.chains[0].text
        case Selected():
            return event.kept[0]
        case Finished():
            return event.answer
        case _:
            return event_to_json(event)


def read(line: str) -> Event:
    return event_from_json(line)


def parts() -> tuple[Strategy, Judge, Judge, Scorer]:
    check_strategy(Own())
    check_judge(Longer())
    check_scorer(Shortest())
    return Own(), Longer(), Asking(), Shortest()


def spent(answer: Answer) -> float:
    budget: Budget = parse_budget("2e12 flops")
    usage: Usage = answer.usage["judge"]
    trace: Trace = answer.trace
    assert trace.finished is not None
    return budget.of(usage) + answer.total.seconds + trace.finished.seconds


def solve(path: Path) -> str:
    plan = Plan((Stage("ANSWER", "Answer.", "Which one answers it?"),))
    config = RunConfig(plan=plan, temperature=1.0, budget="500 new tokens")
    with Engine.from_pretrained() as engine, TraceFile(path / "trace.jsonl") as file:
        answer = engine.solve(load_image(path), "How many?", config=config, on_event=file)
        again = engine.rejudge(answer.trace, judge=Longer(), on_event=lambda event: None)
        for event in engine.stream([path, str(path)], "How many?", judge="self", n=8):
            print(told(event))
        texts = [each.text for each in engine.solve_many([(path, "Which?")], strategy=Own())]
        kept = [
            str(each) if isinstance(each, CotEngineError) else each.text
            for each in engine.solve_many([(None, "Which?")], on_error="keep")
        ]
        return "".join([answer.text, again.answer, *texts, *kept])


async def many(engine: Engine, questions: Sequence[str]) -> list[str]:
    found = [each.text async for each in engine.asolve_many((None, q) for q in questions)]
    one, other = await asyncio.gather(engine.asolve(None, "Why?"), engine.asolve(b"", "What?"))
    async for event in engine.astream(None, "Who?"):
        print(told(event))
    return [*found, one.text, other.text]
