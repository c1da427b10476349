"""Malformed output is data, and strategies that break the contract are named."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from beams import VARIANTS, Beam, selections
from hypothesis import given, settings
from hypothesis import strategies as st
from malformed import MALFORMED

from cot_engine.core.chain import Chain
from cot_engine.core.events import Failed, Grown
from cot_engine.core.grammar import read
from cot_engine.core.requests import Generate
from cot_engine.core.stages import DEFAULT_PLAN, Plan, Stage
from cot_engine.errors import StrategyError
from cot_engine.judging.judges import SelfJudge
from cot_engine.search.session import Settings
from cot_engine.search.strategy import Expand, Score, Select
from cot_engine.testing import ScriptedBackend, solve_scripted, staged_reply

# --- malformed output ----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["trained", "prompted"])
@pytest.mark.parametrize("strategy", VARIANTS, ids=lambda s: f"{s.unit}-{s.n}-{s.keep}")
@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_output_is_data(name, strategy, mode):
    whole = MALFORMED[name]

    def script(request: Generate, seed: int) -> str:
        written = "".join(s.text for s in request.prefix)
        return whole[len(written) :] if whole.startswith(written) else whole

    answer = solve_scripted(strategy, backend=ScriptedBackend(script), settings=Settings(mode=mode))
    finished = answer.trace.finished
    assert finished is not None and finished.answer == answer.text
    if name != "nothing" and name != "only blanks":
        assert finished.faults or mode == "prompted"
    # A stage that no sample opens is forced, and this script then starts anew: no "3" to expect.
    lost = name == "skips a stage" and strategy.unit == "stage"
    if whole.endswith("3</CONCLUSION>") and mode == "trained" and not lost:
        assert "3" in answer.text


@given(
    st.lists(
        st.sampled_from(
            [
                "<SUMMARY>",
                "</SUMMARY>",
                "<REASONING>",
                "</REASONING>",
                "<CONCLUSION>",
                "</CONCLUSION>",
                "<CAPTION>",
                "word. ",
                "3.14 ",
                "\n",
                "<",
                "</",
            ]
        ),
        max_size=14,
    ),
    st.integers(0, len(VARIANTS) - 1),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_tag_soup_never_raises(pieces, which, prompted):
    backend = ScriptedBackend(lambda request, seed: "".join(pieces[seed % 3 :]))
    mode = "prompted" if prompted else "trained"
    answer = solve_scripted(VARIANTS[which], backend=backend, settings=Settings(mode=mode))
    assert answer.trace.finished is not None


def test_a_faulty_candidate_never_meets_a_sound_one():
    def script(request, seed):
        return staged_reply(request, seed) if seed % 2 else "<SUMMARY></SUMMARY>"

    answer = solve_scripted(Beam(8), backend=ScriptedBackend(script), judge=SelfJudge())
    first = selections(answer)[0]
    assert first.unjudged and all(f == "empty:SUMMARY" for f in first.unjudged.values())
    assert not set(first.unjudged) & {i for m in first.matches for i in (m.first, m.second)}
    assert first.kept[0] not in first.unjudged


def test_if_no_sample_opens_the_stage_it_is_forced():
    def script(request, seed):
        written = "".join(s.text for s in request.prefix)
        if written.endswith("</SUMMARY>"):
            return "<CONCLUSION>1</CONCLUSION>"  # always skips REASONING
        return staged_reply(request, seed)

    answer = solve_scripted(Beam(2), backend=ScriptedBackend(script))
    forced = [e for e in answer.trace if isinstance(e, Grown) and e.forced]
    assert [e.unit for e in forced] == ["REASONING"]
    assert answer.trace.finished.faults == {"skipped": 2}
    assert list(read(answer.chain.text, DEFAULT_PLAN).contents) == [
        "SUMMARY",
        "REASONING",
        "CONCLUSION",
    ]


# --- strategies that break the contract ----------------------------------------------------------


def run(body):
    @dataclass(frozen=True)
    class Bad:
        def search(self, task):
            return (yield from body(task))

    events = []
    with pytest.raises(StrategyError) as error:
        solve_scripted(Bad(), listen=events.append)
    assert isinstance(events[-1], Failed)
    return str(error.value)


def test_strategies_that_break_the_contract_are_named():
    def yields_a_number(task):
        yield 3

    def returns_none(task):
        yield Expand(task.start, until="end")

    def raises(task):
        yield Expand(task.start, until="end")
        raise ZeroDivisionError("oh")

    def selects_nothing(task):
        yield Select(())

    assert "yielded 3" in run(yields_a_number)
    assert "returned None" in run(returns_none)
    assert "ZeroDivisionError: oh" in run(raises)
    assert "Select(beam=())" in run(selects_nothing)


def test_an_unfinished_chain_is_concluded():
    @dataclass(frozen=True)
    class Early:
        def search(self, task):
            grown = yield Expand(task.start, until=task.plan.stages[0], n=2)
            scores = yield Score(grown)
            assert len(scores) == 2 and all(score < 0 for score in scores)
            return grown[0]

    answer = solve_scripted(Early())
    assert answer.chain.done and answer.text


@pytest.mark.parametrize(("limit", "why"), [(100, ""), (4, "ANSWER reached the most tokens")])
def test_a_reply_without_tags_is_the_whole_of_a_plan_of_one_stage(limit, why):
    """A model that was trained on none is asked the question alone, and once."""

    @dataclass(frozen=True)
    class Once:
        def search(self, task):
            return (yield Expand(task.start, until="end"))[0]

    plan = Plan((Stage("ANSWER", "", "", length=limit),))
    backend = ScriptedBackend(script=lambda *_: "It is a <b>, so B.\nYes, B.")
    answer = solve_scripted(Once(), backend=backend, settings=Settings(plan=plan))
    assert answer.text == ("It is a <b>," if why else "It is a <b>, so B.\nYes, B.")
    assert answer.incomplete.startswith(why) and bool(answer.incomplete) == bool(why)
    assert [request.prompt.text for request in backend.requests] == ["How many are there?"]
    # With tags, and in a plan of several stages, it is as ever.
    assert read("x<ANSWER>y</ANSWER>z", plan, complete=True).contents == {"ANSWER": "y"}
    assert read("It is B.", DEFAULT_PLAN, complete=True).contents == {}


def test_the_scope_is_released_whatever_happens():
    backend = ScriptedBackend()

    @dataclass(frozen=True)
    class Bad:
        def search(self, task):
            yield Expand(task.start, until="end")
            raise RuntimeError

    with pytest.raises(StrategyError):
        solve_scripted(Bad(), backend=backend)
    assert backend.released == ["p"]


def test_the_root_alone_is_concluded():
    @dataclass(frozen=True)
    class Lazy:
        def search(self, task):
            return task.start[0]
            yield

    assert solve_scripted(Lazy()).text == "0"
    assert replace(Chain(), done=True).text == ""
