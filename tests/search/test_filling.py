"""Filling a budget: optional growth until it is used up, never beyond, and never at an answer's
expense."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, replace

import pytest
from cot_engine_strategies.best_of_n import BestOfN
from cot_engine_strategies.majority import Majority
from cot_engine_strategies.sentence_beam import SentenceBeam
from cot_engine_strategies.stage_beam import StageBeam
from hypothesis import given, settings
from hypothesis import strategies as st
from malformed import MALFORMED
from real_engine import HOT

from cot_engine.backends.scripted import _number
from cot_engine.core.chain import Chain
from cot_engine.core.events import Cut, Grown, Judged, Notice, Selected
from cot_engine.core.grammar import next_stage, read
from cot_engine.core.problem import Problem
from cot_engine.core.requests import Generate
from cot_engine.core.stages import DEFAULT_PLAN
from cot_engine.core.usage import Usage
from cot_engine.errors import BudgetError
from cot_engine.judging.judges import ScorerJudge, SelfJudge
from cot_engine.search.budget import Budget, Meter
from cot_engine.search.expand import Growth, Portion
from cot_engine.search.fill import fitting
from cot_engine.search.session import Session, Settings
from cot_engine.search.strategy import Expand, Select
from cot_engine.testing import ScriptedBackend, alike, check_strategy, solve_scripted

KINDS = (BestOfN, Majority, SentenceBeam, StageBeam)
UNITS = ("flops", "new tokens", "tokens", "calls")
MODES = ("trained", "prompted")
JUDGES = (ScorerJudge, SelfJudge)


def wordy(request: Generate, seed: int) -> str:
    """Two sentences of 20 to 24 words in each stage: a floor is small beside them."""
    plan = DEFAULT_PLAN.fit(len(request.prompt.images))
    text, written = "", "".join(segment.text for segment in request.prefix)
    while True:
        reading = read(written + text, plan)
        stage = plan[reading.open] if reading.open else next_stage(reading, plan)
        if stage is None:
            return text
        text += "" if reading.open else "\n\n" * bool(written + text) + stage.open
        for sentence in range(reading.opened.count("."), 2):
            many = 20 + _number(seed, stage.tag, sentence) % 5
            words = (f"w{_number(seed, stage.tag, sentence, i) % 97}" for i in range(many))
            text += " " + " ".join(words) + "."
        text += stage.close


def solve(strategy, budget=None, mode="trained", judge=None, script=wordy):
    return solve_scripted(
        strategy,
        backend=ScriptedBackend(script),
        judge=judge,
        settings=Settings(mode=mode, budget=budget),
    )


def grown(answer):
    return [chain for e in answer.trace if isinstance(e, Grown) for chain in e.chains]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 3])
def test_conforms(kind, n):
    check_strategy(kind(n, fill=True))


@pytest.mark.parametrize("kind", [StageBeam, SentenceBeam])
def test_conforms_with_more_kept(kind):
    check_strategy(kind(3, keep=2, fill=True))


# --- how much is spent ---------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_budget_is_used_up(kind, unit, mode):
    one = Budget(1, unit).of(solve(kind(1), mode=mode).total)
    for judge in JUDGES:
        for n, times in ((1, 2), (2, 4.5), (3, 7)):
            budget = Budget(int(one * times), unit)
            answer = solve(kind(n, fill=True), budget, mode, judge())
            share = budget.of(answer.total) / budget.amount
            assert 0.95 <= share <= 1, f"n={n}, {judge.__name__}: {share:.3f} of {budget}"
            assert answer.chain.done and answer.left == budget.amount - budget.of(answer.total)


@pytest.mark.parametrize("unit", UNITS)
@given(
    share=st.floats(0.05, 6),
    kind=st.sampled_from(KINDS),
    n=st.integers(1, 3),
    keep=st.integers(1, 2),
    prompted=st.booleans(),
    script=st.sampled_from(["", *MALFORMED]),
)
@settings(max_examples=15, deadline=None)
def test_never_more_than_the_budget(unit, share, kind, n, keep, prompted, script):
    mode = MODES[prompted]

    def malformed(request: Generate, seed: int) -> str:
        written = "".join(s.text for s in request.prefix)
        whole = MALFORMED[script]
        return whole[len(written) :] if whole.startswith(written) else whole

    if kind in (StageBeam, SentenceBeam) and keep <= n:
        strategy = kind(n, keep=keep, fill=True)
    else:
        strategy = kind(n, fill=True)
    plain = Budget(1, unit).of(solve(replace(strategy, fill=False), mode=mode).total)
    budget = Budget(max(1, int(plain * share)), unit)
    try:
        answer = solve(strategy, budget, mode, SelfJudge(), malformed if script else wordy)
    except BudgetError as error:
        assert "at least" in str(error)
        return
    assert budget.of(answer.total) <= budget.amount
    assert answer.left == budget.amount - budget.of(answer.total)
    assert answer.trace.finished is not None and (answer.text or script)


def test_seconds_are_used_up():
    class Slow(ScriptedBackend):
        async def generate(self, request):
            await asyncio.sleep(0.02)
            return await super().generate(request)

    answer = solve_scripted(
        BestOfN(1, fill=True),
        backend=Slow(),
        settings=Settings(budget=Budget(0.3, "seconds")),
    )
    assert answer.text and answer.seconds > 0.29 and len(grown(answer)) > 3


def test_of_seconds_a_quarter_is_held_back_until_a_chain_is_finished():
    now = [10.0]
    meter = Meter(Budget(8, "seconds"), clock=lambda: now[0])
    floor = Usage(calls=1)

    def deadline(*how):
        return pytest.approx(meter.deadline(*how) + Meter.HANDOVER)

    assert (deadline(floor), deadline(Usage())) == (16, 18)
    assert (deadline(floor, 0.5), deadline(floor, 0.9)) == (14, 16)
    now[0] = 16.5
    assert not meter.affords(Usage(), floor) and meter.affords(Usage(), Usage())


def test_of_seconds_nothing_is_begun_that_could_not_take_a_few_steps():
    """Else a stage got one token in what was left, was cut, and what was held back for concluding
    stayed unspent."""
    now = [10.0]
    meter = Meter(Budget(8, "seconds"), clock=lambda: now[0])
    floor = Usage(calls=1)
    meter.timed(1.0, 10)  # 0.1 s for each, the first request with the prompt
    meter.timed(0.2, 4)
    meter.timed(0.5, 0)
    assert meter.pace == 0.05
    now[0] = 15.5  # 0.5 s before the floor
    assert meter.affords(Usage(), floor)
    now[0] = 15.7
    assert not meter.affords(Usage(), floor) and meter.affords(Usage(), Usage())


def test_of_seconds_what_was_found_to_fit_is_asked_for_though_the_clock_goes_on():
    """Between two looks nothing was left of it: a request for no token, which is an error."""
    given = Settings(plan=DEFAULT_PLAN.fit(0), budget=Budget(1, "seconds"))
    problem = Problem("p", "?")
    for start in range(700, 752):
        session = Session(problem, ScriptedBackend(), given, lambda event: None, "s")
        ticks = itertools.count(start)
        session.meter.started, session.meter.clock = 0.0, lambda ticks=ticks: next(ticks) / 1000
        portion = fitting(
            Growth(session),
            Portion((Chain(),), "end", 4, sum(s.length for s in session.plan), upto=1.0),
        )
        assert portion is None or portion.length > 0


def test_replies_that_cost_nothing_end():
    def silent(request, seed):
        return wordy(request, seed) if not request.prefix and silent.first.pop() else ""

    silent.first = [False] * 9 + [True]
    answer = solve(BestOfN(1, fill=True), Budget(10_000, "new tokens"), script=silent)
    assert answer.text and len(grown(answer)) == 2


# --- what is sampled -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_budget_nothing_changes(kind):
    filled, plain = solve(kind(2, fill=True)), solve(kind(2))
    # What it asked for in vain has its number, and nothing else.
    apart = [
        [e if isinstance(e, Notice) else replace(e, round=0) for e in answer.trace.events[1:-1]]
        for answer in (filled, plain)
    ]
    assert apart[0] == apart[1]
    assert filled.usage == plain.usage


@pytest.mark.parametrize("kind", KINDS)
def test_same_inputs_same_trace_and_the_first_candidates_are_those_of_any_n(kind):
    budget = Budget(2500, "tokens")
    one, again, three = (solve(kind(n, fill=True), budget) for n in (1, 1, 3))
    assert one.trace.canonical() == again.trace.canonical()
    mine, theirs = ({c.id: c for c in grown(a) if c.id.count(".") == 1} for a in (one, three))
    shared = [i for i in mine if i in theirs]
    whole = [i for i in shared if "budget" not in (mine[i].last.finish, theirs[i].last.finish)]
    assert len(whole) > 2 and all(mine[i] == theirs[i] for i in whole)


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_candidate_is_cut_and_loses(kind):
    answer = solve(kind(1, fill=True), Budget(2345, "tokens"))
    cut = [c for c in grown(answer) if c.steps[-1].finish == "budget"]
    assert cut[-1].id == grown(answer)[-1].id
    assert len(cut) == 1 or kind in (StageBeam, SentenceBeam)  # there, one longer than its siblings
    for chain in cut:
        assert chain.steps[-1].faults
        assert not f"{answer.chain.id}.".startswith(f"{chain.id}.")
    last = [e for e in answer.trace if isinstance(e, Cut)][-1]
    assert last.what == "tokens" and last.granted == cut[-1].steps[-1].tokens


def test_a_conclusion_cut_off_is_no_sound_one():
    def script(request, seed):  # the shorter, the likelier
        return wordy(request, seed) if seed % 2 else wordy(request, 1)

    answer = solve(StageBeam(1, fill=True), Budget(1801, "tokens"), script=script)
    cut = grown(answer)[-1]
    assert cut.steps[-1].faults == ("unclosed:CONCLUSION",) and cut.done
    selected = [e for e in answer.trace if isinstance(e, Selected)][-1]
    assert selected.unjudged == {cut.id: "unclosed:CONCLUSION"}


def test_the_votes_of_a_majority_are_those_of_whole_responses():
    whole = "<SUMMARY>s s s</SUMMARY> <REASONING>r r r</REASONING> <CONCLUSION>red</CONCLUSION>"
    cut = "<SUMMARY>s s s</SUMMARY> <REASONING>r r r</REASONING> <CONCLUSION>blue " + "b " * 90

    def script(request, seed):
        script.asked += 1
        return whole if script.asked == 1 else cut

    script.asked = 0
    answer = solve(Majority(1, fill=True), Budget(80, "new tokens"), script=script)
    assert answer.text == "red" and len(grown(answer)) == 2


def test_the_best_so_far_meets_the_new_and_counts_stay():
    def script(request, seed):
        return wordy(request, seed % 3)

    answer = solve(BestOfN(1, fill=True), Budget(5000, "tokens"), script=script)
    whole = [c for c in grown(answer) if c.done]
    assert answer.chain.count == sum(c.steps == answer.chain.steps for c in whole) > 1
    held = [e for e in answer.trace if isinstance(e, Judged) and not e.cached]
    assert 2 <= len(held) <= 3  # of three texts, however often they came
    best = max(whole, key=lambda c: c.likelihood())
    assert answer.chain.text == best.text


def test_room_is_left_to_judge():
    budget = Budget(12_000, "tokens")
    for kind in (BestOfN, StageBeam):
        answer = solve(kind(3, fill=True), budget, judge=SelfJudge())
        cut = [e for e in answer.trace if isinstance(e, Cut) and e.what == "matches"]
        met = [e for e in answer.trace if isinstance(e, Judged) and not e.cached]
        assert len(met) > 5 and len(cut) <= 3 and answer.usage["judge"].tokens > 5000
        at = [answer.trace.events.index(e) for e in cut]  # at the very end, if at all
        assert all(e.left < 0.1 * budget.amount for e in cut), at


def test_stages_keep_to_their_shares():
    budget, spent, last = Budget(6000, "tokens"), Usage(), {}
    answer = solve(StageBeam(1, fill=True), budget)
    for event in answer.trace:
        if isinstance(event, Grown):
            spent += event.usage
            last[event.unit] = spent.tokens / budget.amount
    plan = DEFAULT_PLAN.fit(0)
    for stage in plan:
        share = plan.span(stage.tag)[1]
        assert share - 0.02 < last[stage.tag] <= share, stage.tag


def test_done_parents_get_no_children_and_those_left_get_theirs():
    @dataclass(frozen=True)
    class Some:
        def search(self, task):
            stage = task.plan.stages[0]
            begun = yield Expand(task.start, until=stage, n=2)
            whole = yield Expand(begun[:1], until="end")
            assert not (yield Expand(whole, until="end", n=3, upto=1.0))
            assert not (yield Expand(begun, until=stage, n=3, upto=0.01))
            more = yield Expand((whole[0], begun[1]), until="end", n=3, upto=0.9)
            assert [c.id for c in more] == ["r.1.0", "r.1.1", "r.1.2"]
            best = yield Select((*whole, *more), about="whole")
            return best[0]

    assert solve(Some(), Budget(20_000, "tokens")).chain.done


def test_a_search_that_spent_its_floor_falls_back_on_what_is_finished():
    @dataclass(frozen=True)
    class Careless:
        ask_more: bool

        def search(self, task):
            whole = yield Expand(task.start, until="end")
            while (yield Expand(task.start, until="end", upto=1.0)):
                pass
            if self.ask_more:
                yield Expand(task.start, until="end")
            assert whole[0].done
            return task.start[0]

    for ask_more in (False, True):
        budget = Budget(700, "tokens")
        answer = solve(Careless(ask_more), budget)
        assert answer.chain.done and answer.chain.id == "r.0"
        assert answer.total.tokens <= budget.amount


# --- on the bundled model ------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["best-of-n", "majority", "sentence-beam", "stage-beam"])
def test_the_bundled_model_uses_its_budget_up(engine, problems, strategy):
    # Not so hot that no response is whole: then a floor is held back to the end. And a problem on
    # which candidates agree: one match more can take a fifth of so small a budget, which is left.
    warm = {"strategy": strategy, "n": 1, "temperature": 1.5, "top_p": 1.0, "top_k": 0}
    asked = (problems[4].images[0], problems[4].question)
    one = engine.solve(*asked, **warm)

    async def filled(budget: Budget, judge: str):
        options = {"parameters": {"fill": True}, "judge": judge, "budget": str(budget), **warm}
        answer = await engine.asolve(*asked, **options)
        share = budget.of(answer.total) / budget.amount
        assert 0.95 <= share <= 1, f"{budget}, {judge}: {share:.3f}"
        assert answer.chain.done and answer.trace.started.parameters["fill"]

    async def all_at_once():
        budgets = [Budget(int(Budget(1, unit).of(one.total) * 2.5), unit) for unit in UNITS]
        await asyncio.gather(*(filled(b, j) for b in budgets for j in ("likelihood", "self")))

    asyncio.run(all_at_once())


@pytest.mark.parametrize("strategy", ["best-of-n", "majority", "sentence-beam", "stage-beam"])
def test_filling_is_the_same_alone_and_among_many(engine, problems, strategy):
    options = {"strategy": strategy, "judge": SelfJudge(least_mass=0.0), **HOT}
    options |= {"n": 2, "parameters": {"fill": True}, "budget": "3e9 flops"}
    many = list(engine.solve_many(problems[:5], **options))
    [alone] = engine.solve_many([problems[3]], **options)
    assert alike(alone.trace.canonical(), many[3].trace.canonical())
