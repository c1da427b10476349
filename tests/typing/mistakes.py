"""What a checker must not let pass. The line after each `# wrong: CODE` is one mistake."""

from __future__ import annotations

from collections.abc import Sequence

from cot_engine import (
    Answer,
    Ask,
    Beam,
    Case,
    Chain,
    Engine,
    Expand,
    Judge,
    RunConfig,
    Search,
    Strategy,
    Task,
    Verdict,
    event_to_json,
    parse_budget,
)


class Numbers:
    symmetric = True

    async def compare(
        self, pairs: Sequence[tuple[Chain, Chain]], case: Case, ask: Ask
    ) -> list[float]:
        return [0.0 for _ in pairs]


class Mute:
    async def compare(
        self, pairs: Sequence[tuple[Chain, Chain]], case: Case, ask: Ask
    ) -> list[Verdict]:
        return [Verdict("tie") for _ in pairs]


class Returning:
    def search(self, task: Task) -> Beam:
        return task.start


class Yielding:
    def search(self, task: Task) -> Search:
        # wrong: misc
        yield task.start
        # wrong: return-value
        return task.start


def mistakes(engine: Engine, answer: Answer, chain: Chain) -> None:
    # wrong: attr-defined
    print(answer.txt)
    # wrong: attr-defined
    print(answer.trace.finshed)
    # wrong: union-attr
    print(chain.last.text)
    # wrong: call-arg
    Expand((chain,), untill="end")
    # wrong: arg-type
    Expand((chain,), until="sentences")
    # wrong: call-arg
    RunConfig(temprature=1.0)
    # wrong: arg-type
    Verdict("left")
    # wrong: arg-type
    parse_budget(100)
    # wrong: arg-type
    event_to_json(answer)
    # wrong: arg-type
    Engine.from_pretrained(quantize="2bit")
    # wrong: arg-type
    engine.solve(3.5, "Which?")
    # wrong: union-attr
    print([each.text for each in engine.solve_many([(None, "Which?")], on_error="keep")])
    # wrong: assignment
    judge: Judge = Numbers()
    # wrong: assignment
    judge = Mute()
    # wrong: assignment
    strategy: Strategy = Returning()
    print(judge, strategy)
