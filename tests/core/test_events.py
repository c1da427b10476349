"""Traces: every event survives JSON, and what is broken is said to be."""

from __future__ import annotations

import json
import os
import typing
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cot_engine.core.chain import Chain, Step
from cot_engine.core.events import (
    Cut,
    Event,
    Failed,
    Finished,
    Growing,
    Grown,
    ImageRecord,
    Judged,
    Judging,
    Notice,
    Retraced,
    Scored,
    Selected,
    Started,
    event_from_json,
    event_to_json,
)
from cot_engine.core.fold import Fold
from cot_engine.core.match import Match, Verdict
from cot_engine.core.requests import GREEDY, BackendInfo, Segment
from cot_engine.core.stages import DEFAULT_PLAN
from cot_engine.core.trace import Trace, TraceFile
from cot_engine.core.usage import Usage
from cot_engine.errors import TraceError

USAGE = Usage(1, 20, 300, 4, 5 * 10**15, 6, 0.7)
STEP = Step(
    "<A>ünï\u2028code\n</A>",
    (Segment("<A>"), Segment("ünï\u2028code\n</A>", (5, 6))),
    "A",
    -1.25,
    2,
    "stop",
    ("stray:A",),
)
MATCH = Match(
    "r.0", "r.1", (Verdict("first", 0.5), Verdict("tie", 0.0, False, "?")), "tie", "r.0", "draw"
)
STARTED = Started(
    problem="p",
    question='What "is" this?\r\n',
    images=(ImageRecord("ab", "x.png", (3, 4), ("first frame",), "aGk="),),
    strategy="stage-beam",
    parameters={"n": 4, "deep": {"list": [1, 2.5, None, True]}},
    judge="self",
    tournament="knockout",
    orders="both",
    judge_image="seen",
    plan=DEFAULT_PLAN,
    mode="trained",
    detail="normal",
    seed=7,
    sampling=GREEDY,
    budget="100 tokens",
    backend=BackendInfo("b", "m", "d", "a", "cpu", "float32", 100, 1, ("note",)),
    versions={"torch": "2"},
)
EVENTS = [
    STARTED,
    Growing(("r",), "A", 2, 1),
    Grown("A", (Chain("r.0", (STEP,)), Chain("r.1", (STEP,), True, 3)), USAGE, True, 1),
    Judging("step", "A", ("r.0", "r.1"), 2),
    Judged(MATCH, True, 2),
    Selected(
        "whole",
        "",
        ("r.0", "r.1", "r.2"),
        {"r.0": ("r.2",)},
        {"r.3": "empty:A"},
        (MATCH,),
        ("r.1",),
        ("r.1",),
        USAGE,
        2,
    ),
    Scored("likelihood", {"r.0": -0.5}, USAGE, 3),
    Retraced("CAPTION", ("r.0", "r.1"), ("r",), 2, 0.31, 0.5, 2, 3, 4),
    Cut("tokens", 5, 3, 0.5, 4),
    Notice("Batch halved."),
    Finished("Red.", "r.0", {"generate": USAGE, "judge": Usage()}, {"empty": 1}, 3.5, 1.5),
    Failed("KeyboardInterrupt", "Interrupted."),
]


def test_there_is_an_example_of_every_event():
    assert {type(event) for event in EVENTS} == set(typing.get_args(Event))


@pytest.mark.parametrize("event", EVENTS, ids=lambda e: type(e).__name__)
def test_an_event_survives_json(event):
    line = event_to_json(event)
    assert "\n" not in line
    assert json.loads(line)["event"] == type(event).__name__.lower()
    assert event_from_json(line) == event


