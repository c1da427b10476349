"""The search core on a model made of arithmetic: seeds, budgets, faults, traces."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest
from beams import VARIANTS, Beam, selections
from golden import check_golden
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import tree

from cot_engine.core.events import Cut, Grown, Notice
from cot_engine.core.grammar import read
from cot_engine.core.problem import Problem
from cot_engine.core.requests import Generate
from cot_engine.core.stages import DEFAULT_PLAN, Plan, Stage
from cot_engine.core.usage import Usage
from cot_engine.errors import BudgetError, InputError
from cot_engine.judging.judges import OracleJudge, RandomJudge, SelfJudge
from cot_engine.search.budget import Budget
from cot_engine.search.session import Settings
from cot_engine.search.strategy import Expand
from cot_engine.testing import ScriptedBackend, check_strategy, solve_scripted, staged_reply


@pytest.mark.parametrize("strategy", VARIANTS, ids=str)
def test_conforms(strategy):
    check_strategy(strategy)


@pytest.mark.parametrize("mode", ["trained", "prompted"])
@pytest.mark.parametrize("strategy", VARIANTS, ids=lambda s: f"{s.unit}-{s.n}-{s.keep}")
def test_search_tree(strategy, mode):
    answer = solve_scripted(strategy, judge=SelfJudge(), settings=Settings(mode=mode))
    name = f"search/{strategy.unit}-n{strategy.n}-keep{strategy.keep}-{mode}.txt"
    check_golden(name, tree(answer.trace))


def test_candidate_is_the_same_among_two_and_among_eight():
    def first_two(n):
        grown = next(e for e in solve_scripted(Beam(n)).trace if isinstance(e, Grown))
        return [chain.steps[-1] for chain in grown.chains[:2]]

    assert first_two(2) == first_two(8)


def test_seed_and_problem_change_what_is_drawn():
    def texts(seed=0, problem="p"):
        answer = solve_scripted(
            Beam(8), settings=Settings(seed=seed), problem=Problem(problem, "How many?")
        )
        grown = next(e for e in answer.trace if isinstance(e, Grown))
        return [chain.steps[-1].text for chain in grown.chains]

    assert texts() == texts()
    assert texts() != texts(seed=1)
    assert texts() != texts(problem="q")


def test_a_strategy_that_grows_a_chain_twice_gets_new_candidates():
    @dataclass(frozen=True)
    class Twice:
        def search(self, task):
            stage = task.plan.stages[0]
            first = yield Expand(task.start, until=stage, n=3)
            second = yield Expand(task.start, until=stage, n=3)
            assert {c.id for c in first}.isdisjoint(c.id for c in second)
            assert [c.id for c in second] == ["r.3", "r.4", "r.5"]
            whole = yield Expand(second[:1], until="end")
            return whole[0]

    assert solve_scripted(Twice()).chain.id == "r.3.0"


def test_a_done_chain_comes_back_as_it_is():
    @dataclass(frozen=True)
    class Again:
        def search(self, task):
            whole = yield Expand(task.start, until="end")
            same = yield Expand(whole, until="end", n=5)
            assert same == whole
            return same[0]

    solve_scripted(Again())


# --- judging -------------------------------------------------------------------------------------


def test_equal_texts_are_merged_and_never_meet():
    def script(request: Generate, seed: int) -> str:
        return staged_reply(request, seed % 2)  # two different texts at most

    answer = solve_scripted(Beam(8), backend=ScriptedBackend(script), judge=SelfJudge())
    texts = {c.id: c.steps[-1].text for e in answer.trace if isinstance(e, Grown) for c in e.chains}
    met = 0
    for event in selections(answer):
        assert len(event.merged) >= 1
        assert len(event.ranking) + sum(map(len, event.merged.values())) == 8
        for match in event.matches:
            met += 1
            assert texts[match.first] != texts[match.second]
    assert met


def test_all_equal_costs_no_judging():
    backend = ScriptedBackend(lambda request, seed: staged_reply(request, 0))
    answer = solve_scripted(Beam(8), backend=backend, judge=SelfJudge())
    assert "judge" not in answer.usage
    assert answer.chain.count == 8


def test_both_orders_are_asked_and_a_position_bias_is_a_tie():
    class FirstAlways(SelfJudge):
        async def compare(self, pairs, case, ask):
            from cot_engine.core.match import Verdict

            return [Verdict("first", 1.0) for _ in pairs]

    answer = solve_scripted(Beam(4), judge=FirstAlways())
    matches = [m for e in selections(answer) for m in e.matches]
    assert matches
    chains = answer.trace.chains()
    for match in matches:
        assert match.outcome == "tie" and match.flipped and match.margin == 0
        a, b = chains[match.first].likelihood(1), chains[match.second].likelihood(1)
        assert match.broken_by == ("draw" if a == b else "likelihood")
        if a != b:
            assert match.winner == (match.first if a > b else match.second)


def test_unreadable_is_a_tie_never_the_second():
    class Garbage(SelfJudge):
        async def compare(self, pairs, case, ask):
            from cot_engine.core.match import Verdict

            return [Verdict("tie", 0.0, readable=False, text="??") for _ in pairs]

    matches = [m for e in selections(solve_scripted(Beam(4), judge=Garbage())) for m in e.matches]
    assert matches and all(m.outcome == "tie" and not m.flipped for m in matches)


def test_a_judge_whose_prompt_does_not_fit_leaves_ties_and_says_so():
    class TooLong(SelfJudge):
        async def compare(self, pairs, case, ask):
            raise InputError("The prompt takes 9000 tokens; the model holds 4096.")

    answer = solve_scripted(Beam(4), judge=TooLong())
    assert answer.text
    notices = [e.text for e in answer.trace if isinstance(e, Notice)]
    assert notices and all("not judged" in text and "4096" in text for text in notices)
    assert all(m.broken_by for e in selections(answer) for m in e.matches)


def test_the_longest_wins_with_a_judge_that_prefers_length():
    def script(request, seed):
        return f"<A>{'x' * (seed % 50 + 1)}</A>"

    plan = Plan((Stage("A", "write", "which?"),))
    for tournament in ("random-pairs", "knockout", "round-robin", "swiss"):
        answer = solve_scripted(
            Beam(9),
            backend=ScriptedBackend(script),
            judge=SelfJudge(),
            settings=Settings(plan=plan, tournament=tournament),
        )
        grown = next(e for e in answer.trace if isinstance(e, Grown))
        longest = max(len(c.steps[-1].text) for c in grown.chains)
        assert len(answer.chain.text) == longest, tournament


def test_oracle_finds_the_answer_if_any_candidate_has_it():
    truth = solve_scripted(Beam(1)).text
    answer = solve_scripted(Beam(16, unit="end"), judge=OracleJudge(truth))
    given = {
        read(c.text, DEFAULT_PLAN).contents["CONCLUSION"]
        for c in answer.trace.chains().values()
        if c.done
    }
    assert (answer.text == truth) == (truth in given)


def test_random_judge_is_seeded_and_symmetric():
    a, b = (
        solve_scripted(Beam(), judge=RandomJudge(0)),
        solve_scripted(Beam(), judge=RandomJudge(0)),
    )
    assert a.trace.canonical() == b.trace.canonical()
    others = {solve_scripted(Beam(), judge=RandomJudge(s)).chain.id for s in range(12)}
    assert len(others) > 1


# --- budgets -------------------------------------------------------------------------------------

UNITS = ("flops", "new tokens", "tokens", "calls")


@pytest.mark.parametrize("unit", UNITS)
@given(share=st.floats(0.05, 1.2), which=st.integers(0, len(VARIANTS) - 1), mode=st.booleans())
@settings(max_examples=40, deadline=None)
def test_a_budget_is_a_hard_contract(unit, share, which, mode):
    strategy, mode = VARIANTS[which], "prompted" if mode else "trained"
    full = solve_scripted(strategy, judge=SelfJudge(), settings=Settings(mode=mode))
    measure = Budget(1, unit)
    amount = max(1, int(measure.of(full.total) * share))
    limited = Settings(budget=Budget(amount, unit), mode=mode)
    try:
        answer = solve_scripted(strategy, judge=SelfJudge(), settings=limited)
    except BudgetError as error:
        assert "at least" in str(error)
        return
    assert answer.text
    assert measure.of(answer.total) <= amount
    assert answer.left == amount - measure.of(answer.total)


def test_an_ample_budget_changes_nothing():
    free = solve_scripted(Beam(), judge=SelfJudge())
    ample = solve_scripted(
        Beam(), judge=SelfJudge(), settings=Settings(budget=Budget(1e15, "flops"))
    )
    assert ample.chain == free.chain and ample.usage == free.usage


def test_a_budget_too_small_says_what_is_needed_and_that_is_enough():
    with pytest.raises(BudgetError) as error:
        solve_scripted(Beam(), settings=Settings(budget=Budget(3, "tokens")))
    needed = float(str(error.value).split("takes up to ")[1].split()[0])
    answer = solve_scripted(Beam(), settings=Settings(budget=Budget(needed, "tokens")))
    assert answer.text and answer.total.tokens <= needed


def test_a_budget_of_seconds_stops_the_search_but_not_the_answer():
    class Slow(ScriptedBackend):
        async def generate(self, request):
            await asyncio.sleep(0.05)
            return await super().generate(request)

    answer = solve_scripted(
        Beam(2, unit="sentence"),
        backend=Slow(),
        settings=Settings(budget=Budget(0.12, "seconds")),
    )
    assert answer.text
    assert any(isinstance(e, Cut) and e.what == "search" for e in answer.trace)


def test_usage_adds_up_to_the_trace():
    answer = solve_scripted(Beam(), judge=SelfJudge())
    grown = sum((e.usage for e in answer.trace if isinstance(e, Grown)), Usage())
    judged = sum((e.usage for e in selections(answer)), Usage())
    assert answer.usage == {"generate": grown, "judge": judged}
    assert judged.calls == 2 * sum(len(e.matches) for e in selections(answer))
