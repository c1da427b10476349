"""Rounds: what events that interleave, and those from before rounds were numbered, amount to."""

from __future__ import annotations

import io
import random
import re
from dataclasses import replace

import pytest
from beams import Apart, Beam, Lookahead
from make_traces import TRACES, Recorder, match, tag
from rich.console import Console

from cot_engine.ablation.records import SelectionRecord
from cot_engine.ablation.worth import stages_of
from cot_engine.core.fold import Fold, numbered
from cot_engine.core.trace import Trace
from cot_engine.core.usage import Usage
from cot_engine.report.judging import contests
from cot_engine.search.budget import parse_budget
from cot_engine.search.session import Settings
from cot_engine.show.board import Board
from cot_engine.show.html import render_html
from cot_engine.show.tree import render_tree
from cot_engine.testing import ScriptedBackend, solve_scripted


def drawn(trace: Trace) -> tuple[str, str]:
    console = Console(width=100, file=io.StringIO(), color_system=None)
    console.print(render_tree(trace))
    return render_html(trace), console.file.getvalue()


def forgotten(trace: Trace) -> Trace:
    """As it was recorded before rounds were numbered."""
    return Trace([replace(e, round=0) if hasattr(e, "round") else e for e in trace])


def guessed(trace: Trace) -> Trace:
    """An old trace with the numbers that a fold gives to its rounds."""
    events, fold = [], Fold()
    for event in trace:
        number = numbered(event, fold)
        events.append(replace(event, round=number) if hasattr(event, "round") else event)
        fold.take(event)
    return Trace(events)


def shuffled(seed: int) -> Trace:
    """The trace with its rounds' events in another order, each round's own kept."""
    rng = random.Random(seed)
    events = TRACES["at-once"]().events
    order = [getattr(event, "round", None) for event in events]
    rows = {k: [e for e in events if getattr(e, "round", None) == k] for k in {*order}}
    for first, last in ((3, 4), (5, 6), (7, 8), (9, 10)):
        at = [i for i, k in enumerate(order) if k in (first, last)]
        rounds = [order[i] for i in at]
        rng.shuffle(rounds)
        for i, k in zip(at, rounds, strict=True):
            order[i] = k
    return Trace([rows[k].pop(0) for k in order])


@pytest.mark.parametrize("seed", range(4))
def test_how_the_events_of_a_tuple_interleave_changes_nothing(seed):
    other = shuffled(seed)
    assert other.events != TRACES["at-once"]().events
    assert drawn(other) == drawn(TRACES["at-once"]())


@pytest.mark.parametrize("name", ["lookahead", "stage-beam", "sentence-beam", "interrupted"])
def test_a_trace_without_numbers_is_read_as_if_it_had_them(name):
    trace = TRACES[name]()
    old = forgotten(trace)
    assert drawn(old) == drawn(trace) == drawn(guessed(old))
    if name == "lookahead":
        said = [getattr(event, "round", 0) for event in trace]
        assert [getattr(event, "round", 0) for event in guessed(old)] == said


def messy(request, seed):
    """A model that opens, closes and leaves out stages as it likes."""
    tags = ["SUMMARY", "REASONING", "CONCLUSION"]
    texts = [f"<{tag}>So. Or so.</{tag}>" for tag in tags] + [f"<{tag}>Hm" for tag in tags]
    return random.Random(seed).choice([*texts, "no tags at all", " "])


@pytest.mark.parametrize("strategy", [Lookahead(), Apart(), Beam(3, 2), Beam(2, unit="sentence")])
def test_real_searches_are_drawn_and_watched_by_their_rounds(strategy):
    """Drawn alike without their numbers; no candidate is shown twice while they run."""
    for seed, budget in enumerate((None, "60 new tokens", "150 new tokens", "20 calls", None)):
        backend = ScriptedBackend(script=messy) if seed else ScriptedBackend()
        how = Settings(seed=seed, budget=budget and parse_budget(budget))
        board, sampled = Board(), 0
        answer = solve_scripted(strategy, backend=backend, settings=how)
        for event in answer.trace:
            titles = [block.lines[0].plain for block in board.take(event) if block.kind == "round"]
            sampled += sum(
                int(n) for title in titles for n in re.findall(r"(\d+) candidate", title)
            )
        assert drawn(forgotten(answer.trace)) == drawn(answer.trace)
        fold = answer.trace.fold()
        assert sampled == len(fold.grown_in) and fold.usage == answer.usage
        assert board.open == [] and not fold.waiting


def test_rounds_know_what_was_grown_and_what_was_held_among_it():
    fold = TRACES["at-once"]().fold()
    assert sorted({*fold.growths, *fold.contests}) == list(range(1, 13))
    assert fold.growths[8].parents == ("r.0.0",) and fold.growths[8].wanted == 2
    assert [chain.id for chain in fold.growths[8].chains] == ["r.0.0.0", "r.0.0.1"]
    assert fold.contests[5].entrants == ("r.1.0", "r.1.1")
    assert [cut.what for cut in fold.contests[10].remarks] == ["matches"]
    assert [cut.what for cut in fold.growths[4].remarks] == ["candidates"]
    assert [held.number for held, _ in fold.selections] == [2, 6, 5, 9, 10, 12], "as they ended"
    assert [growth.number for growth in fold.contests[12].growths] == [11]
    assert fold.chains["r.0.0.0"].steps[0].text == "<SUMMARY>I look left.</SUMMARY>"
    assert fold.usage == TRACES["at-once"]().finished.usage and not fold.gap and not fold.waiting


def test_a_selection_is_about_what_its_candidates_were_to_end_with():
    """Not about what grew last: the shallower ones are judged after the deeper ones grew."""
    r = Recorder("Which?", ())
    shallow = r.grow("r", "SUMMARY", tag("SUMMARY", "One.", "Two."))
    r.grow(shallow, "REASONING", tag("REASONING", "So.", "No."))
    kept = r.select(shallow, [match(*shallow, 1, -1)])
    (end,) = r.grow(kept, "CONCLUSION", tag("CONCLUSION", "X"))
    trace = r.finish(end)
    assert stages_of(trace) == ("SUMMARY",)
    (held,) = contests(trace, [SelectionRecord("SUMMARY", tuple(shallow), kept)])
    assert held.grown == 2 and held.growing == trace.fold().growths[1].usage


def test_matches_are_those_of_their_own_selection():
    trace = TRACES["at-once"]()
    known = [SelectionRecord("x", (), ()) for _ in trace.fold().selections]
    held = contests(trace, known)
    assert all({m.first, m.second} <= {*c.candidates} for c in held for m in c.matches)
    assert [len(c.matches) for c in held] == [2, 1, 1, 1, 1, 1]
    assert sum(c.grown for c in held) == 13
    assert sum((c.growing for c in held), Usage()) == trace.finished.usage["generate"]
