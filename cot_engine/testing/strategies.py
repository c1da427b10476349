"""What every strategy must keep to."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import is_dataclass
from typing import Literal

from cot_engine.backends.scripted import ScriptedBackend
from cot_engine.core.answers import Answer
from cot_engine.core.events import event_from_json, event_to_json
from cot_engine.core.problem import Problem
from cot_engine.core.stages import DEFAULT_PLAN, Plan, Stage
from cot_engine.errors import BudgetError
from cot_engine.judging.judges import ScorerJudge
from cot_engine.search.budget import Budget, Unit
from cot_engine.search.concurrency import gather
from cot_engine.search.loop import Named, search
from cot_engine.search.session import Settings
from cot_engine.search.strategy import Strategy
from cot_engine.testing.apart import apart
from cot_engine.testing.searches import scorer_of, solve_scripted

UNITS: tuple[Unit, ...] = ("flops", "new tokens", "tokens", "calls")
MODES: tuple[Literal["trained", "prompted"], ...] = ("trained", "prompted")


def check_strategy(strategy: Strategy) -> None:
    """Raises AssertionError, naming the rule, if a strategy breaks what the core relies on."""
    assert not isinstance(strategy, type), "give an object of the strategy, not its class"
    assert is_dataclass(strategy), "a strategy is a frozen dataclass: its fields are its parameters"
    frozen = getattr(strategy, "__dataclass_params__").frozen  # noqa: B009  # no type has it
    assert frozen, "the dataclass must be frozen"
    apart(lambda: _check(strategy))


def _check(strategy: Strategy) -> None:
    first, second = solve_scripted(strategy), solve_scripted(strategy)
    assert first.text.strip(), "a search ends with an answer"
    assert first.chain.done, "the returned chain is a finished one"
    assert first.trace.canonical() == second.trace.canonical(), "same inputs, same trace"
    alone = [solve_scripted(strategy, problem=problem) for problem in _PROBLEMS]
    for one, other in zip(alone, _at_once(strategy, _PROBLEMS), strict=True):
        same = one.trace.canonical() == other.trace.canonical()
        assert same, "searches at the same time do not touch each other: it keeps no state"
    assert [event_from_json(event_to_json(e)) for e in first.trace] == first.trace.events, (
        "traces round-trip"
    )
    fold = first.trace.fold()
    assert fold.usage == first.usage, "every token is in the trace"
    assert first.chain.id in fold.grown_in, "the answer is one of the chains that were grown"
    for _, event in fold.selections:
        assert set(event.kept) <= set(event.candidates), "only candidates are kept"
    for plan in (_ONE_STAGE, DEFAULT_PLAN):
        for mode in MODES:
            answer = solve_scripted(strategy, settings=Settings(plan=plan, mode=mode, seed=1))
            assert answer.text.strip(), f"it answers with {len(plan)} stages, {mode}"
    for unit, share in itertools.product(UNITS, (0.2, 0.5, 0.9, 3.0)):
        amount = max(1, round(Budget(1, unit).of(first.total) * share))
        for mode in MODES:
            _check_budget(strategy, Budget(amount, unit), mode)
    broken = ScriptedBackend(script=lambda request, seed: "no tags at all")
    assert solve_scripted(strategy, backend=broken).text, "malformed output still gives an answer"
    no_end = ScriptedBackend(script=lambda request, seed: "")
    for budget in (None, Budget(1000, "new tokens")):  # an empty reply must not loop or raise
        solve_scripted(strategy, backend=no_end, settings=Settings(budget=budget))


_PROBLEMS = [Problem(f"p{k}", "How many are there?") for k in range(3)]
_ONE_STAGE = Plan((Stage("ANSWER", "Answer.", "Which one answers it?", width=2),))


def _at_once(strategy: Strategy, problems: Sequence[Problem]) -> list[Answer]:
    """The answers to several problems, searched at the same time."""
    named = Named(type(strategy).__name__, strategy), Named("likelihood", ScorerJudge())
    backend, settings = ScriptedBackend(), Settings(plan=DEFAULT_PLAN.fit(0))

    async def all_of_them() -> list[Answer]:
        return await gather(
            search(each, *named, backend, settings, scorers=scorer_of) for each in problems
        )

    return asyncio.run(all_of_them())


def _check_budget(strategy: Strategy, budget: Budget, mode: Literal["trained", "prompted"]) -> None:
    try:
        answer = solve_scripted(strategy, settings=Settings(budget=budget, mode=mode))
    except BudgetError:
        return
    spent = budget.of(answer.total)
    assert spent <= budget.amount, f"spent {spent} of {budget}"
    assert answer.left == budget.amount - spent, "what is left is reported"
