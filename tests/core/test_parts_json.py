"""A trace stays JSON, whatever judges, scorers and the parameters of a strategy hold."""

from __future__ import annotations

import json
import math
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from beams import Beam
from broken_parts import Giving, Nameless, Scoring
from hypothesis import event as seen
from hypothesis import given, settings
from hypothesis import strategies as st

from cot_engine.core.events import (
    Event,
    Failed,
    Finished,
    Progress,
    Scored,
    Selected,
    event_from_json,
    event_to_json,
)
from cot_engine.core.match import Verdict
from cot_engine.errors import StrategyError
from cot_engine.search.session import Settings
from cot_engine.search.strategy import Expand
from cot_engine.testing import solve_scripted

ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**400), 10**400),
    st.floats(),
    st.text(max_size=4),
    st.binary(max_size=2),
    st.sampled_from([np.float32(1), np.float64("nan"), np.int8(3), np.bool_(True), object(), 1j]),
    st.lists(st.floats(), max_size=2),
)
SPOKEN = st.one_of(
    st.tuples(st.just("tie"), st.floats(), st.just(True), st.text(max_size=4)),
    st.tuples(st.just("first"), st.floats(0), st.booleans(), st.just("")),
    st.tuples(st.sampled_from(["second", "win", None, 3]), ANYTHING, ANYTHING, ANYTHING),
)


def strict(events):
    for event in events:
        body = json.loads(event_to_json(event), parse_constant=pytest.fail)
        assert json.loads(json.dumps(body, allow_nan=False)) == body


@given(
    st.lists(SPOKEN, min_size=1, max_size=3),
    st.sampled_from(["knockout", "round-robin", "swiss", "random-pairs"]),
)
@settings(max_examples=150, deadline=None)
def test_a_trace_is_json_whatever_a_judge_gives(given, tournament):
    judge = Giving(lambda n: [Verdict(*given[k % len(given)]) for k in range(n)])
    events: list[Event] = []
    try:
        answer = solve_scripted(
            Beam(4), judge=judge, listen=events.append, settings=Settings(tournament=tournament)
        )
        seen("answered")
        assert isinstance(events[-1], Finished)
        assert answer.trace.events == [e for e in events if not isinstance(e, Progress)]
        assert all(
            math.isfinite(m.margin) for e in events if isinstance(e, Selected) for m in e.matches
        )
    except StrategyError:
        assert isinstance(events[-1], Failed)
    strict(events)


@given(st.lists(ANYTHING, min_size=2, max_size=2))
@settings(max_examples=100, deadline=None)
def test_a_trace_is_json_whatever_a_scorer_gives(given):
    events: list[Event] = []
    scorer = Giving(lambda n: given)
    try:
        solve_scripted(Scoring(), scorers=lambda name: scorer, listen=events.append)
        assert any(isinstance(event, Scored) for event in events)
    except StrategyError:
        assert isinstance(events[-1], Failed)
    strict(events)


DEEP = st.recursive(
    ANYTHING,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.sets(st.one_of(st.integers(), st.text(max_size=3)), max_size=3),
        st.dictionaries(st.one_of(st.integers(), st.text(max_size=3), st.none()), inner),
        st.tuples(inner, inner),
    ),
    max_leaves=8,
)


@dataclass(frozen=True)
class Holding:
    """A strategy whose parameters hold something."""

    what: Any = None
    more: list = field(default_factory=list)

    def search(self, task):
        beam = yield Expand(task.start, until="end")
        return beam[0]


@given(DEEP)
@settings(max_examples=100, deadline=None)
def test_a_trace_is_json_whatever_the_parameters_of_a_strategy(what):
    strict(solve_scripted(Holding(what)).trace)


def test_parameters_that_cannot_be_copied_or_have_no_end():
    endless: list = []
    endless.append([endless, endless])
    deep: Any = 0
    for _ in range(5000):
        deep = [deep]
    wide = {k: [0] * 1000 for k in range(1000)}
    odd = [threading.Lock(), (x for x in ()), Nameless(), strict, Verdict("tie")]
    for what in (endless, deep, wide, odd, {Nameless(): 1}, {frozenset(): {1, "a"}}):
        trace = solve_scripted(Holding(what)).trace
        strict(trace)
        assert len(event_to_json(trace.started)) < 50_000
    kept = solve_scripted(Holding(odd)).trace.started.parameters["what"]
    assert kept[1:3] == ["<generator object test_parameters_that_cannot_be_copied_or_have_no_end"
                         ".<locals>.<genexpr>>", kept[2]]  # fmt: skip
    assert kept[4] == {"outcome": "tie", "margin": 0.0, "readable": True, "text": ""}


def test_usual_parameters_are_kept_as_json_has_them():
    what = {"a": (1, 2.5, None, True), "b": Path("x"), "c": [np.int64(3), np.float64(0.5)]}
    started = solve_scripted(Holding(what)).trace.started
    kept = started.parameters["what"]
    assert kept == {"a": [1, 2.5, None, True], "b": repr(Path("x")), "c": [3, 0.5]}
    assert [type(value) for value in kept["c"]] == [int, float]
    assert event_from_json(event_to_json(started)) == started