@given(
    st.text(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.dictionaries(st.text(), st.integers()),
)
def test_any_values_survive_json(text, number, counts):
    for event in (
        Notice(text),
        Finished(text, text, {}, counts, number, number),
        replace(STARTED, question=text, parameters=counts),
        Grown(text, (Chain("r.0", (replace(STEP, text=text, logprob=number),)),), Usage()),
    ):
        assert event_from_json(event_to_json(event)) == event


@given(st.text(st.characters(exclude_categories=())))
def test_any_text_survives_a_file(tmp_path_factory, text):
    """Also line separators that are not line feeds, and halves of surrogate pairs."""
    path = tmp_path_factory.mktemp("trace") / "t.jsonl"
    trace = Trace([replace(STARTED, question=text), Notice(text), Notice("the end")])
    trace.write(path)
    assert Trace.read(path).events == trace.events


@pytest.mark.parametrize(
    "line",
    [
        *("", "{", "[]", "3", "null", '"text"', "{}", '{"event":"nothing"}', '{"event":[]}'),
        '{"event":"notice"}',
        '{"event":"notice","text":"a","more":1}',
        '{"event":"growing","parents":3,"unit":"A","n":1}',
        '{"event":"growing","parents":[],"unit":"A","n":1,"round":-1}',
        '{"event":"judged","match":{"first":"r"}}',
        '{"event":"grown","unit":"A","chains":[3],"usage":{}}',
        "[" * 100_000,
    ],
    ids=lambda line: line[:40],
)
def test_what_is_no_event_is_refused(line):
    with pytest.raises(TraceError):
        event_from_json(line)


def test_another_schema_is_refused_with_the_next_step(tmp_path):
    line = event_to_json(replace(STARTED, schema=99))
    with pytest.raises(TraceError, match=r"schema 99.*Use the cot-engine version that wrote it"):
        event_from_json(line)
    path = tmp_path / "t.jsonl"
    path.write_text(line + "\n" + event_to_json(EVENTS[1]) + "\n")
    with pytest.raises(TraceError, match=r"Line 1.*schema 99.*Use the"):
        Trace.read(path)


def test_a_plan_that_could_not_be_is_refused():
    body = json.loads(event_to_json(STARTED))
    body["plan"]["stages"][0]["tag"] = "lower case"
    with pytest.raises(TraceError, match="lower case"):
        event_from_json(json.dumps(body))


def test_a_trace_survives_a_file(tmp_path):
    path = tmp_path / "new" / "folder" / "t.jsonl"
    Trace(EVENTS).write(path)
    trace = Trace.read(path)
    assert trace.events == EVENTS
    assert trace.started == STARTED and trace.finished == EVENTS[-2]


def test_a_last_line_that_was_cut_off_is_left_out_wherever_it_was_cut(tmp_path):
    path = tmp_path / "t.jsonl"
    lines = [event_to_json(event).encode() for event in EVENTS[:3]]
    whole = b"\n".join(lines[:2]) + b"\n"
    for cut in range(0, len(lines[2]), 3):  # also in the middle of a character
        path.write_bytes(whole + lines[2][:cut])
        assert Trace.read(path).events == EVENTS[:2]
    path.write_bytes(whole + lines[2])  # all but its line break
    assert Trace.read(path).events == EVENTS[:3]


def test_a_broken_line_elsewhere_is_an_error(tmp_path):
    path = tmp_path / "t.jsonl"
    for text in (
        "{\n" + event_to_json(EVENTS[1]),
        event_to_json(STARTED) + "\n{\n",
        "{",
        "not json\n",
    ):
        path.write_text(text)
        with pytest.raises(TraceError, match=r"Line [12]"):
            Trace.read(path)


@pytest.mark.parametrize("content", [None, b"", b"\n \n", b"\xff\xfe\x00"])
def test_a_file_that_is_no_trace(tmp_path, content):
    path = tmp_path / "t.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TraceError, match=r"t\.jsonl"):
        Trace.read(path)
    with pytest.raises(TraceError):
        Trace.read(tmp_path)
    with pytest.raises(TraceError):
        Trace.read("null\0byte")


def test_each_event_is_in_the_file_as_soon_as_it_happened(tmp_path):
    path = tmp_path / "t.jsonl"
    with TraceFile(path) as file:
        for number, event in enumerate(EVENTS, 1):
            file(event)
            assert len(Trace.read(path).events) == number


def test_a_place_that_cannot_be_written_is_said_at_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "t.jsonl", "null\0byte"):
        with pytest.raises(TraceError, match="cannot be written"):
            TraceFile(path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_stops_the_writing_and_not_the_search():
    file = TraceFile("/dev/full")
    for event in EVENTS:
        file(event)  # does not raise
    assert file.error is not None and os.strerror(28) in file.error.message
    with pytest.raises(TraceError, match="Free some space"):
        file.__exit__(None, None, None)
    with pytest.raises(TraceError, match="No space"):
        Trace(EVENTS).write("/dev/full")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_does_not_hide_an_interrupt():
    with pytest.raises(KeyboardInterrupt), TraceFile("/dev/full") as file:
        file(EVENTS[0])
        raise KeyboardInterrupt


def test_chains_are_put_together_from_their_steps():
    first, second = replace(STEP, text="one "), replace(STEP, text="two")
    grown = [Grown("A", (Chain("r.0", (first,)),), USAGE)]
    grown += [Grown("B", (Chain("r.0.1", (second,), True),), USAGE)]
    chains = Trace(grown).chains()
    assert chains["r.0.1"] == Chain("r.0.1", (first, second), True)
    assert chains["r.0.1"].text == "one two" and chains["r"] == Chain()
    with pytest.raises(TraceError, match=r"r\.0\.1"):
        Trace(grown[1:]).chains()


def test_canonical_drops_only_what_may_differ():
    slower = replace(USAGE, seconds=9.9)
    later = [
        replace(STARTED, versions={"torch": "3"}),
        replace(EVENTS[2], usage=slower),
        replace(EVENTS[-2], usage={"generate": slower, "judge": Usage()}, seconds=9.9),
    ]
    first = [STARTED, EVENTS[2], EVENTS[-2]]
    assert Trace(first).canonical() == Trace(later).canonical()
    for other in (replace(STARTED, seed=8), replace(STARTED, question="?")):
        assert Trace([other, *first[1:]]).canonical() != Trace(first).canonical()
    dearer = replace(EVENTS[2], usage=replace(USAGE, decoded=5))
    assert Trace([dearer]).canonical() != Trace([EVENTS[2]]).canonical()


def test_a_trace_without_its_beginning_says_so():
    with pytest.raises(TraceError, match="no beginning"):
        _ = Trace(EVENTS[1:]).started
    assert Trace(EVENTS[:3]).finished is None


def test_a_fold_adds_up_what_requests_cost():
    assert Fold(EVENTS).usage == {"generate": USAGE, "judge": USAGE, "score": USAGE}
    assert Fold([EVENTS[2], EVENTS[2]]).usage == {"generate": USAGE + USAGE}
    assert Fold([]).usage == {}
